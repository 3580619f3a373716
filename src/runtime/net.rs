//! Sockets over the ring: listeners, connections, one receive and one send in flight on each.
//!
//! ```text
//!   Accepted ─ adopt ─┐
//!   connect ─ Opened ─┴─> receive ─> Received: parse `inbox`, then `receive` again
//!                         send(buffer) ─> Sent: the buffer comes back
//!                         close, or an error ─> Closed (once; afterwards the id is never seen again)
//! ```
//!
//! Received bytes lie in a slab (`BytesMut`) of the connection; frames taken off it share its
//! memory. The slab starts small and grows with what arrives, so that idle connections cost little.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bytes::{BufMut, BytesMut};
use io_uring::{opcode, types};

use super::ring::{Completion, Ring, Token};
use super::scrape::NetFigures;

const ACCEPT: u8 = 1;
const CONNECT: u8 = 2;
const RECV: u8 = 3;
const SEND: u8 = 4;

/// A new connection's receive slab.
const SLAB_BYTES_MIN: usize = 4 << 10;
/// And what it grows to when full receives say that more is waiting.
const SLAB_BYTES_MAX: usize = 512 << 10;

/// Why a connection ended whose last bytes are no whole frame.
pub const CUT_SHORT: &str = "closed by the other side in the middle of a frame";

/// Names a connection for as long as it lives, and nothing afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    /// Both halves in one number, for layers that know no sockets.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_u64(raw: u64) -> Self {
        Self { index: raw as u32, generation: (raw >> 32) as u32 }
    }

    /// A small number for tables beside the connections; reused after `Closed`.
    pub fn slot(self) -> usize {
        self.index as usize
    }
}

/// What happened on the network.
#[derive(Debug)]
pub enum NetEvent {
    /// A listener has a new connection: adopt it here or hand it to another shard.
    Accepted { listener: usize, socket: OwnedFd },
    /// `connect` succeeded.
    Opened(ConnId),
    /// New bytes are in the inbox.
    Received(ConnId),
    /// The send is finished, its buffer empty and free for the next.
    Sent(ConnId, Vec<u8>),
    /// The connection is gone; why.
    Closed(ConnId, String),
}

struct Conn {
    fd: OwnedFd,
    inbox: BytesMut,
    slab_bytes: usize,
    receiving: bool,
    /// The buffer that the kernel reads from, and how much of it is sent.
    sending: Option<(Vec<u8>, usize)>,
    connecting: Option<Box<SockAddr>>,
    closing: Option<String>,
}

struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

/// All sockets of one ring.
#[derive(Default)]
pub struct Net {
    slots: Vec<Slot>,
    free: Vec<u32>,
    listeners: Vec<OwnedFd>,
    /// Listeners whose accept ended with an error (too many open files): tried again later.
    paused: Vec<usize>,
    /// Closed and let go of by the kernel: reported with the next completions.
    closed: Vec<(ConnId, String)>,
    received_bytes: u64,
    sent_bytes: u64,
}

impl Net {
    /// Accepts on a bound, listening socket from now on. Returns its number.
    pub fn listen(&mut self, ring: &mut Ring, socket: OwnedFd) -> usize {
        self.listeners.push(socket);
        let listener = self.listeners.len() - 1;
        self.accept(ring, listener);
        listener
    }

