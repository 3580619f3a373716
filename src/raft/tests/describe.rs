//! The world in words: one line for each thing that a node asks for.

use super::super::*;
use super::world::World;
use crate::block::BlockKind;
use crate::ids::LogStart;

impl World {
    pub fn describe(&mut self, id: NodeId, ready: &Ready) {
        for t in &ready.transitions {
            let leader = name(t.leader);
            self.trace
                .push(format!("{id:?} {:?} {:?} leader={leader} ({})", t.role, t.term, t.reason));
        }
        for p in &ready.persists {
            let what = match &p.op {
                PersistOp::HardState(s) => {
                    format!("hard state {:?} vote={} commit={}", s.term, name(s.vote), s.commit)
                }
                PersistOp::Append { blocks, truncates } => {
                    let how = if *truncates { "replaces" } else { "appends" };
                    format!("{how} {}", describe_blocks(ready.slice(blocks)))
                }
                PersistOp::Begin(start) => format!("begins anew behind {}", place(start)),
            };
            self.trace.push(format!("{id:?} writes {:?}: {what}", p.seq));
        }
        for install in &ready.installs {
            let what = match install.step {
                InstallStep::Send => "a snapshot is to go".into(),
                InstallStep::Held { index, offset } => {
                    format!("holds {offset} of snapshot {index}")
                }
                InstallStep::Refused { index } => format!("refused {index}"),
                InstallStep::Stop => "no snapshot any more".into(),
                InstallStep::Offered(offer) => format!("wants snapshot {}", place(&offer.start)),
                InstallStep::Chunk { index, offset, .. } => {
                    format!("snapshot {index} from {offset}")
                }
            };
            self.trace.push(format!("{id:?} {:?}: {what}", install.peer));
        }
        for loss in &ready.losses {
            let (term, epoch) = (loss.term, loss.epoch);
            self.trace.push(format!("{id:?} {term:?} POSSIBLE LOSS, epoch {epoch}"));
        }
        for m in &ready.memberships {
            self.trace.push(format!("{id:?} uses {}", describe_membership(&m.membership)));
        }
        for m in &ready.messages {
            let after =
                if m.after == Seq::ZERO { String::new() } else { format!(" after {:?}", m.after) };
            let mut body = describe_body(&m.message.body, self.is_recovering(m.to));
            if !m.blocks.is_empty() {
                body += &format!(": {}", describe_blocks(ready.slice(&m.blocks)));
            }
            self.trace.push(format!("{id:?}->{:?} {:?} {body}{after}", m.to, m.message.term));
        }
        for f in &ready.fetches {
            self.trace.push(format!("{id:?} fetches {}..{} for {:?}", f.from, f.through, f.to));
        }
        for r in &ready.reads {
            self.trace.push(format!("{id:?} may answer reads ..{} at {}", r.through, r.index));
        }
        for c in &ready.committed {
            self.trace.push(format!("{id:?} commits {}", c.index));
        }
    }

    pub fn describe_status(&mut self) {
        for node in &self.nodes {
            let line = match &node.raft {
                None => format!("{:?} down", node.id),
                Some(r) => format!(
                    "{:?} {:?} {:?} leader={} commit={} durable={} last={}{}{}{}",
                    node.id,
                    r.role(),
                    r.term(),
                    name(r.leader()),
                    r.commit(),
                    r.durable_index(),
                    r.last_index(),
                    if r.epoch() > 0 { format!(" epoch={}", r.epoch()) } else { String::new() },
                    if r.is_recovering() { " RECOVERING" } else { "" },
                    if r.is_hibernating() { " asleep" } else { "" },
                ),
            };
            self.trace.push(line);
        }
    }

    pub fn describe_logs(&mut self) {
        for node in &self.nodes {
            self.trace.push(format!("{:?} {}", node.id, describe_blocks(&node.log)));
        }
    }

