//! The client for programs: one thread with a [`Driver`] behind a handle that any thread may use.
//!
//! ```no_run
//! use std::time::Duration;
//! use ringraft::block::{BlockBuilder, Command, CommandKind};
//! use ringraft::client::handle::Client;
//! use ringraft::ids::GroupId;
//!
//! let client = Client::connect(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"])?;
//! let mut block = BlockBuilder::default();
//! let (key, value) = (b"orders/new".as_slice(), b"{}".as_slice());
//! block.push(&Command { kind: CommandKind::SetEvent as u8, flags: 0, timestamp: 0, key, value })?;
//! let ticket = client.submit(GroupId(0), block)?;
//! let committed = ticket.wait(Duration::from_secs(10))?;
//! println!("stored at {}", committed.first);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use thiserror::Error;

use super::driver::Driver;
use super::{ClientConfig, ClientCore, ClientError, QueryTarget, SubmitError};
use crate::block::BlockBuilder;
use crate::ids::{GroupId, NodeId, Tick};
use crate::runtime::entropy::random;
use crate::runtime::ring::Waker;
use crate::wire::admin::AdminRequest;
use crate::wire::client::{Committed, Consistency, Place};

/// Requests that may wait for the client's thread, and in it for the first handshake.
const REQUESTS_MAX: usize = 4096;
/// Requests that may wait for room in one group, and in all together: a group without a leader fills its
/// own places, and nobody else's.
const GROUP_REQUESTS_MAX: usize = 4096;
const ALL_REQUESTS_MAX: usize = 65_536;
/// How long a request waits for the first handshake or for room in its group.
const ROOM_LIMIT_US: u64 = 10_000_000;
/// How often waiting requests are looked at without other news.
const LOOK_AGAIN_US: u64 = 5_000;

/// Why a request did not get its answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Nothing was sent. Try again a little later.
    #[error("too many requests wait in this client; try again a little later")]
    Busy,
    /// A block without commands.
    #[error("the block has no commands; push at least one")]
    Empty,
    /// The cluster's answer, or none in time.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The request does not fit this cluster.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// [`Ticket::wait`] gave up first; the request goes on, its fate is unknown.
    #[error("no answer within the time given to wait; the request may still succeed")]
    StillWaiting,
    /// The client was dropped.
    #[error("the client has ended")]
    Ended,
}

type Answer<T> = mpsc::SyncSender<Result<T, RequestError>>;

enum Work {
    Submit(BlockBuilder, Answer<Committed>),
    Close(Answer<Committed>),
    Query(Consistency, Place, Bytes, Answer<Reading>),
    Admin(Option<NodeId>, AdminRequest, Answer<Bytes>),
}

impl Work {
    /// It takes one of the group's places for blocks.
    fn needs_room(&self) -> bool {
        matches!(self, Self::Submit(..) | Self::Close(_))
    }

    fn refuse(self, error: RequestError) {
        match self {
            Self::Submit(_, answer) | Self::Close(answer) => drop(answer.send(Err(error))),
            Self::Query(_, _, _, answer) => drop(answer.send(Err(error))),
            Self::Admin(_, _, answer) => drop(answer.send(Err(error))),
        }
    }
}

struct Request {
    group: GroupId,
    /// When it entered the client's thread, on the driver's clock; 0 before.
    since_us: u64,
    work: Work,
}

enum Waiting {
    Commit(Answer<Committed>),
    Reading(Answer<Reading>),
    Bytes(Answer<Bytes>),
}

struct Shared {
    requests: ArrayQueue<Request>,
    stop: AtomicBool,
    waker: Waker,
}

/// A session with a cluster. Cheap to share behind an `Arc`; dropping it ends the session.
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a state machine said, and how far it was when it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Everything up to here is in the answer, and nothing after it.
    pub place: Place,
    pub bytes: Bytes,
}

/// The answer to come.
#[derive(Debug)]
pub struct Ticket<T>(mpsc::Receiver<Result<T, RequestError>>);

impl<T> Ticket<T> {
    /// Waits for the answer, at most `limit`.
    pub fn wait(&self, limit: Duration) -> Result<T, RequestError> {
        match self.0.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(RequestError::StillWaiting),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(RequestError::Ended),
        }
    }
}