    fn accept(&mut self, ring: &mut Ring, listener: usize) {
        let fd = types::Fd(self.listeners[listener].as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        let token = Token { kind: ACCEPT, generation: 0, index: listener as u32 };
        // SAFETY: the operation points to no memory.
        unsafe { ring.push(entry, token) };
    }

    /// Takes over a connected socket. Nothing is received before [`Net::receive`].
    pub fn adopt(&mut self, socket: OwnedFd) -> ConnId {
        set_options(socket.as_raw_fd());
        self.insert(socket)
    }

    fn insert(&mut self, fd: OwnedFd) -> ConnId {
        let conn = Conn {
            fd,
            inbox: BytesMut::new(),
            slab_bytes: SLAB_BYTES_MIN,
            receiving: false,
            sending: None,
            connecting: None,
            closing: None,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, conn: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.conn = Some(conn);
        ConnId { index, generation: slot.generation }
    }

    /// Opens a connection; `Opened` or `Closed` follows.
    pub fn connect(&mut self, ring: &mut Ring, address: SocketAddr) -> io::Result<ConnId> {
        let fd = stream_socket(&address)?;
        set_options(fd.as_raw_fd());
        let id = self.insert(fd);
        let conn = self.conn_mut(id).expect("just made");
        let raw = conn.connecting.insert(Box::new(SockAddr::new(&address)));
        let entry =
            opcode::Connect::new(types::Fd(conn.fd.as_raw_fd()), raw.as_ptr(), raw.len()).build();
        // SAFETY: the address is boxed and stays in the slot until this operation's completion.
        unsafe { ring.push(entry, token(CONNECT, id)) };
        Ok(id)
    }

    /// The received, not yet consumed bytes. `None` once the connection is closing.
    ///
    /// # Panics
    /// While a receive is in flight: the kernel may be writing behind these bytes.
    pub fn inbox(&mut self, id: ConnId) -> Option<&mut BytesMut> {
        let conn = self.conn_mut(id)?;
        assert!(!conn.receiving, "the inbox belongs to the kernel while it receives");
        if conn.closing.is_some() { None } else { Some(&mut conn.inbox) }
    }

    /// Starts a receive of whatever comes, into a slab with room for at least `room` bytes.
    pub fn receive(&mut self, ring: &mut Ring, id: ConnId, room: usize) {
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.receiving || conn.closing.is_some() {
            return;
        }
        // A slab that is nearly used up gives small receives: start the next one early.
        let least = room.max(conn.slab_bytes / 4);
        if conn.inbox.capacity() - conn.inbox.len() < least {
            conn.inbox.reserve(room.max(conn.slab_bytes));
        }
        let spare = conn.inbox.spare_capacity_mut();
        let size = spare.len().min(SLAB_BYTES_MAX) as u32;
        let pointer = spare.as_mut_ptr().cast();
        Self::push_recv(ring, conn, id, pointer, size);
    }

    /// Starts a receive of at most `count` bytes: for a handshake, after which the descriptor may
    /// go to another shard with nothing of what follows it read.
    pub fn receive_exact(&mut self, ring: &mut Ring, id: ConnId, count: usize) {
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.receiving || conn.closing.is_some() {
            return;
        }
        conn.inbox.reserve(count);
        let pointer = conn.inbox.spare_capacity_mut().as_mut_ptr().cast();
        Self::push_recv(ring, conn, id, pointer, count as u32);
    }

    fn push_recv(ring: &mut Ring, conn: &mut Conn, id: ConnId, pointer: *mut u8, size: u32) {
        conn.receiving = true;
        let entry = opcode::Recv::new(types::Fd(conn.fd.as_raw_fd()), pointer, size).build();
        // SAFETY: the spare capacity of the inbox is at least `size` long; the inbox is neither
        // touched nor dropped while `receiving` is set (see `inbox` and `finish_close`).
        unsafe { ring.push(entry, token(RECV, id)) };
    }

    /// True when a send may be given: the connection is open and none is in flight.
    pub fn can_send(&self, id: ConnId) -> bool {
        self.conn(id).is_some_and(|conn| {
            conn.sending.is_none() && conn.closing.is_none() && conn.connecting.is_none()
        })
    }

    /// Sends all of `buffer`; `Sent` brings it back. One at a time: see [`Net::can_send`].
    pub fn send(&mut self, ring: &mut Ring, id: ConnId, buffer: Vec<u8>) {
        let Some(conn) = self.conn_mut(id) else { return };
        assert!(conn.sending.is_none(), "one send at a time on a connection");
        if conn.closing.is_some() {
            return;
        }
        conn.sending = Some((buffer, 0));
        Self::push_send(ring, conn, id);
    }

    fn push_send(ring: &mut Ring, conn: &mut Conn, id: ConnId) {
        let fd = types::Fd(conn.fd.as_raw_fd());
        let (buffer, sent) = conn.sending.as_ref().expect("the caller has set it");
        let rest = &buffer[*sent..];
        let entry = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        // SAFETY: the buffer stays in the slot, untouched, until this operation's completion.
        unsafe { ring.push(entry, token(SEND, id)) };
    }

    /// Closes a connection, whatever is in flight on it. `Closed` follows, with this reason.
    pub fn close(&mut self, id: ConnId, reason: &str) {
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.closing.is_some() {
            return;
        }
        conn.closing = Some(reason.to_owned());
        // SAFETY: no pointers; makes operations in flight complete. On a socket that is not
        // connected it fails, and then none is in flight but a connect, which ends by itself.
        unsafe { libc::shutdown(conn.fd.as_raw_fd(), libc::SHUT_RDWR) };
        self.finish_close(id);
    }

    /// Takes the socket out again, for another shard. Only with nothing in flight.
    pub fn release(&mut self, id: ConnId) -> Option<OwnedFd> {
        let conn = self.conn_mut(id)?;
        assert!(!conn.receiving && conn.sending.is_none(), "operations are in flight");
        let conn = self.remove(id)?;
        self.free.push(id.index);
        Some(conn.fd)
    }

    /// True when a close waits to be reported.
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// True when a send is in flight.
    pub fn is_sending(&self) -> bool {
        let mut conns = self.slots.iter().filter_map(|slot| slot.conn.as_ref());
        conns.any(|conn| conn.sending.is_some() && conn.closing.is_none())
    }

    /// Connections that are open, or of whose end nobody was told yet.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// For metrics.
    pub fn figures(&self) -> NetFigures {
        let (received_bytes, sent_bytes) = (self.received_bytes, self.sent_bytes);
        NetFigures { received_bytes, sent_bytes, connections: self.count() as u32 }
    }

    /// Turns a completion into events. `false` if it belongs to somebody else.
    pub fn complete(
        &mut self,
        ring: &mut Ring,
        completion: &Completion,
        events: &mut Vec<NetEvent>,
    ) -> bool {
        let Token { kind, generation, index } = completion.token;
        let id = ConnId { index, generation };
        let bytes = completion.result.max(0) as u64;
        match kind {
            ACCEPT => self.accepted(ring, completion, events),
            CONNECT => self.connected(id, completion, events),
            RECV => {
                self.received_bytes += bytes;
                self.received(id, completion, events);
            }
            SEND => {
                self.sent_bytes += bytes;
                self.sent(ring, id, completion, events);
            }
            _ => return false,
        }
        true
    }

    /// Reports connections that have closed, before everything else that has happened. Only now
    /// their slots are free: a new connection never takes a slot of which somebody still thinks
    /// that the old one has it.
    pub fn drain_closed(&mut self, events: &mut Vec<NetEvent>) {
        let closed = self.closed.drain(..).map(|(id, why)| {
            self.free.push(id.index);
            NetEvent::Closed(id, why)
        });
        events.splice(0..0, closed);
    }

    fn accepted(&mut self, ring: &mut Ring, done: &Completion, events: &mut Vec<NetEvent>) {
        let listener = done.token.index as usize;
        if done.result >= 0 {
            // SAFETY: the kernel has just given this descriptor to us alone.
            let socket = unsafe { OwnedFd::from_raw_fd(done.result) };
            events.push(NetEvent::Accepted { listener, socket });
        }
        if !done.more && done.result >= 0 {
            self.accept(ring, listener);
        } else if !done.more {
            self.paused.push(listener);
        }
    }

    /// True while a listener rests after an error.
    pub fn has_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// Accepts again on listeners that rest.
    pub fn resume_accepts(&mut self, ring: &mut Ring) {
        for listener in std::mem::take(&mut self.paused) {
            self.accept(ring, listener);
        }
    }

    /// Closes everything; `count` reaches 0 when the kernel has let go.
    pub fn close_all(&mut self, reason: &str) {
        for index in 0..self.slots.len() as u32 {
            let generation = self.slots[index as usize].generation;
            self.close(ConnId { index, generation }, reason);
        }
    }

    fn connected(&mut self, id: ConnId, done: &Completion, events: &mut Vec<NetEvent>) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.connecting = None;
        match done.count() {
            Ok(_) if conn.closing.is_none() => events.push(NetEvent::Opened(id)),
            Ok(_) => {}
            Err(error) => fail(conn, format!("cannot connect: {error}")),
        }
        self.finish_close(id);
    }

    fn received(&mut self, id: ConnId, done: &Completion, events: &mut Vec<NetEvent>) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.receiving = false;
        match done.count() {
            Ok(0) if conn.inbox.is_empty() => fail(conn, "closed by the other side".into()),
            Ok(0) => fail(conn, CUT_SHORT.into()),
            Ok(count) => {
                // SAFETY: the kernel has initialised `count` bytes of the spare capacity, which
                // nobody has touched since the receive was started.
                unsafe { conn.inbox.advance_mut(count) };
                if count >= conn.slab_bytes / 2 {
                    conn.slab_bytes = (conn.slab_bytes * 2).min(SLAB_BYTES_MAX);
                }
                if conn.closing.is_none() {
                    events.push(NetEvent::Received(id));
                }
            }
            Err(error) => fail(conn, format!("cannot receive: {error}")),
        }
        self.finish_close(id);
    }

