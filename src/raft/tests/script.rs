//! Interaction scripts: `tests/scripts/raft/*.txt`. A paragraph is a few commands, `----`, and the
//! trace they leave; lines with `#` tell the story. With `REWRITE=1` in the environment the traces
//! are written anew, to be read before they are committed.
//!
//! ```text
//! cluster N [key=value ..]       N voters, spare=K more; keys are fields of Config (times in µs)
//! node n1 term=T vote=n2 commit=I log=1..3@1,4@2 recovering=yes   restart it with this on its disk
//! wal_sync off                   from here on acknowledgements do not wait for stable storage
//! power n1 [K]                   power fails; K blocks that were not synced survive by chance (0)
//! timeout n1 | wait MS           fire its deadline, moving the clock | move the clock
//! propose n1 COUNT ..            blocks of so many commands
//! change n1 STEP ..              add:4 learner:4 remove:3 promote:4 demote:2 replace:3:4 [force]
//! persist n1 [K]                 complete its K oldest writes (all)
//! deliver|drop|dup [n1->n2 [K]]  the messages now on this way (everywhere), or the K-th only
//! reverse n1->n2                 turn their order round
//! cut n1 n2 | isolate n1 | heal  messages vanish | .. to and from it | no more
//! crash n1 [K] | restart n1      K writes under way are done before (0)
//! connect n1 n2 | disconnect n1 n2    n1 is told of its connection to n2
//! silent n1 n2 | heard n1 n2     n1 is told that n2's shard says nothing, or speaks again
//! beat n1 K                      K times its deadline and settle, without the heartbeats' trace
//! read n1 | transfer n1 n2       a read arrives at n1 | n1 is to hand over to n2
//! fetch n1 [fail] | disk n1 hangs|works   answer its oldest fetch | settle leaves its writes alone
//! compact n1 I | offer n1->n2    its log begins behind I | it offers the snapshot of where it begins
//! install n1                     what it was offered last has arrived whole
//! ask n1->n2 T INDEX@TERM [handed]    put n1's request for a vote in term T into the network
//! settle | elect n1              everything until it is quiet | timeout n1 and settle, untraced
//! status | logs | progress n1
//! quiet COMMAND                  without its trace
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::*;
use super::world::{Envelope, World};
use crate::ids::GroupId;
use crate::membership::Step;
use crate::raft::harness::sample_block;

#[test]
fn every_script_leaves_the_trace_it_expects() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/raft");
    let entries = std::fs::read_dir(&dir).expect("the scripts are part of the source");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "scripts are missing");
    let failed: Vec<_> = paths.iter().filter(|path| !run_file(path)).collect();
    assert!(failed.is_empty(), "traces differ (REWRITE=1 rewrites them): {failed:#?}");
}

/// They are named by their numbers.
#[test]
fn every_script_has_a_number_of_its_own() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/raft");
    let names = std::fs::read_dir(&dir).expect("the scripts are part of the source");
    let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut numbers: Vec<_> = names.map(|name| name[..2].parse::<u32>().expect(&name)).collect();
    numbers.sort_unstable();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

fn run_file(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap();
    let mut world = World::default();
    let mut actual = String::new();
    for paragraph in text.trim_end().split("\n\n") {
        let commands = paragraph.split("\n----").next().unwrap();
        let _ = writeln!(actual, "{}", commands.trim_end());
        let mut output = Vec::new();
        let mut ran = false;
        for line in commands.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
            ran = true;
            run_line(&mut world, line);
            output.append(&mut world.trace);
        }
        if ran {
            let _ = writeln!(actual, "----");
        }
        for line in output {
            let _ = writeln!(actual, "{line}");
        }
        actual.push('\n');
    }
    let actual = actual.trim_end().to_owned() + "\n";
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path, &actual).unwrap();
    }
    first_difference(path, &text, &actual)
}

/// Panics with the place, so that the test says what changed.
fn first_difference(path: &Path, expected: &str, actual: &str) -> bool {
    let mut pairs = expected.lines().zip(actual.lines()).enumerate();
    if let Some((i, (e, a))) = pairs.find(|(_, (e, a))| e != a)
        && std::env::var_os("REWRITE").is_none()
    {
        panic!("{}:{}\n  expected {e}\n  got      {a}", path.display(), i + 1);
    }
    expected == actual || std::env::var_os("REWRITE").is_some()
}

