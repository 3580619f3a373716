//! A path through a world as a person reads it: who did what, with terms and indices.

use std::fmt::Write;

use ringraft::raft::{Body, Role};
use stateright::Path;

use super::node::{Entry, Envelope, Node};
use super::state::{Action, State, id};
use super::world::World;

/// One line an action, and below it each node that it changed.
pub fn tell(world: &World, path: &Path<State, Action>) -> String {
    let mut text = format!("in the world {:?}:\n", world.name);
    let mut steps = path.clone().into_vec().into_iter().peekable();
    while let Some((state, action)) = steps.next() {
        let (Some(action), Some((next, _))) = (action, steps.peek()) else { break };
        writeln!(text, "{}", describe(&state, action)).expect("memory");
        for (before, after) in state.nodes.iter().zip(&next.nodes) {
            if before.print != after.print {
                writeln!(text, "      {}", node(after)).expect("memory");
            }
        }
        for envelope in next.net.iter().filter(|e| !state.net.contains(e)) {
            writeln!(text, "      sent {}", message(envelope)).expect("memory");
        }
        if state.truth.acknowledged != next.truth.acknowledged {
            writeln!(text, "      {}", next.truth.describe()).expect("memory");
        }
    }
    let last = path.last_state();
    if let Some(broken) = &last.broken {
        writeln!(text, "broken: {broken}").expect("memory");
    }
    last.nodes.iter().for_each(|n| writeln!(text, "at the end {}", node(n)).expect("memory"));
    writeln!(text, "{}", last.truth.describe()).expect("memory");
    text
}

fn describe(state: &State, action: Action) -> String {
    match action {
        Action::Campaign { node, ask: 0 } => format!("n{} times out", id(node)),
        Action::Campaign { node, ask } => {
            let asked: Vec<_> = (0..3).filter(|n| ask & 1 << n != 0).map(id).collect();
            format!("n{} times out and is heard by {asked:?}", id(node))
        }
        Action::Beat { node } => format!("n{}'s heartbeats are due", id(node)),
        Action::StepDown { node } => format!("n{} hears of no quorum", id(node)),
        Action::Propose { node } => format!("n{} takes a block on", id(node)),
        Action::Deliver { at, again } => {
            let copy = if again { ", and a copy is still under way" } else { "" };
            format!("arrives: {}{copy}", message(&state.net[at]))
        }
        Action::Read { node } => format!("n{} is asked a question", id(node)),
        Action::Compact { node } => format!("n{} snapshots what is committed", id(node)),
        Action::Install { node } => format!("n{} installs the snapshot", id(node)),
        Action::Change { node, to } => {
            format!("n{} is asked for the voters {to:03b} (n3 n2 n1)", id(node))
        }
        Action::Write { node } => format!("n{}'s oldest write is done", id(node)),
        Action::Sync { node } => format!("n{} syncs in the background", id(node)),
        Action::Connect { node, peer } => format!("n{} is connected to n{}", id(node), id(peer)),
        Action::Crash { node, lost } => format!("n{} is killed, loses {lost} writes", id(node)),
        Action::PowerLoss { node, lost } => format!("n{} loses power and {lost} writes", id(node)),
    }
}

fn message(envelope: &Envelope) -> String {
    let Envelope { from, to, message, entries, .. } = envelope;
    let (term, start, echo) = (message.term, message.incarnation, message.echo);
    let body = match message.body {
        Body::Append { .. } => format!("{:?} {}", message.body, log(entries)),
        body => format!("{body:?}"),
    };
    format!("n{from}.{start} -> n{to}.{echo} t{term} {body}")
}

fn node(node: &Node) -> String {
    let raft = &node.raft;
    let role = match raft.role() {
        Role::Follower if node.is_recovering() => "recovering",
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "LEADER",
    };
    let (id, start, term) = (raft.id(), node.incarnation(), raft.term());
    let vote = raft.vote().map_or(String::new(), |vote| format!(" voted n{vote}"));
    let (all, commit) = (log(&node.log), raft.commit());
    let (written, durable) = (node.written.log.len(), node.durable.log.len());
    let state = &node.durable.hard_state;
    let kept = (state.term, state.vote);
    format!(
        "n{id}.{start} {role} t{term}{vote}, log {all} commit {commit}; \
         on disk {kept:?} log {}, written {written}, durable {durable}",
        log(&node.durable.log)
    )
}

/// Terms, with the number of the proposal where it is one.
fn log(entries: &[Entry]) -> String {
    let of = |entry: &Entry| match (entry.payload, entry.epoch) {
        (0, 0) => format!("t{}", entry.term),
        (payload, 0) => format!("t{}:{payload}", entry.term),
        (payload, epoch) => format!("t{}e{epoch}:{payload}", entry.term),
    };
    format!("[{}]", entries.iter().map(of).collect::<Vec<_>>().join(" "))
}