    fn sent(&mut self, ring: &mut Ring, id: ConnId, done: &Completion, events: &mut Vec<NetEvent>) {
        let Some(conn) = self.conn_mut(id) else { return };
        let Some((mut buffer, sent)) = conn.sending.take() else { return };
        match done.count() {
            Ok(count) if sent + count < buffer.len() && conn.closing.is_none() && count > 0 => {
                conn.sending = Some((buffer, sent + count));
                return Self::push_send(ring, conn, id);
            }
            Ok(_) => {
                buffer.clear();
                if conn.closing.is_none() {
                    events.push(NetEvent::Sent(id, buffer));
                }
            }
            Err(error) => fail(conn, format!("cannot send: {error}")),
        }
        self.finish_close(id);
    }

    /// Frees a closing connection once the kernel has let go of its buffers.
    fn finish_close(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let busy = conn.receiving || conn.sending.is_some() || conn.connecting.is_some();
        if conn.closing.is_none() || busy {
            return;
        }
        let conn = self.remove(id).expect("present above");
        self.closed.push((id, conn.closing.expect("set above")));
    }

    fn remove(&mut self, id: ConnId) -> Option<Conn> {
        self.conn(id)?;
        let slot = &mut self.slots[id.index as usize];
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        slot.conn.take()
    }

