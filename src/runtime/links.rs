//! Who is at the other end of each connection, from the first byte to the last.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tracing::{info, warn};

use super::lookup::Lookup;
use super::net::{CUT_SHORT, ConnId, Net};
use super::reactor::Reactor;
use super::ring::Ring;
use super::routing::{Arrival, Routes};
use crate::ids::{Incarnation, NodeId, Tick};
use crate::machine::StateMachine;
use crate::membership::NodeAddress;
use crate::shard::LinkChange;
use crate::wire::frame::Frame;
use crate::wire::hello::{HELLO_BYTES, Hello, HelloReply, Refusal, Role};

/// A connection that has not completed its handshake after this is closed.
const GREETING_US: u64 = 3_000_000;
/// A connection that stops in the middle of a frame is closed after this.
const UNFINISHED_US: u64 = 5_000_000;
/// Connections that may be without a handshake beside all those that are welcome.
const GREETINGS_MAX: usize = 1024;
const DIAL_AGAIN_MIN_US: u64 = 50_000;
const DIAL_AGAIN_MAX_US: u64 = 1_000_000;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Link {
    None,
    /// Accepted; has to say hello by then.
    Greeting {
        role: Role,
        until: Tick,
    },
    /// We connect, or have said hello.
    Dialling {
        node: NodeId,
        until: Tick,
    },
    /// We send to this peer.
    PeerOut {
        node: NodeId,
    },
    /// This peer sends to us.
    PeerIn {
        node: NodeId,
    },
    Client,
    /// Closed as soon as it has been told why.
    Refused,
}

/// This node, as handshakes show it.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub cluster: u128,
    pub disk: u128,
    pub config_hash: u64,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub shard: u32,
    pub shards: u32,
    pub groups: u32,
    /// Of the voters of the groups' first configuration; 0 if this node joined later.
    pub first: u64,
}

/// Where another node listens, as the configuration file says it.
#[derive(Clone, Debug)]
pub struct Place {
    pub node: NodeId,
    /// `host:port`.
    pub name: String,
    /// What that meant at the start.
    pub address: SocketAddr,
}

struct Dial {
    node: NodeId,
    name: String,
    /// The file says where it is; what the log says does not count.
    listed: bool,
    /// `None`: not found yet.
    address: Option<SocketAddr>,
    /// `None`: the name is an address.
    lookup: Option<Lookup>,
    conn: Option<ConnId>,
    up: bool,
    next_try: Tick,
    pause_us: u64,
    /// The last failure that was logged, so that it is not logged each second.
    logged: String,
}

impl Dial {
    fn listed(place: Place) -> Self {
        let address = Some(place.address);
        Self { listed: true, address, ..Self::new(place.node, &place.name) }
    }

    fn new(node: NodeId, name: &str) -> Self {
        let address = name.parse().ok();
        Self {
            node,
            name: name.into(),
            listed: false,
            address,
            lookup: address.is_none().then(|| Lookup::new(name)),
            conn: None,
            up: false,
            next_try: Tick::ZERO,
            pause_us: DIAL_AGAIN_MIN_US,
            logged: String::new(),
        }
    }

    /// Takes in what its name means by now; the line to log about it.
    fn note_lookup(&mut self) -> Option<String> {
        match self.lookup.as_mut()?.poll()? {
            Ok(address) => self.address = Some(address),
            Err(error) => {
                let reason = format!("its address {} is not found: {error}", self.name);
                let news = self.logged != reason;
                self.logged.clone_from(&reason);
                return news.then_some(reason);
            }
        }
        None
    }

    /// Its turn has come. A name is asked for again when what it meant has led nowhere.
    fn try_now(&mut self, now: Tick) -> Option<SocketAddr> {
        let again = self.address.is_none() || self.pause_us > DIAL_AGAIN_MIN_US;
        if let Some(lookup) = self.lookup.as_mut().filter(|_| again) {
            lookup.ask(now);
        }
        self.next_try = now.plus(self.pause_us);
        self.pause_us = (self.pause_us * 2).min(DIAL_AGAIN_MAX_US);
        self.address
    }
}

