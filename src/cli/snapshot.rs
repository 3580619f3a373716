//! `ringraft snapshot`: looks into the snapshots of a stopped node. Nothing is written.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, LookArgs, OutputArg};
use crate::runtime::files::{SnapshotFiles, snapshot_dir};
use crate::shard::snapshots::FileName;
use crate::shard::snapshots::gather::FileSource;
use crate::snapshot::{Header, SnapshotReader};

/// Read at a time; a header is always within the first piece.
const PIECE_BYTES: u64 = 1 << 20;

/// Look into the snapshots of a node: reads only
///
/// DIR is a node's data directory, or one shard's directory in it. A running node replaces its
/// snapshots as it goes: stop it first.
#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Name every snapshot with its group, index, term and size
    List(LookArgs),
    /// Read every snapshot to its end. Exit code 1 if one is damaged
    Verify(LookArgs),
}

/// One file.
#[derive(Debug, Serialize)]
struct Report {
    path: String,
    /// "snapshot", or "part" of one that is being received.
    kind: &'static str,
    group: u32,
    index: u64,
    term: u64,
    epoch: u32,
    bytes: u64,
    voters: Vec<u32>,
    learners: Vec<u32>,
    /// What is wrong with it; of a part: nothing that has come.
    damage: Option<String>,
}

pub(super) fn run(args: &SnapshotArgs) -> Result<(), Failure> {
    let (look, whole) = match &args.command {
        SnapshotCommand::List(look) => (look, false),
        SnapshotCommand::Verify(look) => (look, true),
    };
    let mut reports = Vec::new();
    for dir in snapshot_dirs(&look.dir)? {
        let mut files = SnapshotFiles::at(dir);
        let mut names = files.files();
        names.sort_by_key(|(file, _)| (file.group(), file.to_string()));
        for (file, size) in names {
            reports.extend(report(&mut files, file, size, whole));
        }
    }
    let text = match look.output {
        OutputArg::Table => table(&reports, whole),
        OutputArg::Json => serde_json::to_string(&reports).expect("plain data") + "\n",
    };
    super::print(&text)?;
    let damaged = reports.iter().any(|report| report.damage.is_some());
    if damaged { Err(Failure::Told) } else { Ok(()) }
}

/// The directories of snapshots below `dir`, in the order of their shards.
fn snapshot_dirs(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let bad = |e: std::io::Error| Failure::Usage(format!("{}: {e}", dir.display()));
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("shard-") {
            shards.push(path);
        }
    }
    shards.sort();
    if shards.is_empty() {
        shards.push(dir.into());
    }
    let found: Vec<_> = shards.iter().map(|shard| snapshot_dir(shard)).collect();
    match found.iter().any(|dir| dir.is_dir()) {
        true => Ok(found),
        false => {
            let text = "holds no snapshots: name a node's data directory, or a shard's in it";
            Err(Failure::Usage(format!("{} {text}", dir.display())))
        }
    }
}

fn report(files: &mut SnapshotFiles, file: FileName, size: u64, whole: bool) -> Option<Report> {
    let kind = match file {
        FileName::Snapshot(..) => "snapshot",
        FileName::Part(..) => "part",
        FileName::Making(_) => return None,
    };
    let (header, damage) = read(files, file, size, whole && kind == "snapshot");
    let wrong = match file {
        FileName::Snapshot(group, index) => (header.group, header.index) != (group, index),
        _ => false,
    };
    let foreign = (wrong && damage.is_none()).then(|| "it is not what its name says".to_owned());
    let ids = |list: &[crate::ids::NodeId]| list.iter().map(|node| node.0).collect();
    Some(Report {
        path: files.path(file).display().to_string(),
        kind,
        group: file.group().0,
        index: header.index.0,
        term: header.term.0,
        epoch: header.epoch,
        bytes: size,
        voters: ids(&header.membership.voters),
        learners: ids(&header.membership.learners),
        damage: damage.or(foreign),
    })
}

/// The header, and what is wrong; `whole`: with all that follows it.
fn read(
    files: &mut SnapshotFiles,
    file: FileName,
    size: u64,
    whole: bool,
) -> (Header, Option<String>) {
    let mut reader = SnapshotReader::new();
    let mut at = 0;
    while at < size {
        let bytes = match files.read(file, at, PIECE_BYTES.min(size - at)) {
            Ok(bytes) => bytes,
            Err(error) => return (reader.header().clone(), Some(error.to_string())),
        };
        at += (bytes.len() as u64).max(1);
        let mut rest: &[u8] = &bytes;
        loop {
            match reader.next(&mut rest) {
                Ok(Some(_)) if whole => {}
                Ok(Some(_)) => return (reader.header().clone(), None),
                Ok(None) => break,
                Err(error) => return (reader.header().clone(), Some(error.to_string())),
            }
        }
    }
    let end = reader.finish().err().filter(|_| whole).map(|error| error.to_string());
    (reader.header().clone(), end)
}

fn table(reports: &[Report], whole: bool) -> String {
    let mut text = format!(
        "{:>8} {:>12} {:>8} {:>6} {:>14}  {}\n",
        "group", "index", "term", "epoch", "bytes", "file"
    );
    for report in reports {
        let Report { path, kind, group, index, term, epoch, bytes, damage, .. } = report;
        let state = match damage {
            Some(damage) => format!(": DAMAGED: {damage}"),
            None if *kind == "part" => ": a part, being received".into(),
            None if whole => ": whole".into(),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "{group:>8} {index:>12} {term:>8} {epoch:>6} {bytes:>14}  {path}{state}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupId, Index, NodeId, Term};
    use crate::machine::StateMachine;
    use crate::machine::register::RegisterMap;
    use crate::shard::sessions::{SessionLimits, Sessions};
    use crate::snapshot::{Membership, SnapshotWriter};

    fn written(dir: &Path) -> PathBuf {
        let membership = Membership { voters: vec![NodeId(1)], ..Membership::default() };
        let (group, index, term) = (GroupId(3), Index(12), Term(2));
        let header = Header { group, index, term, membership, ..Header::default() };
        let sessions = Box::new(Sessions::new(SessionLimits::default()).freeze());
        let state = RegisterMap::new().freeze().unwrap();
        let mut writer = SnapshotWriter::new(header, sessions, state);
        let mut bytes = Vec::new();
        while writer.next(&mut bytes, 4096) {}
        let snapshots = snapshot_dir(&dir.join("shard-000"));
        std::fs::create_dir_all(&snapshots).unwrap();
        let path = snapshots.join(FileName::Snapshot(group, index).to_string());
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn verify(dir: &Path) -> Vec<Report> {
        let mut files = SnapshotFiles::at(snapshot_dirs(dir).unwrap().remove(0));
        let names = files.files();
        names.into_iter().filter_map(|(file, size)| report(&mut files, file, size, true)).collect()
    }

    #[test]
    fn a_whole_snapshot_is_named_and_a_damaged_one_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let reports = verify(dir.path());
        assert_eq!((reports[0].group, reports[0].index, reports[0].term), (3, 12, 2));
        assert_eq!((reports[0].damage.as_ref(), reports.len()), (None, 1));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(verify(dir.path())[0].damage.is_some());
        assert!(table(&verify(dir.path()), true).contains("DAMAGED"));
        assert!(snapshot_dirs(&dir.path().join("none")).is_err());
    }
}