impl Client {
    /// Starts a session with the cluster that these nodes belong to. Does not wait for it: the
    /// first requests do.
    pub fn connect<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> io::Result<Self> {
        let session = random()? as u64 | 1;
        Self::start(ClientConfig::new(addresses, session))
    }

    /// The same with every setting.
    pub fn start(config: ClientConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            requests: ArrayQueue::new(REQUESTS_MAX),
            stop: AtomicBool::new(false),
            waker: Waker::new()?,
        });
        let theirs = shared.clone();
        let (ready, is_ready) = mpsc::channel();
        let body = move || match Driver::new(vec![config], theirs.waker.clone()) {
            Err(error) => drop(ready.send(Err(error))),
            Ok(driver) => {
                let _ = ready.send(Ok(()));
                let (parked, waiting) = (Parked::new(), Waits::default());
                Worker { shared: theirs, driver, parked, waiting }.run();
            }
        };
        let thread = std::thread::Builder::new().name("client".into()).spawn(body)?;
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the client's thread died")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Proposes the commands in `block` to a group, exactly once however often it is retried.
    pub fn submit(
        &self,
        group: GroupId,
        block: BlockBuilder,
    ) -> Result<Ticket<Committed>, RequestError> {
        if block.count() == 0 {
            return Err(RequestError::Empty);
        }
        let (answer, ticket) = mpsc::sync_channel(1);
        self.push(group, Work::Submit(block, answer))?;
        Ok(Ticket(ticket))
    }

    /// Ends this client's session in a group, once nothing of it is under way (`Full` otherwise): the
    /// cluster remembers its answers no longer. Without it they are kept until the session expires.
    pub fn close_session(&self, group: GroupId) -> Result<Ticket<Committed>, RequestError> {
        let (answer, ticket) = mpsc::sync_channel(1);
        self.push(group, Work::Close(answer))?;
        Ok(Ticket(ticket))
    }

    /// Asks a group's state machine: its leader, or for `Follower` and `Stale` the first node of the
    /// list that can be reached.
    pub fn query(
        &self,
        group: GroupId,
        consistency: Consistency,
        question: Bytes,
    ) -> Result<Ticket<Reading>, RequestError> {
        self.query_after(group, consistency, Place::default(), question)
    }

    /// The same for someone who has read the group's state at `after`, the place of an earlier
    /// [`Reading`]: if some of what was there then is lost, the answer is
    /// [`Refused::Truncated`](crate::wire::client::Refused::Truncated) and says from where on.
    pub fn query_after(
        &self,
        group: GroupId,
        consistency: Consistency,
        after: Place,
        question: Bytes,
    ) -> Result<Ticket<Reading>, RequestError> {
        let (answer, ticket) = mpsc::sync_channel(1);
        self.push(group, Work::Query(consistency, after, question, answer))?;
        Ok(Ticket(ticket))
    }

    /// Gives an operator's command to a group: to its leader, or to `node`. The answer is an
    /// [`AdminReply`](crate::wire::admin::AdminReply) as JSON.
    pub fn admin(
        &self,
        group: GroupId,
        node: Option<NodeId>,
        request: AdminRequest,
    ) -> Result<Ticket<Bytes>, RequestError> {
        let (answer, ticket) = mpsc::sync_channel(1);
        self.push(group, Work::Admin(node, request, answer))?;
        Ok(Ticket(ticket))
    }

    fn push(&self, group: GroupId, work: Work) -> Result<(), RequestError> {
        let request = Request { group, since_us: 0, work };
        self.shared.requests.push(request).map_err(|_| RequestError::Busy)?;
        self.shared.waker.wake();
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The client's thread.
struct Worker {
    shared: Arc<Shared>,
    driver: Driver,
    parked: Parked<Request>,
    waiting: Waits,
}

/// Who waits for answers, by tag, and the tags that are free.
#[derive(Default)]
struct Waits {
    by_tag: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

impl Waits {
    fn tag(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.by_tag.push(None);
            self.by_tag.len() - 1
        })
    }

    /// Nobody waits under a tag that was taken.
    fn give_back(&mut self, tag: usize) {
        self.free.push(tag);
    }

    fn begin(&mut self, tag: usize, waiting: Waiting) {
        self.by_tag[tag] = Some(waiting);
    }

    /// Who waited under a tag, which is free again.
    fn end(&mut self, tag: u64) -> Option<Waiting> {
        let waiting = self.by_tag[tag as usize].take();
        if waiting.is_some() {
            self.free.push(tag as usize);
        }
        waiting
    }
}