/// One slot of the table of links.
#[derive(Clone)]
struct LinkSlot {
    conn: ConnId,
    link: Link,
    /// We do not read from it: it does not read its answers.
    paused: bool,
    /// The rest of a frame has to come by then.
    unfinished: Option<Tick>,
}

/// All links of a shard.
pub struct Links {
    identity: Identity,
    by_slot: Vec<LinkSlot>,
    dials: Vec<Dial>,
    /// Listening sockets (shard 0 only), with the role that is welcome there.
    sockets: Vec<(OwnedFd, Role)>,
    roles: Vec<Role>,
    routes: Arc<Routes>,
    connections_max: usize,
    draining: bool,
    greetings: usize,
    unfinished: usize,
}

impl Links {
    pub fn new(
        identity: Identity,
        peers: Vec<Place>,
        sockets: Vec<(OwnedFd, Role)>,
        routes: Arc<Routes>,
        connections_max: usize,
    ) -> Self {
        Self {
            identity,
            by_slot: Vec::new(),
            dials: peers.into_iter().map(Dial::listed).collect(),
            roles: sockets.iter().map(|(_, role)| *role).collect(),
            sockets,
            routes,
            connections_max,
            draining: false,
            greetings: 0,
            unfinished: 0,
        }
    }

    /// Number of the shard whose links these are.
    pub fn shard(&self) -> u32 {
        self.identity.shard
    }

    /// Begins to accept.
    pub fn listen(&mut self, ring: &mut Ring, net: &mut Net) {
        for (socket, _) in self.sockets.drain(..) {
            net.listen(ring, socket);
        }
    }

    pub fn get(&self, conn: ConnId) -> &Link {
        match self.by_slot.get(conn.slot()) {
            Some(slot) if slot.conn == conn => &slot.link,
            _ => &Link::None,
        }
    }

    pub fn set(&mut self, conn: ConnId, link: Link) {
        if self.by_slot.len() <= conn.slot() {
            let blank = LinkSlot {
                conn: ConnId::default(),
                link: Link::None,
                paused: false,
                unfinished: None,
            };
            self.by_slot.resize(conn.slot() + 1, blank);
        }
        let waits = |link: &Link| matches!(link, Link::Greeting { .. } | Link::Dialling { .. });
        let slot = &mut self.by_slot[conn.slot()];
        self.greetings -= usize::from(waits(&slot.link));
        self.greetings += usize::from(waits(&link));
        self.unfinished -= usize::from(slot.unfinished.is_some());
        *slot = LinkSlot { conn, link, paused: false, unfinished: None };
    }

    /// Forgets a connection that is gone. Its slot may have a new owner, who is left alone.
    pub fn clear(&mut self, conn: ConnId) {
        if self.by_slot.get(conn.slot()).is_some_and(|slot| slot.conn == conn) {
            self.set(conn, Link::None);
        }
    }

    /// Stops reading from a client that does not read its answers.
    pub fn pause(&mut self, conn: ConnId) {
        self.by_slot[conn.slot()].paused = true;
    }

    /// Whether reading had stopped; it has not any more.
    pub fn resume(&mut self, conn: ConnId) -> bool {
        std::mem::take(&mut self.by_slot[conn.slot()].paused)
    }

    /// Whether what has arrived by now ends in the middle of a frame. It may do so for a while.
    pub fn set_unfinished(&mut self, now: Tick, conn: ConnId, unfinished: bool) {
        let slot = &mut self.by_slot[conn.slot()];
        self.unfinished -= usize::from(slot.unfinished.is_some());
        self.unfinished += usize::from(unfinished);
        slot.unfinished = unfinished.then(|| now.plus(UNFINISHED_US));
    }

    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True when a timer must look after links.
    pub fn has_chores(&self) -> bool {
        self.greetings > 0 || self.unfinished > 0 || self.dials.iter().any(|dial| !dial.up)
    }

    /// Peers of this shard, whether linked or not.
    pub fn peer_count(&self) -> usize {
        self.dials.len()
    }

    /// The `i`-th peer and the connection on which it is sent to, while there is one.
    pub fn peer_up(&self, i: usize) -> Option<(NodeId, ConnId)> {
        let dial = &self.dials[i];
        if dial.up { dial.conn.map(|conn| (dial.node, conn)) } else { None }
    }

