//! What happened, for people: a ring of small records that become text only when somebody asks.

use std::collections::VecDeque;
use std::fmt::Write;

use crate::ids::{GroupId, Index, NodeId, Term};
use crate::raft::ready::{PossibleLoss, Role, Transition};
use crate::raft::{Body, Message};

/// Records kept when not everything is.
const KEPT: usize = 2048;

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// A message left; `arrives` in the world's microseconds, `None` = lost.
    Sent {
        from: u32,
        to: u32,
        group: GroupId,
        message: Message,
        blocks: u32,
        arrives: Option<u64>,
    },
    Role {
        node: u32,
        transition: Transition,
    },
    Commit {
        node: u32,
        group: GroupId,
        index: Index,
        term: Term,
    },
    Client {
        client: u32,
        to: u32,
        group: GroupId,
        seq: u64,
        note: &'static str,
    },
    Answer {
        client: u32,
        from: u32,
        group: GroupId,
        seq: u64,
        first: Index,
        note: &'static str,
    },
    Node {
        node: u32,
        note: &'static str,
        number: u64,
    },
    /// A node uses the configuration of this index.
    Members {
        node: u32,
        group: GroupId,
        index: Index,
    },
    Loss {
        node: u32,
        loss: PossibleLoss,
    },
    Link {
        from: u32,
        to: u32,
        note: &'static str,
    },
    Fault {
        number: u32,
        kind: &'static str,
        node: u32,
        other: u32,
        note: &'static str,
    },
    World {
        note: &'static str,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Trace {
    records: VecDeque<(u64, What)>,
    /// Keep everything.
    all: bool,
}

impl Trace {
    pub fn new(all: bool) -> Self {
        Self { records: VecDeque::with_capacity(KEPT), all }
    }

    #[inline]
    pub fn note(&mut self, at: u64, what: What) {
        if !self.all && self.records.len() == KEPT {
            self.records.pop_front();
        }
        self.records.push_back((at, what));
    }

    /// The last `count` records as lines; heartbeats only if everything is kept.
    pub fn last(&self, count: usize) -> String {
        let shown = |what: &What| self.all || !is_heartbeat(what);
        let mut picked: Vec<_> =
            self.records.iter().rev().filter(|(_, what)| shown(what)).take(count).collect();
        picked.reverse();
        let mut text = String::new();
        for (at, what) in picked {
            let _ = write!(text, "{:>4}.{:06}  ", at / 1_000_000, at % 1_000_000);
            line(what, *at, &mut text);
            text.push('\n');
        }
        text
    }
}

fn is_heartbeat(what: &What) -> bool {
    let What::Sent { message, .. } = what else { return false };
    use Body::{Heartbeat, HeartbeatReply, Hibernate, HibernateReply};
    let body = &message.body;
    matches!(body, Heartbeat { .. } | HeartbeatReply { .. } | Hibernate { .. })
        || matches!(body, HibernateReply { asleep: true, .. })
}

fn line(what: &What, at: u64, out: &mut String) {
    let _ = match *what {
        What::Sent { from, to, group, ref message, blocks, arrives } => {
            let _ = write!(out, "n{from} -> n{to}  g{group}  ");
            self::message(message, blocks, out);
            match arrives {
                Some(then) => write!(out, "  (+{} us)", then.saturating_sub(at)),
                None => write!(out, "  LOST"),
            }
        }
        What::Role { node, transition: t } => {
            let leader = NodeId::to_wire(t.leader);
            let role = match t.role {
                Role::Follower => "follower",
                Role::PreCandidate => "pre-candidate",
                Role::Candidate => "candidate",
                Role::Leader => "LEADER",
            };
            write!(
                out,
                "n{node}  g{}  {role} in t{}, leader n{leader}: {}",
                t.group, t.term, t.reason
            )
        }
        What::Commit { node, group, index, term } => {
            write!(out, "n{node}  g{group}  committed through i{index} (t{term})")
        }
        What::Client { client, to, group, seq, note } => {
            write!(out, "c{client} -> n{to}  g{group}  {note} #{seq}")
        }
        What::Answer { client, from, group, seq, first, note } => {
            write!(out, "n{from} -> c{client}  g{group}  {note} #{seq} i{first}")
        }
        What::Node { node, note, number } => write!(out, "n{node}  {note} {number}"),
        What::Members { node, group, index } => {
            write!(out, "n{node}  g{group}  uses the members of i{index}")
        }
        What::Loss { node, loss } => {
            let PossibleLoss { group, term, epoch } = loss;
            write!(out, "n{node}  g{group}  POSSIBLE DATA LOSS, t{term}, epoch {epoch}")
        }
        What::Link { from, to, note } => write!(out, "n{from} => n{to}  {note}"),
        What::Fault { number, kind, node, other, note } => {
            write!(out, "FAULT {number} {kind} n{node} n{other}: {note}")
        }
        What::World { note } => write!(out, "{note}"),
    };
}

fn message(message: &Message, blocks: u32, out: &mut String) {
    let _ = match message.body {
        Body::VoteRequest { pre, handed, last_index, last_term } => {
            let name = match (pre, handed) {
                (true, _) => "pre-vote?",
                (_, true) => "vote, handed over?",
                _ => "vote?",
            };
            write!(out, "{name} last i{last_index}/t{last_term}")
        }
        Body::AppendReply { matched } => write!(out, "matched i{matched}"),
        Body::AppendReject { prev_index, hint_index, hint_term } => {
            write!(out, "reject i{prev_index}, try i{hint_index}/t{hint_term}")
        }
        Body::Append { prev_index, prev_term, commit, .. } => {
            write!(
                out,
                "append after i{prev_index}/t{prev_term}, {blocks} blocks, commit i{commit}"
            )
        }
        other => write!(out, "{other:?}"),
    };
    let _ = write!(out, "  t{} inc {}>{}", message.term, message.incarnation, message.echo);
}
