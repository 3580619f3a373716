//! One io_uring: operations in, completions out, and a wake-up from other threads.
//!
//! The ring belongs to the thread that made it (`SINGLE_ISSUER`, `DEFER_TASKRUN`): completions are
//! posted only while that thread asks for them, so nothing interrupts a turn.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};

use crate::ids::Tick;

/// What an operation was, so that its completion finds its owner. Packed into `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: u8,
    /// Guards a reused `index` against late completions; 24 bits.
    pub generation: u32,
    pub index: u32,
}

impl Token {
    const WAKE: u8 = 255;

    fn pack(self) -> u64 {
        u64::from(self.kind) << 56
            | u64::from(self.generation & 0xff_ffff) << 32
            | u64::from(self.index)
    }

    fn unpack(raw: u64) -> Self {
        Self {
            kind: (raw >> 56) as u8,
            generation: (raw >> 32) as u32 & 0xff_ffff,
            index: raw as u32,
        }
    }
}

/// A finished operation. `result` as of the system call: a count, or `-errno`.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    pub result: i32,
    /// More completions of the same (multishot) operation follow.
    pub more: bool,
}

impl Completion {
    /// The count, or the error.
    pub fn count(&self) -> io::Result<usize> {
        if self.result < 0 {
            Err(io::Error::from_raw_os_error(-self.result))
        } else {
            Ok(self.result as usize)
        }
    }
}

/// Wakes a ring's thread from any other thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A wake-up that belongs to no ring yet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is open, and nothing else owns it.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(raw) })))
    }

    /// A descriptor of its own for an executor that waits by itself: a read of 8 bytes ends when
    /// somebody wakes it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Makes the ring's thread run its loop once more, soon.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one`, which lives across the call, to a descriptor that
        // the `Arc` keeps open. A full counter (EAGAIN) means that a wake-up is pending already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// The ring.
pub struct Ring {
    ring: IoUring,
    waker: Waker,
    /// Where the kernel puts the eventfd's counter. Leaked, 8 bytes a ring: a closed ring may finish
    /// its last read later.
    wake_counter: &'static mut u64,
    wake_armed: bool,
    origin: Instant,
}

impl Ring {
    /// A ring whose submission queue holds `entries`, with time counted from `origin`, that `waker`
    /// wakes. To be made by the thread that uses it.
    pub fn new(entries: u32, origin: Instant, waker: Waker) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_clamp()
            .setup_cqsize(entries * 4)
            .build(entries)?;
        let mut ring =
            Self { ring, waker, wake_counter: Box::leak(Box::new(0)), wake_armed: false, origin };
        ring.arm_wake();
        Ok(ring)
    }

    /// Keeps `file` open, and with it its lock, until the kernel has finished every operation of
    /// this ring: after kill -9 it goes on with writes for a while although the process is gone.
    /// Once for a ring.
    pub fn hold(&self, file: &File) -> io::Result<()> {
        self.ring.submitter().register_files(&[file.as_raw_fd()])
    }

    /// A handle for other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Now, in microseconds since the origin.
    pub fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_micros() as u64)
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let fd = types::Fd(self.waker.0.as_raw_fd());
        let entry =
            opcode::Read::new(fd, std::ptr::from_mut(&mut *self.wake_counter).cast(), 8).build();
        let token = Token { kind: Token::WAKE, generation: 0, index: 0 };
        // SAFETY: the counter is never freed, and nobody reads it.
        unsafe { self.push(entry, token) };
        self.wake_armed = true;
    }

    /// Queues an operation; it reaches the kernel with the next submit.
    ///
    /// # Safety
    /// Everything that `entry` points to stays valid, and is not touched, until its (last)
    /// completion was reaped.
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        loop {
            // SAFETY: passed on to the caller of this function.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it to the kernel and go on. A failure here is met again, and
            // reported, by the next `submit`.
            let _ = self.enter(0);
        }
    }

    fn enter(&mut self, flags: u32) -> io::Result<usize> {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument structure is passed; the kernel reads only its own queues.
        match unsafe { self.ring.submitter().enter::<()>(queued, 0, flags, None) } {
            Err(error) if is_transient(&error) => Ok(0),
            other => other,
        }
    }

    /// Hands queued operations to the kernel and lets it post completions, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        self.enter(GETEVENTS).map(drop)
    }

    /// True when operations are queued that the kernel has not seen.
    pub fn has_queued(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// True when completions are posted and not reaped.
    pub fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Submits, then sleeps until there is a completion or the time is `until`.
    pub fn wait(&mut self, until: Tick) -> io::Result<()> {
        let now = self.now();
        if until <= now {
            return self.submit();
        }
        let micros = until.since(now).min(3_600_000_000);
        let timeout = types::Timespec::new()
            .sec(micros / 1_000_000)
            .nsec((micros % 1_000_000) as u32 * 1_000);
        let args = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) || is_transient(&error) => {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Moves posted completions to `into`. A wake-up by another thread is swallowed here.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        let mut woken = false;
        for entry in self.ring.completion() {
            let token = Token::unpack(entry.user_data());
            if token.kind == Token::WAKE {
                woken = true;
                continue;
            }
            let more = io_uring::cqueue::more(entry.flags());
            into.push(Completion { token, result: entry.result(), more });
        }
        if woken {
            self.wake_armed = false;
            self.arm_wake();
        }
    }
}

/// The kernel was interrupted or is short of something for a moment: the next call goes on.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_wakes_a_waiting_ring() {
        let mut ring = Ring::new(8, Instant::now(), Waker::new().unwrap()).unwrap();
        let waker = ring.waker();
        let thread = std::thread::spawn(move || waker.wake());
        let far = ring.now().plus(60_000_000);
        ring.wait(far).unwrap();
        assert!(ring.now() < far, "woken long before the deadline");
        thread.join().unwrap();
        ring.reap(&mut Vec::new());
        // And a second time: the wake-up was armed again.
        ring.waker().wake();
        ring.wait(far).unwrap();
        assert!(ring.now() < far);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let mut ring = Ring::new(8, Instant::now(), Waker::new().unwrap()).unwrap();
        let until = ring.now().plus(2_000);
        while ring.now() < until {
            ring.wait(until).unwrap();
        }
    }

    #[test]
    fn a_lock_that_a_ring_holds_ends_with_the_ring_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).append(true).open(dir.path().join("LOCK"));
        let (ours, theirs) = (open().unwrap(), open().unwrap());
        ours.try_lock().unwrap();
        let ring = Ring::new(8, Instant::now(), Waker::new().unwrap()).unwrap();
        ring.hold(&ours).unwrap();
        drop(ours);
        assert!(theirs.try_lock().is_err(), "the ring could still write");
        drop(ring);
        // The kernel takes the ring apart in the background.
        theirs.lock().unwrap();
    }

    #[test]
    fn tokens_survive_the_trip_through_user_data() {
        let token = Token { kind: 7, generation: 0xab_cdef, index: u32::MAX };
        assert_eq!(Token::unpack(token.pack()), token);
    }
}
