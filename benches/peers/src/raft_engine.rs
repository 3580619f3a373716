//! Peer of the write-ahead log: crate `raft-engine` 0.4.2, one writer, a sync per append.
//!
//! Segments as large as the engine's, entries shared and not copied before they are encoded, no
//! compression (the work does not compress, and trying costs it a third). What is old is compacted
//! and purged between slices, outside the time measured, so that files are recycled.

use std::io;
use std::path::Path;

use raft::eraftpb::Entry;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::scratch::Scratch;
use crate::side::Side;
use crate::workload::{COMMAND_BYTES, commands};

/// Says where an entry keeps its index.
#[derive(Clone)]
struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// Where its next file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Files are recycled once there are old ones (its default).
    Recycled,
    /// Files to recycle are written before the run, too.
    Prefilled,
}

/// An open log and the place where each group's next entry goes.
pub struct Log {
    engine: Engine,
    batch: LogBatch,
    entries: Vec<Entry>,
    /// Last index of each group.
    last: Vec<u64>,
    turn: usize,
    files: Files,
    _scratch: Scratch,
}

impl Log {
    /// An empty log in a directory of its own under `parent`.
    pub fn new(parent: &Path, groups: usize, batch: usize, files: Files) -> io::Result<Self> {
        let scratch = Scratch::new(parent, "raft-engine")?;
        let engine = Engine::open(config(scratch.path(), files)).map_err(io::Error::other)?;
        let all = commands(batch);
        let data = |i| all.slice(i * COMMAND_BYTES..(i + 1) * COMMAND_BYTES);
        let entries =
            (0..batch).map(|i| Entry { term: 1, data: data(i), ..Entry::default() }).collect();
        Ok(Self {
            engine,
            batch: LogBatch::with_capacity(1),
            entries,
            last: vec![0; groups],
            turn: 0,
            files,
            _scratch: scratch,
        })
    }
}

impl Side for Log {
    fn name(&self) -> String {
        match self.files {
            Files::Recycled => "raft-engine 0.4.2".into(),
            Files::Prefilled => "raft-engine 0.4.2, prefilled".into(),
        }
    }

    fn step(&mut self) -> u64 {
        let group = self.turn;
        self.turn = (self.turn + 1) % self.last.len();
        let last = &mut self.last[group];
        for entry in &mut self.entries {
            *last += 1;
            entry.index = *last;
        }
        let id = group as u64 + 1;
        self.batch.add_entries::<EntryExt>(id, &self.entries).expect("the batch fits");
        self.engine.write(&mut self.batch, true).expect("the disk works");
        self.entries.len() as u64
    }

    fn rest(&mut self) {
        for (group, &last) in self.last.iter().enumerate() {
            self.batch.add_command(group as u64 + 1, Command::Compact { index: last + 1 });
        }
        self.engine.write(&mut self.batch, false).expect("the disk works");
        self.engine.purge_expired_files().expect("old files may go");
    }
}

fn config(dir: &Path, files: Files) -> Config {
    let prefill = files == Files::Prefilled;
    Config {
        dir: dir.to_string_lossy().into_owned(),
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize::mb(64),
        purge_threshold: ReadableSize::mb(256),
        enable_log_recycle: true,
        prefill_for_recycle: prefill,
        prefill_limit: prefill.then_some(ReadableSize::mb(512)),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::default_parent;

    #[test]
    fn what_is_appended_is_there_and_goes_when_the_side_rests() {
        let mut log = Log::new(&default_parent(), 2, 100, Files::Recycled).unwrap();
        for _ in 0..4 {
            log.step();
        }
        assert_eq!((log.engine.last_index(1), log.engine.last_index(2)), (Some(200), Some(200)));
        log.rest();
        assert_eq!(log.engine.first_index(1), None);
        log.step();
        assert_eq!(log.engine.last_index(1), Some(300));
    }
}