    pub fn describe(&self, conn: ConnId) -> String {
        match self.get(conn) {
            Link::PeerIn { node } | Link::PeerOut { node } | Link::Dialling { node, .. } => {
                format!("node {node}")
            }
            Link::Client => "client".into(),
            Link::Greeting { role: Role::Peer, .. } => "stranger on the peer port".into(),
            Link::Greeting { role: Role::Client, .. } => "stranger on the client port".into(),
            Link::Refused | Link::None => "stranger".into(),
        }
    }

    fn dial_of(&mut self, conn: ConnId) -> Option<&mut Dial> {
        self.dials.iter_mut().find(|dial| dial.conn == Some(conn))
    }

    fn hello_to(&self, node: NodeId) -> Hello {
        Hello {
            role: Role::Peer,
            cluster: self.identity.cluster,
            disk: self.identity.disk,
            config: self.identity.config_hash,
            node: Some(self.identity.node),
            incarnation: self.identity.incarnation,
            to: Some(node),
            shard: self.identity.shard,
            first: self.identity.first,
        }
    }

    fn reply(&self, refusal: Option<Refusal>) -> HelloReply {
        let Identity {
            cluster, disk, config_hash, node, incarnation, shard, shards, groups, ..
        } = self.identity;
        let config = config_hash;
        HelloReply { refusal, cluster, disk, config, node, incarnation, shard, shards, groups }
    }

    /// Whether whoever said this hello on a port for `role` is welcome.
    fn check(&self, role: Role, hello: &Hello, connections: usize) -> Result<(), Refusal> {
        let ours = &self.identity;
        let any_cluster = hello.role == Role::Client && hello.cluster == 0;
        if hello.role != role {
            return Err(Refusal::Port);
        }
        if hello.cluster != ours.cluster && !any_cluster {
            return Err(Refusal::Cluster);
        }
        if hello.to.is_some_and(|to| to != ours.node) {
            return Err(Refusal::Node);
        }
        if hello.shard >= ours.shards {
            return Err(Refusal::Shard);
        }
        if self.draining {
            return Err(Refusal::Shutdown);
        }
        match hello.node {
            Some(node) => self.check_peer(node, hello),
            None if connections > self.connections_max => Err(Refusal::Connections),
            None => Ok(()),
        }
    }

    fn check_peer(&self, node: NodeId, hello: &Hello) -> Result<(), Refusal> {
        if node == self.identity.node {
            return Err(Refusal::Node);
        }
        if hello.config != self.identity.config_hash {
            return Err(Refusal::Config);
        }
        // Two first configurations would make two clusters of one.
        let firsts = [hello.first, self.identity.first];
        if firsts[0] != firsts[1] && !firsts.contains(&0) {
            return Err(Refusal::Config);
        }
        self.routes.doorman().check(node, hello.disk)
    }
}

impl<M: StateMachine> Reactor<M> {
    pub(super) fn accepted(&mut self, now: Tick, listener: usize, socket: OwnedFd) {
        if self.net.count() >= self.links.connections_max + GREETINGS_MAX {
            // Dropped without a word on it: descriptors are kept for the log.
            if self.lines.links.may_log(now) {
                warn!("connection dropped: limits.client_connections is reached");
            }
            return;
        }
        let conn = self.net.adopt(socket);
        let role = self.links.roles[listener];
        self.links.set(conn, Link::Greeting { role, until: now.plus(GREETING_US) });
        self.net.receive_exact(&mut self.ring, conn, HELLO_BYTES);
    }

    /// Bytes of a handshake: exactly its size is received, never more.
    pub(super) fn greeting_bytes(&mut self, now: Tick, conn: ConnId) {
        let Some(inbox) = self.net.inbox(conn) else { return };
        let have = inbox.len();
        match Frame::take(inbox) {
            Ok(None) if have < HELLO_BYTES => {
                self.net.receive_exact(&mut self.ring, conn, HELLO_BYTES - have);
            }
            Ok(Some(frame)) => match self.links.get(conn).clone() {
                Link::Greeting { role, .. } => match Hello::read(&frame) {
                    Ok(hello) => self.greeted(now, conn, role, hello),
                    Err(error) => self.complain(conn, &error.to_string()),
                },
                Link::Dialling { node, .. } => self.answered(now, conn, node, &frame),
                _ => {}
            },
            Ok(None) => self.complain(conn, "not a Ringraft handshake: wrong size"),
            Err(error) => self.complain(conn, &format!("not a Ringraft handshake: {error}")),
        }
    }