fn run_line(world: &mut World, line: &str) {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap();
    let rest: Vec<&str> = words.collect();
    if command == "quiet" {
        run_line(world, &rest.join(" "));
        world.trace.clear();
        return;
    }
    run_command(world, command, &rest);
}

fn run_command(world: &mut World, command: &str, rest: &[&str]) {
    let first = || id(rest[0]);
    let number = |i: usize| rest.get(i).map(|w| w.parse::<usize>().unwrap());
    match command {
        "cluster" => *world = cluster(rest),
        "node" => set_node(world, rest),
        "timeout" => world.timeout(first()),
        "wait" => world.now = world.now.plus(number(0).unwrap() as u64 * 1000),
        "propose" => {
            let counts: Vec<u32> = rest[1..].iter().map(|w| w.parse().unwrap()).collect();
            let refused = world.propose(first(), &counts);
            if refused > 0 {
                world.trace.push(format!("{:?} refuses {refused}", first()));
            }
        }
        "change" => change(world, rest),
        "persist" => {
            world.persist(first(), number(1).unwrap_or(usize::MAX));
        }
        "deliver" | "drop" | "dup" | "reverse" => on_network(world, command, rest),
        "cut" => {
            world.cut.insert((first(), id(rest[1])));
            world.cut.insert((id(rest[1]), first()));
        }
        "isolate" => {
            for other in world.nodes.iter().map(|n| n.id).collect::<Vec<_>>() {
                world.cut.insert((first(), other));
                world.cut.insert((other, first()));
            }
        }
        "heal" => world.cut.clear(),
        "crash" => world.crash(first(), number(1).unwrap_or(0)),
        "power" => world.cut_power(first(), number(1).unwrap_or(0)),
        "wal_sync" => world.nodes.iter_mut().for_each(|node| node.wal_sync = rest[0] != "off"),
        "restart" => world.start(first()),
        "connect" => {
            let peer = id(rest[1]);
            let incarnation = world.node(peer).config.incarnation;
            world.handle(first(), Event::PeerConnected { peer, incarnation });
        }
        "silent" => world.handle(first(), Event::PeerSilent { peer: id(rest[1]) }),
        "heard" => world.handle(first(), Event::PeerHeard { peer: id(rest[1]) }),
        "disconnect" => world.handle(first(), Event::PeerDisconnected { peer: id(rest[1]) }),
        "read" => world.read(first()),
        "beat" => {
            for _ in 0..number(1).unwrap() {
                world.timeout(first());
                world.settle();
            }
            world.trace.retain(|line| !line.contains("heartbeat"));
        }
        "transfer" => world.transfer(first(), id(rest[1])),
        "disk" => world.node_mut(first()).disk_hangs = rest[1] == "hangs",
        "ask" => ask(world, rest),
        "fetch" => world.fetch(first(), rest.get(1) != Some(&"fail")),
        "compact" => world.compact(first(), Index(number(1).unwrap() as u64)),
        "offer" => {
            let (from, to) = rest[0].split_once("->").map(|(a, b)| (id(a), id(b))).unwrap();
            world.offer(from, to);
        }
        "install" => world.install(first()),
        "settle" => world.settle(),
        "elect" => {
            world.timeout(first());
            world.settle();
            world.trace.clear();
        }
        "status" => world.describe_status(),
        "logs" => world.describe_logs(),
        "progress" => world.describe_progress(first()),
        other => panic!("unknown command {other}"),
    }
}

fn id(word: &str) -> NodeId {
    NodeId(word.trim_start_matches('n').parse().unwrap())
}

fn cluster(rest: &[&str]) -> World {
    let n = rest[0].parse().unwrap();
    let spares = rest.iter().find_map(|word| word.strip_prefix("spare="));
    World::with_spares(n, spares.map_or(0, |k| k.parse().unwrap()), |config| {
        for (key, value) in rest[1..].iter().map(|w| w.split_once('=').unwrap()) {
            let number = || value.parse::<u64>().unwrap();
            match key {
                "hibernate_after_us" => config.hibernate_after_us = number(),
                "append_bytes_max" => config.append_bytes_max = number() as u32,
                "inflight_count_max" => config.inflight_count_max = number() as u32,
                "inflight_bytes_max" => config.inflight_bytes_max = number(),
                "uncommitted_bytes_max" => config.uncommitted_bytes_max = number(),
                "cache_bytes_max" => config.cache_bytes_max = number(),
                "spare" => {}
                "preferred" => config.preferred = config.id == id(value),
                other => panic!("unknown key {other}"),
            }
        }
    })
}

