//! Sockets for [`ClientCore`]: any number of sessions over one ring, on the calling thread.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Instant;

use tracing::debug;

use super::{ClientConfig, ClientCore, ClientOutput, Done, LinkId, QueryDone};
use crate::ids::Tick;
use crate::runtime::net::{ConnId, Net, NetEvent};
use crate::runtime::ring::{Completion, Ring, Waker};
use crate::wire::frame::Frame;

/// Submission queue of a client's ring.
const RING_ENTRIES: u32 = 256;

/// One session and its connections.
struct Seat {
    core: ClientCore,
    /// By the link's slot.
    links: Vec<Option<(LinkId, ConnId)>>,
}

/// Sessions with their sockets. Use: `core` to submit, then `turn`, `take_done`, `wait`; again.
pub struct Driver {
    ring: Ring,
    net: Net,
    seats: Vec<Seat>,
    /// By the connection's slot: which seat and link it is.
    owners: Vec<Option<(usize, LinkId, ConnId)>>,
    out: ClientOutput,
    completions: Vec<Completion>,
    events: Vec<NetEvent>,
    done: Vec<(usize, Done)>,
    replies: Vec<(usize, QueryDone)>,
}

impl Driver {
    /// One session for each configuration. Other threads wake [`Driver::wait`] by `waker`.
    pub fn new(configs: Vec<ClientConfig>, waker: Waker) -> io::Result<Self> {
        let ring = Ring::new(RING_ENTRIES, Instant::now(), waker)?;
        let now = ring.now();
        let seat = |config| Seat { core: ClientCore::new(config, now), links: Vec::new() };
        Ok(Self {
            seats: configs.into_iter().map(seat).collect(),
            ring,
            net: Net::default(),
            owners: Vec::new(),
            out: ClientOutput::default(),
            completions: Vec::new(),
            events: Vec::new(),
            done: Vec::new(),
            replies: Vec::new(),
        })
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.seats.len()
    }

    /// A session, to submit to and to ask.
    pub fn core(&mut self, seat: usize) -> &mut ClientCore {
        &mut self.seats[seat].core
    }

    /// Microseconds since the driver was made.
    pub fn now(&self) -> Tick {
        self.ring.now()
    }

