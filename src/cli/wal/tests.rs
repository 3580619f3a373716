//! On a log of real files: what is whole is called whole, what is damaged is named.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, HardState, Index, NodeId, Term, Tick};
use crate::wal::{DiskDone, DiskOp, LogIdentity, Wal, WalConfig};

/// A node's directory with one shard of three groups, all of it durable, as the engine writes it.
fn node(dir: &Path) {
    let shard = dir.join("shard-000");
    fs::create_dir_all(&shard).unwrap();
    let config = WalConfig { segment_bytes: 64 << 10, ..WalConfig::default() };
    let identity = LogIdentity { cluster: 7, node: 2, disk: 9 };
    let mut wal = Wal::create(config, identity, 11);
    let mut ops = Vec::new();
    for n in 0..30u64 {
        let group = GroupId((n % 3) as u32);
        let term = Term(1 + n / 15);
        let state = HardState { term, vote: Some(NodeId(2)), commit: Index(n / 3) };
        wal.hard_state(group, state);
        let mut block = Block::special(group, BlockKind::Noop, vec![n as u8; 200].into());
        block.stamp(term, Index(n / 3 + 1), 0);
        wal.append(group, &[block], false, true);
        while {
            wal.flush(Tick(n), &mut ops);
            !ops.is_empty()
        } {
            for op in ops.drain(..) {
                let id = op.id();
                let done = carry_out(&shard, config.segment_bytes, op);
                let _ = wal.complete(Tick(n), id, Ok(done)).unwrap();
            }
        }
    }
    assert_eq!(wal.durable(), wal.staged());
}

fn carry_out(dir: &Path, size: u64, op: DiskOp) -> DiskDone {
    let path = |no: crate::wal::SegmentNo| dir.join(format!("{:012}.wal", no.0));
    match op {
        DiskOp::Prepare { segment, .. } => {
            fs::File::create(path(segment)).unwrap().set_len(size).unwrap();
            DiskDone::Prepared
        }
        DiskOp::Write { segment, offset, buffer, len, .. } => {
            let file = fs::OpenOptions::new().write(true).open(path(segment)).unwrap();
            file.write_all_at(&buffer.as_slice()[..len], offset).unwrap();
            DiskDone::Written { buffer }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_log_is_summed_up_from_either_directory() {
    let dir = tempfile::tempdir().unwrap();
    node(dir.path());
    for path in [dir.path().to_owned(), dir.path().join("shard-000")] {
        let found = reports(&path).unwrap();
        let [report] = found.as_slice() else { panic!("{found:?}") };
        assert!(!report.is_rotten());
        let table = report.table();
        assert!(table.contains(": clean; ") && table.contains("60 records"), "{table}");
        assert!(table.contains("node 2 shard 0"), "{table}");
        assert!(
            table
                .lines()
                .any(|line| { line.split_whitespace().eq(["1", "1", "10", "2", "2", "2", "9"]) }),
            "{table}"
        );
        let json = report::json(&found);
        assert!(json.contains(r#""verdict":"clean""#) && json.lines().count() == 1, "{json}");
    }
}

#[test]
fn a_flipped_bit_is_named_with_file_offset_and_group() {
    let dir = tempfile::tempdir().unwrap();
    node(dir.path());
    let path = dir.path().join("shard-000/000000000001.wal");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    // The second flush: header block of the segment, then flushes of one block each.
    let at = 2 * 4096 + 200;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let found = reports(dir.path()).unwrap();
    assert!(found[0].is_rotten());
    let verdict = found[0].verdict();
    assert!(verdict.contains(": rot; 1 flushes"), "{verdict}");
    assert!(verdict.contains("segment 000000000001.wal offset 8192"), "{verdict}");
    assert!(verdict.contains("group [1]") && verdict.contains("it was durable"), "{verdict}");
    assert_eq!(
        verify(&LookArgs { dir: dir.path().into(), output: OutputArg::Json }),
        Err(Failure::Told)
    );
}

#[test]
fn a_directory_without_a_log_is_refused_with_what_to_name() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("nothing")] {
        let error = reports(&path).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)), "{error:?}");
    }
}

#[test]
fn a_damaged_boot_record_is_told_and_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    node(dir.path());
    fs::write(dir.path().join("boot"), [7; 8192]).unwrap();
    for path in [dir.path().to_owned(), dir.path().join("shard-000")] {
        let error = reports(&path).unwrap_err();
        assert!(matches!(&error, Failure::Run(what) if what.contains("damaged")), "{error:?}");
    }
}

#[test]
fn a_log_all_of_whose_headers_are_gone_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    node(dir.path());
    let shard = dir.path().join("shard-000");
    for file in fs::read_dir(&shard).unwrap() {
        let file = fs::OpenOptions::new().write(true).open(file.unwrap().path()).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
    }
    let error = reports(dir.path()).unwrap_err();
    let told =
        matches!(&error, Failure::Run(what) if what.contains("no segment has a sound header"));
    assert!(told, "{error:?}");
    // Files that were made and never written are an empty log.
    for file in fs::read_dir(&shard).unwrap() {
        fs::write(file.unwrap().path(), [0; 64 << 10]).unwrap();
    }
    assert_eq!(reports(dir.path()).unwrap()[0].verdict().matches(": empty; ").count(), 1);
}