/// Requests that cannot be given to the core yet, in the order in which they came to their place: a
/// group's, or (`None`) that of whatever came before the cluster was known.
struct Parked<T> {
    places: BTreeMap<Option<GroupId>, VecDeque<T>>,
    count: usize,
}

impl<T> Parked<T> {
    fn new() -> Self {
        Self { places: BTreeMap::new(), count: 0 }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn has(&self, place: Option<GroupId>) -> bool {
        self.places.contains_key(&place)
    }

    fn places(&self) -> Vec<Option<GroupId>> {
        self.places.keys().copied().collect()
    }

    /// Gives it back if the place is full.
    fn park(&mut self, place: Option<GroupId>, request: T) -> Result<(), T> {
        let held = self.places.get(&place).map_or(0, VecDeque::len);
        if held >= GROUP_REQUESTS_MAX || self.count >= ALL_REQUESTS_MAX {
            return Err(request);
        }
        self.places.entry(place).or_default().push_back(request);
        self.count += 1;
        Ok(())
    }

    /// The first of a place, if it `goes`.
    fn take_if(&mut self, place: Option<GroupId>, goes: impl FnOnce(&T) -> bool) -> Option<T> {
        let queue = self.places.get_mut(&place)?;
        if !queue.front().is_some_and(goes) {
            return None;
        }
        let request = queue.pop_front();
        if queue.is_empty() {
            self.places.remove(&place);
        }
        self.count -= 1;
        request
    }
}

impl Worker {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            self.take_requests();
            if self.driver.turn().is_err() {
                break;
            }
            self.give_answers();
            let idle = if self.parked.is_empty() { 1_000_000 } else { LOOK_AGAIN_US };
            let until = self.driver.now().plus(idle);
            if self.driver.wait(until).is_err() {
                break;
            }
        }
    }

    fn take_requests(&mut self) {
        let now_us = self.driver.now().0.max(1);
        self.start_parked(now_us);
        while let Some(request) = self.shared.requests.pop() {
            self.admit(Request { since_us: now_us, ..request });
        }
    }

    /// Starts a request, or keeps it until it has a place in the core.
    fn admit(&mut self, request: Request) {
        let (group, core) = (request.group, self.driver.core(0));
        let known = core.groups().is_some();
        let fits = core.fault().is_some() || (known && has_room(core, group));
        // Blocks of a group leave in the order in which they were given.
        let waits = known && request.work.needs_room() && (!fits || self.parked.has(Some(group)));
        if (known || fits) && !waits {
            return self.start(request);
        }
        let place = known.then_some(group);
        if let Err(full) = self.parked.park(place, request) {
            full.work.refuse(RequestError::Busy);
        }
    }

    /// Starts what has a place in the core by now, and what has waited too long: the core says why it
    /// does not go on.
    fn start_parked(&mut self, now_us: u64) {
        for place in self.parked.places() {
            let core = self.driver.core(0);
            let failed = core.fault().is_some();
            let known = core.groups().is_some();
            let late = |request: &Request| failed || now_us - request.since_us >= ROOM_LIMIT_US;
            let Some(group) = place else {
                while let Some(request) = self.parked.take_if(None, |r| known || late(r)) {
                    if late(&request) { self.start(request) } else { self.admit(request) }
                }
                continue;
            };
            loop {
                let room = has_room(self.driver.core(0), group);
                let Some(request) = self.parked.take_if(place, |r| room || late(r)) else { break };
                self.start(request);
            }
        }
    }

    /// Gives a request to the core.
    fn start(&mut self, request: Request) {
        let Request { group, work, .. } = request;
        match work {
            Work::Submit(block, answer) => self.submit(group, block, answer),
            Work::Close(answer) => {
                let (now, tag) = (self.driver.now(), self.waiting.tag());
                let closing = self.driver.core(0).close_session(now, group, tag as u64);
                self.await_commit(tag, closing, answer);
            }
            Work::Query(consistency, after, question, answer) => {
                let to = match consistency {
                    Consistency::Linearizable | Consistency::Lease => QueryTarget::Leader,
                    Consistency::Follower | Consistency::Stale => QueryTarget::Any,
                };
                self.ask(to, answer, Waiting::Reading, |core, now, to, tag| {
                    core.query_after(now, group, to, (consistency, after), question, tag)
                });
            }
            Work::Admin(node, request, answer) => {
                let to = node.map_or(QueryTarget::Leader, QueryTarget::Node);
                self.ask(to, answer, Waiting::Bytes, |core, now, to, tag| {
                    core.admin(now, group, to, &request, tag)
                });
            }
        }
    }

    fn submit(&mut self, group: GroupId, mut block: BlockBuilder, answer: Answer<Committed>) {
        let (now, tag) = (self.driver.now(), self.waiting.tag());
        let core = self.driver.core(0);
        let stamp = core.stamp(group);
        let block = block.finish(group, stamp.client, stamp.seq, stamp.pending);
        let submitted = core.submit(now, block, tag as u64);
        self.await_commit(tag, submitted, answer);
    }

    fn await_commit(
        &mut self,
        tag: usize,
        submitted: Result<(), SubmitError>,
        answer: Answer<Committed>,
    ) {
        match submitted {
            Ok(()) => self.waiting.begin(tag, Waiting::Commit(answer)),
            Err(error) => {
                self.waiting.give_back(tag);
                drop(answer.send(Err(error.into())));
            }
        }
    }

    fn ask<T>(
        &mut self,
        to: QueryTarget,
        answer: Answer<T>,
        wait: impl FnOnce(Answer<T>) -> Waiting,
        ask: impl FnOnce(&mut ClientCore, Tick, QueryTarget, u64) -> Result<(), SubmitError>,
    ) {
        let (now, tag) = (self.driver.now(), self.waiting.tag());
        match ask(self.driver.core(0), now, to, tag as u64) {
            Ok(()) => self.waiting.begin(tag, wait(answer)),
            Err(error) => {
                self.waiting.give_back(tag);
                drop(answer.send(Err(error.into())));
            }
        }
    }

    fn give_answers(&mut self) {
        for (_, done) in self.driver.take_done() {
            if let Some(Waiting::Commit(answer)) = self.waiting.end(done.tag) {
                let _ = answer.send(done.result.map_err(RequestError::from));
            }
        }
        for (_, reply) in self.driver.take_replies() {
            let result = reply.result.map_err(RequestError::from);
            match self.waiting.end(reply.tag) {
                Some(Waiting::Bytes(answer)) => drop(answer.send(result)),
                Some(Waiting::Reading(answer)) => {
                    let reading = |bytes| Reading { place: reply.place, bytes };
                    let _ = answer.send(result.map(reading));
                }
                _ => {}
            }
        }
    }
}

/// A group that the cluster does not have takes everything, and refuses it.
fn has_room(core: &ClientCore, group: GroupId) -> bool {
    core.room(group) > 0 || group.0 >= super::GROUPS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Story: group 1 has no leader. What is given for it fills its places, and only the next one for
    /// it is refused; group 2 does not wait behind it.
    #[test]
    fn a_group_without_room_fills_its_own_places_and_nobody_elses() {
        let (stuck, other) = (Some(GroupId(1)), Some(GroupId(2)));
        let mut parked = Parked::new();
        for n in 0..GROUP_REQUESTS_MAX {
            assert_eq!(parked.park(stuck, n), Ok(()));
        }
        assert_eq!(parked.park(stuck, 7), Err(7));
        assert_eq!(parked.park(other, 9), Ok(()));
        assert_eq!(parked.take_if(stuck, |_| false), None);
        assert_eq!(parked.take_if(other, |_| true), Some(9));
        assert!(!parked.has(other) && parked.has(stuck));
        assert_eq!(parked.take_if(stuck, |_| true), Some(0), "in the order in which they came");
        assert_eq!(parked.park(stuck, 7), Ok(()));
    }
}
