//! Keeps the machine's other work out of a measurement, as far as the system lets it.
//!
//! A kernel that preempts lazily lets a busy neighbour run on to the next tick, up to 4 ms, before
//! the thread whose disk write has completed gets the core. On a machine that builds something
//! beside the bench that turns a write of 70 us into one of 4 ms, for whichever side sleeps more.
//! A real-time thread is woken at once.

/// Puts the calling thread, and those it starts, under SCHED_FIFO. False when that is not allowed.
pub fn claim() -> bool {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: `param` lives across the call, which only reads it; pid 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) == 0 }
}