fn change(world: &mut World, rest: &[&str]) {
    let force = rest.contains(&"force");
    let steps: Vec<_> = rest[1..].iter().filter(|&&w| w != "force").map(|w| step(w)).collect();
    let line = match world.change(id(rest[0]), &steps, force) {
        Ok(index) => format!("{} begins the change at {index}", rest[0]),
        Err(refused) => format!("{} refuses: {refused}", rest[0]),
    };
    world.trace.push(line);
}

fn step(word: &str) -> Step {
    let (what, nodes) = word.split_once(':').unwrap();
    let nodes: Vec<NodeId> = nodes.split(':').map(id).collect();
    let node = nodes[0];
    match what {
        "add" | "learner" => Step::Add { node, votes: what == "add", address: None },
        "remove" => Step::Remove(node),
        "promote" => Step::Promote(node),
        "demote" => Step::Demote(node),
        "replace" => Step::Replace { old: node, new: nodes[1], address: None },
        other => panic!("unknown step {other}"),
    }
}

/// `node n1 term=3 vote=n2 commit=1 log=1@1,2..4@3`
fn set_node(world: &mut World, rest: &[&str]) {
    let node = id(rest[0]);
    world.crash(node, 0);
    let disk = &mut world.node_mut(node).disk;
    *disk = Default::default();
    let mut recovering = false;
    for (key, value) in rest[1..].iter().map(|w| w.split_once('=').unwrap()) {
        match key {
            "term" => disk.hard_state.term = Term(value.parse().unwrap()),
            "vote" => disk.hard_state.vote = Some(id(value)),
            "commit" => disk.hard_state.commit = Index(value.parse().unwrap()),
            "log" => disk.blocks = value.split(',').map(block).collect(),
            "recovering" => recovering = true,
            other => panic!("unknown key {other}"),
        }
    }
    world.node_mut(node).recovering = recovering;
    world.start(node);
}

/// A request that the sender's own rules would not let it make.
fn ask(world: &mut World, rest: &[&str]) {
    let (from, to) = rest[0].split_once("->").map(|(a, b)| (id(a), id(b))).unwrap();
    let (last_index, last_term) = rest[2].split_once('@').unwrap();
    let message = Message {
        term: Term(rest[1].parse().unwrap()),
        incarnation: world.node(from).config.incarnation,
        echo: Incarnation::ZERO,
        body: Body::VoteRequest {
            pre: false,
            handed: rest.get(3) == Some(&"handed"),
            last_index: Index(last_index.parse().unwrap()),
            last_term: Term(last_term.parse().unwrap()),
        },
    };
    world.net.push(Envelope { from, to, message, blocks: Vec::new() });
}

/// `FIRST[..LAST]@TERM`
fn block(text: &str) -> Block {
    let (range, term) = text.split_once('@').unwrap();
    let (first, last) = range.split_once("..").unwrap_or((range, range));
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let mut block = sample_block(GroupId(0), (last - first + 1) as u32, 8);
    block.stamp(Term(term.parse().unwrap()), Index(first), 0);
    block
}

fn on_network(world: &mut World, command: &str, rest: &[&str]) {
    let way = rest.first().map(|w| w.split_once("->").unwrap()).map(|(a, b)| (id(a), id(b)));
    let only = rest.get(1).map(|w| w.parse::<usize>().unwrap() - 1);
    let on_way = |world: &World| -> Vec<usize> {
        let fits = |at: &usize| way.is_none_or(|w| w == (world.net[*at].from, world.net[*at].to));
        (0..world.net.len()).filter(fits).collect()
    };
    let mut places = on_way(world);
    if let Some(only) = only {
        places = vec![places[only]];
    }
    match command {
        // New messages are pushed behind; each removal moves the rest up by one.
        "deliver" => (0..).zip(places).for_each(|(gone, at)| world.deliver(at - gone)),
        "drop" => {
            for (gone, at) in places.into_iter().enumerate() {
                world.net.remove(at - gone);
            }
        }
        "dup" => {
            for at in places {
                let copy = world.net[at].clone();
                world.net.push(copy);
            }
        }
        _ => {
            let mut taken: Vec<_> = places.iter().map(|&at| world.net[at].clone()).collect();
            for at in places {
                world.net[at] = taken.pop().unwrap();
            }
        }
    }
}