    fn greeted(&mut self, now: Tick, conn: ConnId, role: Role, hello: Hello) {
        if let Err(refusal) = self.links.check(role, &hello, self.net.count()) {
            if self.lines.links.may_log(now) {
                let link = self.links.describe(conn);
                warn!(%link, node = hello.node.map_or(0, |n| n.0), reason = %refusal, "refused");
            }
            return self.send_reply(conn, Some(refusal), Link::Refused);
        }
        if hello.shard == self.links.identity.shard {
            return self.welcome(conn, &hello);
        }
        let Some(socket) = self.net.release(conn) else { return };
        self.links.set(conn, Link::None);
        let refused = self.links.routes.clone().hand_over(Arrival { socket, hello }).is_err();
        if refused && self.lines.links.may_log(now) {
            warn!(shard = hello.shard, "connection dropped: the shard's queue is full");
        }
    }

    /// A connection that shard 0 accepted for this one.
    pub(super) fn welcome_arrival(&mut self, arrival: Arrival) {
        let conn = self.net.adopt(arrival.socket);
        self.links.set(conn, Link::None);
        self.welcome(conn, &arrival.hello);
    }

    fn welcome(&mut self, conn: ConnId, hello: &Hello) {
        let link = match hello.node {
            Some(node) => Link::PeerIn { node },
            None => {
                self.shard.client_opened(conn.to_u64());
                Link::Client
            }
        };
        self.send_reply(conn, None, link);
        self.net.receive(&mut self.ring, conn, 0);
    }

    fn send_reply(&mut self, conn: ConnId, refusal: Option<Refusal>, link: Link) {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        self.links.reply(refusal).write(&mut buffer);
        self.links.set(conn, link);
        self.net.send(&mut self.ring, conn, buffer);
    }

    /// Connects to peers that are not connected and whose turn has come.
    pub(super) fn dial(&mut self, now: Tick) {
        for i in 0..self.links.dials.len() {
            let dial = &mut self.links.dials[i];
            let (node, trouble) = (dial.node, dial.note_lookup());
            if dial.conn.is_some() || now < dial.next_try {
                continue;
            }
            let address = dial.try_now(now);
            if let Some(reason) = trouble.filter(|_| self.lines.links.may_log(now)) {
                warn!(node = node.0, reason, "no link to peer");
            }
            let Some(address) = address else { continue };
            if let Ok(conn) = self.net.connect(&mut self.ring, address) {
                self.links.dials[i].conn = Some(conn);
                self.links.set(conn, Link::Dialling { node, until: now.plus(GREETING_US) });
            }
        }
    }

    /// A dialled connection stands: say hello.
    pub(super) fn opened(&mut self, conn: ConnId) {
        let Link::Dialling { node, .. } = *self.links.get(conn) else { return };
        let mut buffer = self.buffers.pop().unwrap_or_default();
        self.links.hello_to(node).write(&mut buffer);
        self.net.send(&mut self.ring, conn, buffer);
        self.net.receive_exact(&mut self.ring, conn, HELLO_BYTES);
    }

    fn answered(&mut self, now: Tick, conn: ConnId, node: NodeId, frame: &Frame) {
        let reply = match HelloReply::read(frame) {
            Ok(reply) => reply,
            Err(error) => return self.complain(conn, &error.to_string()),
        };
        let ours = &self.links.identity;
        let refusal = reply.refusal.or_else(|| {
            if reply.node != node {
                Some(Refusal::Node)
            } else if reply.cluster != ours.cluster {
                Some(Refusal::Cluster)
            } else if reply.config != ours.config_hash {
                Some(Refusal::Config)
            } else {
                self.links.routes.doorman().check(node, reply.disk).err()
            }
        });
        if let Some(refusal) = refusal {
            return self.net.close(conn, &refusal.to_string());
        }
        self.links.set(conn, Link::PeerOut { node });
        if let Some(dial) = self.links.dial_of(conn) {
            dial.up = true;
            dial.pause_us = DIAL_AGAIN_MIN_US;
            dial.logged.clear();
        }
        if self.lines.links.may_log(now) {
            info!(node = node.0, incarnation = reply.incarnation.0, "peer connected");
        }
        self.shard.peer_connected(now, node, reply.incarnation);
        self.net.receive(&mut self.ring, conn, 0);
    }