    pub fn describe_progress(&mut self, id: NodeId) {
        let raft = self.nodes[id.0 as usize - 1].raft.as_ref().unwrap();
        for (peer, p) in raft.progress() {
            self.trace.push(format!(
                "{id:?} on {peer:?}: {:?} matched={} next={} inflight={}/{}B",
                p.state(),
                p.matched(),
                p.next(),
                p.inflight_count(),
                p.inflight_bytes(),
            ));
        }
    }
}

fn name(node: Option<NodeId>) -> String {
    node.map_or("-".into(), |n| format!("{n:?}"))
}

fn place(start: &LogStart) -> String {
    format!("{}@{}", start.index, start.term)
}

/// `7: 1 2 4 | 1 2 3, learners 5, to be learners 3, joining 5`
fn describe_membership(membership: &Membership) -> String {
    let list = |ids: &[NodeId]| ids.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ");
    let joining: Vec<_> = membership.joining.iter().map(|joining| joining.node).collect();
    let mut text = format!("{}: {}", membership.index, list(&membership.voters));
    for (before, ids) in [
        (" | ", &membership.outgoing),
        (", learners ", &membership.learners),
        (", to be learners ", &membership.learners_next),
        (", joining ", &joining),
    ] {
        if !ids.is_empty() {
            text += &format!("{before}{}", list(ids));
        }
    }
    text
}

fn describe_blocks(blocks: &[Block]) -> String {
    let epoch = |b: &Block| match b.header().epoch {
        0 => String::new(),
        epoch if b.header().since() < b.first() => format!("e{epoch} since {}", b.header().since()),
        epoch => format!("e{epoch}"),
    };
    let one = |b: &Block| {
        if b.count() == 1 {
            let members = if b.kind() == BlockKind::Membership { "m" } else { "" };
            format!("{}@{}{}{members}", b.first(), b.term(), epoch(b))
        } else {
            format!("{}..{}@{}{}", b.first(), b.last(), b.term(), epoch(b))
        }
    };
    blocks.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A leader's last index matters to a follower that is RECOVERING, and is told only then.
fn describe_body(body: &Body, recovering: bool) -> String {
    let upto = |last: Index| if recovering { format!(" last={last}") } else { String::new() };
    let pre = |pre: bool| if pre { "pre-" } else { "" };
    match *body {
        Body::VoteRequest { pre: p, handed, last_index, last_term } => {
            let handed = if handed { ", handed over" } else { "" };
            format!("{}vote? last={last_index}@{last_term}{handed}", pre(p))
        }
        Body::VoteReply { pre: p, granted, recovering } => {
            let mark = if recovering { ", recovering" } else { "" };
            format!("{}vote {}{mark}", pre(p), if granted { "granted" } else { "refused" })
        }
        Body::Append { prev_index, prev_term, commit, last } => {
            format!("append prev={prev_index}@{prev_term} commit={commit}{}", upto(last))
        }
        Body::AppendReply { matched } => format!("appended matched={matched}"),
        Body::AppendReject { prev_index, hint_index, hint_term } => {
            format!("rejects prev={prev_index} hint={hint_index}@{hint_term}")
        }
        Body::Heartbeat { commit, last, .. } => format!("heartbeat commit={commit}{}", upto(last)),
        Body::HeartbeatReply { .. } => "heartbeat answered".into(),
        Body::Hibernate { last, round } => format!("sleep? last={last} round={round}"),
        Body::HibernateReply { round, asleep: true } => format!("sleeps round={round}"),
        Body::HibernateReply { .. } => "is awake".into(),
        Body::SnapshotOffer(offer) => format!("offers snapshot {}", place(&offer.start)),
        Body::SnapshotChunk { index, offset, .. } => format!("snapshot {index} from {offset}"),
        Body::SnapshotReply { index, offset } => format!("holds {offset} of snapshot {index}"),
        Body::TimeoutNow => "campaign now".into(),
        Body::ReadIndex { number } => format!("read index? for {number}"),
        Body::ReadReply { number, index } => format!("read index {index} for {number}"),
    }
}
