//! `ringraft wal dump`: every flush and its records, one line each.

use std::io::{self, BufWriter, Write};

use serde_json::json;

use super::directory::logs;
use super::{DumpArgs, Failure, unreadable};
use crate::cli::OutputArg;
use crate::ids::{GroupId, Lsn};
use crate::wal::{Content, FlushView, Place, RecordView, inspect};

pub(super) fn run(args: &DumpArgs) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    for mut log in logs(&args.dir)? {
        let Some(shape) = log.shape else { continue };
        let shard = shape.config.shard;
        let mut written = Ok(());
        let found = inspect(&shape, &mut log.files, log.mark, |flush| {
            if written.is_ok() && flush.lsn >= Lsn(args.from) {
                written = flush_lines(&mut out, shard, flush, args);
            }
        });
        let (_, damage) = found.map_err(|error| unreadable(&log, error))?;
        if let (Some(damage), Ok(())) = (damage, &written) {
            written = match args.output {
                OutputArg::Table => writeln!(out, "shard {shard} damaged: {damage:?}"),
                OutputArg::Json => writeln!(
                    out,
                    "{}",
                    json!({ "shard": shard, "damaged_at": damage.lsn.0,
                    "was_durable": damage.was_durable })
                ),
            };
        }
        match written.and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(Failure::Run(format!("cannot write to standard output: {e}"))),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn flush_lines(
    out: &mut impl Write,
    shard: u32,
    flush: &FlushView,
    args: &DumpArgs,
) -> io::Result<()> {
    let wanted = |record: &&RecordView| args.group.is_none_or(|id| record.group == GroupId(id));
    let mut records = flush.records.iter().filter(wanted).peekable();
    if records.peek().is_none() {
        return Ok(());
    }
    if args.output == OutputArg::Json {
        return records.try_for_each(|record| writeln!(out, "{}", json(shard, flush, record)));
    }
    let FlushView { segment, offset, lsn, end, durable, .. } = flush;
    let sync = if flush.sync { "synced" } else { "unsynced" };
    let place = if flush.place == Place::Behind { ", behind the end of the log" } else { "" };
    writeln!(
        out,
        "shard {shard} flush {}..{} at {:012}.wal+{offset} {sync}, durable through {}{place}",
        lsn.0, end.0, segment.0, durable.0
    )?;
    records.try_for_each(|record| writeln!(out, "  {}", text(record)))
}

fn text(record: &RecordView) -> String {
    let RecordView { lsn, group, content } = record;
    let what = match content {
        Content::HardState(state) if state.is_ended() => "the group has ended".into(),
        Content::HardState(state) => format!(
            "term {} vote {} commit {}",
            state.term.0,
            state.vote.map_or_else(|| "-".into(), |node| node.to_string()),
            state.commit.0
        ),
        Content::Blocks { first, last, terms, blocks, bytes, truncates } => format!(
            "entries {}..={} of term {}..={} in {blocks} blocks, {bytes} bytes{}",
            first.0,
            last.0,
            terms.0.0,
            terms.1.0,
            if *truncates { ", truncates" } else { "" }
        ),
        Content::LogStart { start, anew } => format!(
            "log begins behind {} of term {} epoch {}{}",
            start.index.0,
            start.term.0,
            start.epoch,
            if *anew { ", anew" } else { "" }
        ),
        Content::Unknown => "a record of unknown shape".into(),
    };
    format!("{} group {}: {what}", lsn.0, group.0)
}

fn json(shard: u32, flush: &FlushView, record: &RecordView) -> serde_json::Value {
    let content = match record.content {
        Content::HardState(state) if state.is_ended() => json!({ "kind": "ended" }),
        Content::HardState(state) => json!({
            "kind": "hard_state", "term": state.term.0,
            "vote": state.vote.map(|node| node.0), "commit": state.commit.0,
        }),
        Content::Blocks { first, last, terms, blocks, bytes, truncates } => json!({
            "kind": "blocks", "first": first.0, "last": last.0, "first_term": terms.0.0,
            "last_term": terms.1.0, "blocks": blocks, "bytes": bytes, "truncates": truncates,
        }),
        Content::LogStart { start, anew } => json!({
            "kind": "log_start", "index": start.index.0, "term": start.term.0,
            "epoch": start.epoch, "anew": anew,
        }),
        Content::Unknown => json!({ "kind": "unknown" }),
    };
    json!({
        "shard": shard, "segment": flush.segment.0, "flush": flush.lsn.0, "sync": flush.sync,
        "behind": flush.place == Place::Behind, "lsn": record.lsn.0, "group": record.group.0,
        "record": content,
    })
}
