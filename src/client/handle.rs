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

use std::collections::VecDeque;
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

/// Requests that may wait for the client's thread.
const REQUESTS_MAX: usize = 4096;
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
                Worker { shared: theirs, driver, parked: VecDeque::new(), waiting: Vec::new() }
                    .run();
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
    /// Requests without room yet.
    parked: VecDeque<Request>,
    /// By tag.
    waiting: Vec<Option<Waiting>>,
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
        while self.parked.len() < REQUESTS_MAX {
            let Some(request) = self.shared.requests.pop() else { break };
            self.parked.push_back(Request { since_us: now_us, ..request });
        }
        for _ in 0..self.parked.len() {
            let Some(request) = self.parked.pop_front() else { break };
            self.start(now_us, request);
        }
    }

    /// Gives a request to the core, parks it again while there is no room, or ends it.
    fn start(&mut self, now_us: u64, request: Request) {
        let Request { group, since_us, work } = request;
        let waited_us = now_us - since_us;
        let known = self.driver.core(0).groups();
        let fault = self.driver.core(0).fault();
        let no_group = group.0 >= super::GROUPS_MAX;
        let ready = known.is_some() && (no_group || self.driver.core(0).room(group) > 0);
        if !ready && fault.is_none() && waited_us < ROOM_LIMIT_US {
            return self.parked.push_back(Request { group, since_us, work });
        }
        match work {
            Work::Submit(block, answer) => self.submit(group, block, answer),
            Work::Close(answer) => {
                let (now, tag) = (self.driver.now(), self.tag());
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
        let (now, tag) = (self.driver.now(), self.tag());
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
            Ok(()) => self.waiting[tag] = Some(Waiting::Commit(answer)),
            Err(error) => drop(answer.send(Err(error.into()))),
        }
    }

    fn ask<T>(
        &mut self,
        to: QueryTarget,
        answer: Answer<T>,
        wait: impl FnOnce(Answer<T>) -> Waiting,
        ask: impl FnOnce(&mut ClientCore, Tick, QueryTarget, u64) -> Result<(), SubmitError>,
    ) {
        let (now, tag) = (self.driver.now(), self.tag());
        match ask(self.driver.core(0), now, to, tag as u64) {
            Ok(()) => self.waiting[tag] = Some(wait(answer)),
            Err(error) => drop(answer.send(Err(error.into()))),
        }
    }

    /// A free place among those who wait.
    fn tag(&mut self) -> usize {
        match self.waiting.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.waiting.push(None);
                self.waiting.len() - 1
            }
        }
    }

    fn give_answers(&mut self) {
        for (_, done) in self.driver.take_done() {
            if let Some(Waiting::Commit(answer)) = self.waiting[done.tag as usize].take() {
                let _ = answer.send(done.result.map_err(RequestError::from));
            }
        }
        for (_, reply) in self.driver.take_replies() {
            let result = reply.result.map_err(RequestError::from);
            match self.waiting[reply.tag as usize].take() {
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