    /// Finished blocks, with their session's number, since the last call.
    pub fn take_done(&mut self) -> impl Iterator<Item = (usize, Done)> + '_ {
        self.done.drain(..)
    }

    /// Answered questions, with their session's number, since the last call.
    pub fn take_replies(&mut self) -> impl Iterator<Item = (usize, QueryDone)> + '_ {
        self.replies.drain(..)
    }

    /// Takes in what has arrived and starts what the sessions want done. Does not wait.
    pub fn turn(&mut self) -> io::Result<()> {
        let now = self.ring.now();
        self.collect(now);
        for seat in 0..self.seats.len() {
            self.poll(now, seat);
        }
        self.ring.submit()
    }

    /// Sleeps until something arrives, a session's deadline, or `until`.
    pub fn wait(&mut self, until: Tick) -> io::Result<()> {
        if !self.done.is_empty() || !self.replies.is_empty() {
            return Ok(());
        }
        let deadline = self.seats.iter().map(|seat| seat.core.deadline()).min();
        self.ring.wait(until.min(deadline.unwrap_or(until)))
    }

    fn collect(&mut self, now: Tick) {
        self.ring.reap(&mut self.completions);
        for completion in self.completions.drain(..) {
            self.net.complete(&mut self.ring, &completion, &mut self.events);
        }
        self.net.drain_closed(&mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.on_event(now, event);
        }
        self.events = events;
    }

    fn on_event(&mut self, now: Tick, event: NetEvent) {
        match event {
            NetEvent::Opened(conn) => {
                if let Some((seat, link)) = self.owner(conn) {
                    self.seats[seat].core.connected(now, link);
                    self.net.receive(&mut self.ring, conn, 0);
                }
            }
            NetEvent::Received(conn) => self.received(now, conn),
            NetEvent::Sent(conn, buffer) => {
                if let Some((seat, link)) = self.owner(conn) {
                    self.seats[seat].core.sent(link, buffer);
                }
            }
            NetEvent::Closed(conn, reason) => self.lost(now, conn, &reason),
            NetEvent::Accepted { .. } => {}
        }
    }

    fn owner(&self, conn: ConnId) -> Option<(usize, LinkId)> {
        let (seat, link, owned) = (*self.owners.get(conn.slot())?)?;
        (owned == conn).then_some((seat, link))
    }

    fn received(&mut self, now: Tick, conn: ConnId) {
        let Some((seat, link)) = self.owner(conn) else { return };
        let Some(inbox) = self.net.inbox(conn) else { return };
        loop {
            match Frame::take(inbox) {
                Ok(Some(frame)) => {
                    if let Err(fault) = self.seats[seat].core.frame(now, link, frame) {
                        debug!(%fault, "link given up");
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return self.net.close(conn, &error.to_string()),
            }
        }
        let room = Frame::bytes_needed(inbox).saturating_sub(inbox.len());
        self.net.receive(&mut self.ring, conn, room);
    }

    fn lost(&mut self, now: Tick, conn: ConnId, reason: &str) {
        if let Some((seat, link)) = self.owner(conn) {
            self.forget(seat, link);
            self.seats[seat].core.disconnected(now, link, reason);
        }
    }

    fn forget(&mut self, seat: usize, link: LinkId) -> Option<ConnId> {
        let slot = self.seats[seat].links.get_mut(link.slot())?;
        let (known, conn) = (*slot)?;
        if known != link {
            return None;
        }
        *slot = None;
        // The connection's slot may belong to the next one already.
        if self.owner(conn).is_some() {
            self.owners[conn.slot()] = None;
        }
        Some(conn)
    }

    fn poll(&mut self, now: Tick, seat: usize) {
        let mut out = std::mem::take(&mut self.out);
        self.seats[seat].core.poll(now, &mut out);
        for link in out.close.drain(..) {
            if let Some(conn) = self.forget(seat, link) {
                self.net.close(conn, "given up");
            }
        }
        for (link, address) in out.connect.drain(..) {
            self.connect(now, seat, link, &address);
        }
        for (link, buffer) in out.send.drain(..) {
            self.send(seat, link, buffer);
        }
        self.done.extend(out.done.drain(..).map(|done| (seat, done)));
        self.replies.extend(out.replies.drain(..).map(|reply| (seat, reply)));
        self.out = out;
    }

    fn connect(&mut self, now: Tick, seat: usize, link: LinkId, address: &str) {
        let opened = resolve(address).and_then(|address| self.net.connect(&mut self.ring, address));
        let conn = match opened {
            Ok(conn) => conn,
            Err(error) => {
                let reason = format!("{address}: {error}");
                return self.seats[seat].core.disconnected(now, link, &reason);
            }
        };
        let links = &mut self.seats[seat].links;
        if links.len() <= link.slot() {
            links.resize(link.slot() + 1, None);
        }
        links[link.slot()] = Some((link, conn));
        if self.owners.len() <= conn.slot() {
            self.owners.resize(conn.slot() + 1, None);
        }
        self.owners[conn.slot()] = Some((seat, link, conn));
    }

    fn send(&mut self, seat: usize, link: LinkId, buffer: Vec<u8>) {
        let known = self.seats[seat].links.get(link.slot()).copied().flatten();
        match known {
            Some((owned, conn)) if owned == link && self.net.can_send(conn) => {
                self.net.send(&mut self.ring, conn, buffer);
            }
            _ => self.seats[seat].core.recycle(buffer),
        }
    }
}

impl Drop for Driver {
    /// Lets the kernel finish with every buffer before it is freed.
    fn drop(&mut self) {
        self.net.close_all("the client ends");
        let until = self.ring.now().plus(1_000_000);
        while self.net.count() > 0 && self.ring.now() < until {
            let _ = self.ring.wait(self.ring.now().plus(10_000));
            self.ring.reap(&mut self.completions);
            for completion in self.completions.drain(..) {
                self.net.complete(&mut self.ring, &completion, &mut self.events);
            }
            self.events.clear();
            self.net.drain_closed(&mut self.events);
        }
        if self.net.count() > 0 {
            // The kernel may still write to the buffers of what is left.
            std::mem::forget(std::mem::take(&mut self.net));
        }
    }
}

/// The first address that a name has. Looking it up may block; clients connect rarely.
fn resolve(address: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::other("the name has no address");
    address.to_socket_addrs()?.next().ok_or_else(none)
}
