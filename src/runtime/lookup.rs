//! Where a name leads, found out beside the shard: a resolver may take many seconds, and a shard that
//! waited for it would miss its heartbeats.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use crate::ids::Tick;

/// A name is asked for no more often than this.
const AGAIN_US: u64 = 2_000_000;

/// A `host:port` that is looked up, again and again if it has to be: what a name means may change, and
/// whoever knows it may be away for a while.
pub struct Lookup {
    name: String,
    answer: Option<Receiver<io::Result<SocketAddr>>>,
    next: Tick,
}

impl Lookup {
    /// Nothing is asked yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), answer: None, next: Tick::ZERO }
    }

    /// Asks, on a thread of its own, unless that is under way or was done just now.
    pub fn ask(&mut self, now: Tick) {
        if self.answer.is_some() || now < self.next {
            return;
        }
        self.next = now.plus(AGAIN_US);
        let (tell, answer) = channel();
        let name = self.name.clone();
        // Nobody waits for it: it ends with its answer, heard or not. Without a thread there is none,
        // and the next time there may be one.
        let thread = std::thread::Builder::new().name("lookup".into());
        if thread.spawn(move || drop(tell.send(look_up(&name)))).is_ok() {
            self.answer = Some(answer);
        }
    }

    /// The answer, once.
    pub fn poll(&mut self) -> Option<io::Result<SocketAddr>> {
        match self.answer.as_ref()?.try_recv() {
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.answer = None;
                None
            }
            Ok(found) => {
                self.answer = None;
                Some(found)
            }
        }
    }
}

fn look_up(name: &str) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    name.to_socket_addrs()?.next().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lookup: &mut Lookup) -> io::Result<SocketAddr> {
        loop {
            match lookup.poll() {
                Some(found) => return found,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_name_that_was_not_found_is_asked_for_again_after_a_while() {
        let mut lookup = Lookup::new("no such name:7");
        assert!(lookup.poll().is_none(), "nobody asked");
        lookup.ask(Tick(10));
        assert!(answer(&mut lookup).is_err());
        lookup.ask(Tick(20));
        assert!(lookup.answer.is_none(), "not at once");
        lookup.name = "127.0.0.1:7".into();
        lookup.ask(Tick(10 + AGAIN_US));
        assert_eq!(answer(&mut lookup).unwrap(), SocketAddr::from(([127, 0, 0, 1], 7)));
    }
}