    pub(super) fn closed(&mut self, now: Tick, conn: ConnId, reason: &str) {
        let is_ours = matches!(self.links.get(conn), Link::Dialling { .. } | Link::PeerOut { .. });
        if reason == CUT_SHORT && !is_ours && self.lines.links.may_log(now) {
            warn!(link = %self.links.describe(conn), reason, "connection closed");
        }
        // By the whole id: the slot may belong to the next connection already.
        self.shard.client_closed(conn.to_u64());
        let draining = self.links.draining;
        if let Some(dial) = self.links.dial_of(conn) {
            let (node, was_up) = (dial.node, dial.up);
            dial.conn = None;
            dial.up = false;
            dial.next_try = now.plus(dial.pause_us);
            let news = dial.logged != reason && !draining;
            dial.logged = reason.to_owned();
            if news && self.lines.links.may_log(now) {
                warn!(node = node.0, reason, "no link to peer");
            }
            if was_up {
                self.shard.peer_disconnected(now, node);
            }
        }
        self.links.clear(conn);
    }

    /// The groups have taken nodes in, or let them go.
    pub(super) fn change_links(&mut self) {
        for change in std::mem::take(&mut self.out.links) {
            match change {
                LinkChange::Open { node, address } => self.open_link(node, address.as_ref()),
                LinkChange::Close { node } => {
                    if self.lines.links.may_log(self.ring.now()) {
                        info!(node = node.0, "no group here needs this node any more");
                    }
                    let at = self.links.dials.iter().position(|dial| dial.node == node);
                    let Some(dial) = at.map(|at| self.links.dials.swap_remove(at)) else {
                        continue;
                    };
                    if let Some(conn) = dial.conn {
                        self.net.close(conn, "the node takes part in nothing here any more");
                    }
                    if dial.up {
                        self.shard.peer_disconnected(self.ring.now(), node);
                    }
                }
            }
        }
    }

    /// A node that the configuration file names keeps the address it has there.
    fn open_link(&mut self, node: NodeId, address: Option<&NodeAddress>) {
        self.links.routes.doorman().admit(node);
        let known = self.links.dials.iter_mut().find(|dial| dial.node == node);
        match (known, address) {
            (Some(dial), Some(address)) if !dial.listed && dial.name != address.peer => {
                // It has moved. A connection that stands is left to end by itself.
                let Dial { name, address, lookup, .. } = Dial::new(node, &address.peer);
                (dial.name, dial.address, dial.lookup) = (name, address, lookup);
            }
            (Some(_), _) => {}
            (None, Some(address)) => self.links.dials.push(Dial::new(node, &address.peer)),
            (None, None) if self.lines.links.may_log(self.ring.now()) => {
                warn!(node = node.0, "nothing says where this node is: add it to cluster.nodes")
            }
            (None, None) => {}
        }
    }

    /// Tells the shard that a client is gone.
    pub(super) fn forget_link(&mut self, conn: ConnId) {
        if matches!(self.links.get(conn), Link::Client) {
            self.shard.client_closed(conn.to_u64());
        }
    }

    /// Closes connections whose handshake, or the rest of a frame, does not come.
    pub(super) fn close_silent(&mut self, now: Tick) {
        if self.links.greetings == 0 && self.links.unfinished == 0 {
            return;
        }
        let reason = |slot: &LinkSlot| match slot.link {
            Link::Greeting { until, .. } | Link::Dialling { until, .. } if until <= now => {
                Some("no handshake within 3 s")
            }
            _ if slot.unfinished.is_some_and(|until| until <= now) => {
                Some("half a frame, then nothing for 5 s")
            }
            _ => None,
        };
        let late = |slot: &LinkSlot| Some((slot.conn, reason(slot)?));
        let silent: Vec<_> = self.links.by_slot.iter().filter_map(late).collect();
        for (conn, reason) in silent {
            self.complain(conn, reason);
        }
    }
}