    fn conn(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation { slot.conn.as_ref() } else { None }
    }

    fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.conn.as_mut() } else { None }
    }
}

impl Drop for Net {
    /// After a panic operations may be in flight: what the kernel still reads or writes is leaked.
    fn drop(&mut self) {
        for conn in self.slots.iter_mut().filter_map(|slot| slot.conn.take()) {
            if conn.receiving || conn.sending.is_some() || conn.connecting.is_some() {
                std::mem::forget(conn);
            }
        }
    }
}

fn token(kind: u8, id: ConnId) -> Token {
    Token { kind, generation: id.generation, index: id.index }
}

/// Marks a connection as failed and makes the other direction's operation end as well.
fn fail(conn: &mut Conn, reason: String) {
    if conn.closing.is_none() {
        conn.closing = Some(reason);
        // SAFETY: no pointers.
        unsafe { libc::shutdown(conn.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// What was sent and not acknowledged for so long ends the connection: a machine that lost power
/// says nothing, and TCP alone would wait for minutes.
const USER_TIMEOUT_MS: libc::c_int = 5_000;

fn set_options(fd: RawFd) {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
    // And silence is asked about, first after 5 s.
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1);
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int that lives across the call. A failure costs latency, not
    // correctness.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
}

fn stream_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let raw = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A socket address as the kernel reads it.
enum SockAddr {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SockAddr {
    fn new(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        match self {
            Self::V4(raw) => (&raw const *raw).cast(),
            Self::V6(raw) => (&raw const *raw).cast(),
        }
    }

    fn len(&self) -> libc::socklen_t {
        let size = match self {
            Self::V4(_) => size_of::<libc::sockaddr_in>(),
            Self::V6(_) => size_of::<libc::sockaddr_in6>(),
        };
        size as libc::socklen_t
    }
}
