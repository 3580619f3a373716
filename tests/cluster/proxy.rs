//! Wires between the nodes that can be held up: what is sent meanwhile arrives when they are let go,
//! as a network does that was only slow.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;

/// How often a quiet wire is looked at.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct State {
    held: AtomicBool,
    over: AtomicBool,
}

/// From one node to another, one way in what it carries.
pub struct Wire {
    pub port: u16,
    state: Arc<State>,
}

impl Wire {
    /// To a port of this machine.
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(State::default());
        let mine = state.clone();
        std::thread::spawn(move || {
            while !mine.over.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((near, _)) => join(near, target, &mine),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Self { port, state }
    }

    fn hold(&self, held: bool) {
        self.state.held.store(held, Ordering::Release);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
    }
}

fn join(near: TcpStream, target: u16, state: &Arc<State>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let ways = [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())];
    for (from, to) in ways {
        let (Ok(from), Ok(to)) = (from, to) else { return };
        let state = state.clone();
        std::thread::spawn(move || pump(from, to, &state));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let _ = (from.set_nonblocking(false), to.set_nodelay(true));
    let _ = from.set_read_timeout(Some(LOOK));
    let mut buffer = vec![0; 64 << 10];
    while !state.over.load(Ordering::Acquire) {
        if state.held.load(Ordering::Acquire) {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                while state.held.load(Ordering::Acquire) && !state.over.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A wire for every ordered pair of nodes; clients go directly.
pub struct Wires(Vec<(usize, usize, Wire)>);

impl Wires {
    /// Lets each node find the others behind wires. Before it is started.
    pub fn lay(cluster: &Cluster) -> Self {
        let port = |address: String| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
        let mut wires = Vec::new();
        for from in 0..3 {
            let path = cluster.config_path(from);
            let mut text = std::fs::read_to_string(&path).unwrap();
            for to in (0..3).filter(|&to| to != from) {
                let wire = Wire::to(port(cluster.peer_address(to)));
                let behind = format!("127.0.0.1:{}", wire.port);
                text = text.replace(&cluster.peer_address(to), &behind);
                wires.push((from, to, wire));
            }
            std::fs::write(path, text).unwrap();
        }
        Self(wires)
    }

    /// Nothing passes between `node` and the others, until [`Wires::heal`].
    pub fn isolate(&self, node: usize) {
        self.0.iter().filter(|(a, b, _)| *a == node || *b == node).for_each(|w| w.2.hold(true));
    }

    pub fn heal(&self) {
        self.0.iter().for_each(|wire| wire.2.hold(false));
    }
}
