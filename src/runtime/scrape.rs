//! Questions to the shards of a node: each answers with a copy of its figures, in its own thread and
//! between two turns. Nothing is shared, so counting needs no lock and no atomic.
//!
//! ```text
//!   asking thread                      shard's thread
//!   push Question, wake ─────────────▶ collect: pop, copy, send
//!   wait (bounded) ◀────────────────── never waits: the channel has room for one answer a shard
//! ```

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::routing::ShardPort;
use crate::metrics::Histogram;
use crate::shard::ShardStatus;
use crate::shard::figures::Figures;

/// Questions that may wait for one shard; what is over is answered by nobody.
pub const QUESTIONS_MAX: usize = 16;

/// What is wanted beside the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The figures of each group.
    pub per_group: bool,
    /// What `ringraft status` shows.
    pub status: bool,
}

/// One question, in a shard's queue.
pub struct Question {
    pub want: Want,
    /// Has room for the answers of all shards.
    pub reply: SyncSender<ShardReport>,
}

/// What the disk of a shard did; times in µs, from submission to completion.
#[derive(Clone, Debug, Default)]
pub struct DiskFigures {
    /// Writes through `O_DSYNC`.
    pub synced_writes: Histogram,
    /// Writes without sync.
    pub plain_writes: Histogram,
    /// fdatasyncs.
    pub syncs: Histogram,
    pub reads: Histogram,
    /// Operations that failed.
    pub errors: u64,
}

/// What went over the sockets of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetFigures {
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Open now, of peers, clients and strangers.
    pub connections: u32,
}

/// Everything one shard tells.
#[derive(Clone, Debug)]
pub struct ShardReport {
    pub shard: u32,
    pub figures: Figures,
    pub disk: DiskFigures,
    pub net: NetFigures,
    /// Length of each turn, from the first completion to the last answer, µs.
    pub turns: Histogram,
    pub status: Option<ShardStatus>,
}

/// Asks all shards; the answers in the order of the shards, `None` for one that says nothing within
/// `limit`: it is not running, or its thread is stuck.
pub fn ask(ports: &[Arc<ShardPort>], want: Want, limit: Duration) -> Vec<Option<ShardReport>> {
    let until = Instant::now() + limit;
    let (reply, answers) = sync_channel(ports.len());
    for port in ports {
        if port.questions.push(Question { want, reply: reply.clone() }).is_ok() {
            port.waker.wake();
        }
    }
    // With the last question gone, nobody can answer any more.
    drop(reply);
    let mut reports: Vec<Option<ShardReport>> = ports.iter().map(|_| None).collect();
    while let Ok(report) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let shard = report.shard as usize;
        reports[shard] = Some(report);
    }
    reports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(shard: u32) -> ShardReport {
        ShardReport {
            shard,
            figures: Figures::default(),
            disk: DiskFigures::default(),
            net: NetFigures::default(),
            turns: Histogram::default(),
            status: None,
        }
    }

    #[test]
    fn a_shard_that_does_not_answer_holds_up_nobody_for_ever_and_is_told_from_the_others() {
        let ports: Vec<_> = (0..3).map(|_| ShardPort::new().unwrap()).collect();
        let living = [ports[0].clone(), ports[2].clone()];
        let shards = std::thread::spawn(move || {
            for (shard, port) in [0, 2].into_iter().zip(living) {
                let question = loop {
                    if let Some(question) = port.questions.pop() {
                        break question;
                    }
                    std::thread::yield_now();
                };
                assert!(question.want.per_group);
                question.reply.try_send(report(shard)).unwrap();
            }
        });
        let want = Want { per_group: true, status: false };
        let reports = ask(&ports, want, Duration::from_millis(300));
        shards.join().unwrap();
        let answered: Vec<_> = reports.iter().map(|r| r.as_ref().map(|r| r.shard)).collect();
        assert_eq!(answered, [Some(0), None, Some(2)]);
    }

    #[test]
    fn questions_to_a_dead_shard_are_bounded() {
        let port = ShardPort::new().unwrap();
        for _ in 0..2 * QUESTIONS_MAX {
            let reports = ask(std::slice::from_ref(&port), Want::default(), Duration::ZERO);
            assert!(reports[0].is_none());
        }
        assert_eq!(port.questions.len(), QUESTIONS_MAX);
    }
}
