//! What the kernel and a directory can do, found out by trying: for `doctor` and for start-up errors.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};

/// The operations that the reactor and the log submit.
const OPCODES: [(u8, &str); 7] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
];

/// What io_uring offers to this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingSupport {
    /// Operations the engine needs and the kernel lacks.
    pub missing: Vec<&'static str>,
    /// A ring with `SINGLE_ISSUER` and `DEFER_TASKRUN` can be made (kernel 6.1): completions are
    /// taken when the reactor asks, not by interrupting it.
    pub defer_taskrun: bool,
}

/// Sets up a ring and asks which operations it knows. The error is the kernel's: `EPERM` where
/// io_uring is switched off, `ENOMEM` where locked memory is too small, `ENOSYS` where it is missing.
pub fn probe_ring() -> io::Result<RingSupport> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let missing = OPCODES.iter().filter(|(code, _)| !probe.is_supported(*code));
    let deferred: io::Result<IoUring> =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    Ok(RingSupport {
        missing: missing.map(|(_, name)| *name).collect(),
        defer_taskrun: deferred.is_ok(),
    })
}

/// What `O_DIRECT` asks for on one file system, bytes. 0: the file system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectIo {
    /// Alignment of the buffer in memory.
    pub memory_align: u32,
    /// Alignment of offset and length in the file.
    pub offset_align: u32,
}

/// Tries `O_DIRECT|O_DSYNC` on a file in `dir` (removed again) and asks for the alignment it needs.
pub fn probe_direct_io(dir: &Path) -> io::Result<DirectIo> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(&path);
    if let Err(error) = &opened
        && error.kind() == io::ErrorKind::AlreadyExists
    {
        // Somebody else's: not ours to remove.
        return Err(io::Error::new(error.kind(), format!("{} is in the way", path.display())));
    }
    let align = opened.and_then(|_| statx_alignment(&path));
    // Also after a failure: the kernel may create the file first and refuse O_DIRECT then.
    let _ = fs::remove_file(&path);
    align
}

fn statx_alignment(path: &Path) -> io::Result<DirectIo> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is a NUL-terminated string and `stat` a writable `statx`; both outlive the
    // call, which keeps neither.
    let done = unsafe {
        libc::statx(libc::AT_FDCWD, name.as_ptr(), 0, libc::STATX_DIOALIGN, stat.as_mut_ptr())
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `statx` holds only integers, for which the zeroes it began with are valid; the
    // kernel wrote over some of them.
    let stat = unsafe { stat.assume_init() };
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(DirectIo::default());
    }
    Ok(DirectIo { memory_align: stat.stx_dio_mem_align, offset_align: stat.stx_dio_offset_align })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_the_operations_the_engine_needs() {
        assert_eq!(probe_ring().unwrap().missing, [""; 0]);
    }

    #[test]
    fn direct_io_in_the_source_tree_has_an_alignment_and_leaves_no_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let align = probe_direct_io(dir.path()).unwrap();
        assert!(align.offset_align == 0 || align.offset_align.is_power_of_two());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let error = probe_direct_io(Path::new("/nonexistent/here")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
