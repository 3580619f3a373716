//! Which core a thread runs on.

/// Binds the calling thread to the `n`-th core it may use. Where that fails the thread stays where
/// the kernel puts it, which costs latency and nothing else.
pub fn pin_to_core(n: usize) {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: an all-zero cpu_set_t is the empty set; the kernel fills at most `size` bytes of it.
    let allowed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size, &raw mut set) != 0 {
            return;
        }
        set
    };
    // SAFETY: both macros read or write a set that is a local of the right type; the core numbers
    // are within it.
    unsafe {
        let cores: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            .filter(|&core| libc::CPU_ISSET(core, &allowed))
            .collect();
        let mut wanted: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cores[n % cores.len()], &mut wanted);
        libc::sched_setaffinity(0, size, &raw const wanted);
    }
}
