//! One connection: from a client to one shard of one node.
//!
//! ```text
//!   Idle ──open──▶ Connecting ──connected──▶ Greeting ──welcome──▶ Ready
//!    ▲                 │                        │                    │
//!    └──── fail: backoff, everything on it is routed again ──────────┘
//! ```

use std::collections::VecDeque;

use super::LinkId;
use crate::ids::{GroupId, Tick};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    Connecting,
    Greeting,
    Ready,
}

/// A block that is due to a link. It is looked up when sent: it may be finished or moved by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub group: GroupId,
    pub seq: u64,
    pub size: u32,
}

/// A connection's slot. The slot of (node, shard) stays; its generation changes with each connect.
#[derive(Debug)]
pub(super) struct Link {
    pub node: usize,
    pub shard: u32,
    generation: u16,
    stage: Stage,
    /// When it became idle, began to connect (the handshake included), or became ready.
    since: Tick,
    /// When the last frame came.
    pub heard: Tick,
    /// It owed an answer and said nothing at all: until then others are asked first, and hints that
    /// lead here are not followed. Zero: it is not in doubt.
    doubted_until: Tick,
    /// Idle: not before this time again.
    retry_at: Tick,
    attempts: u32,
    hello_due: bool,
    /// Since when the driver holds an unfinished send.
    sending: Option<Tick>,
    pub blocks: VecDeque<Due>,
    /// Bytes of `blocks`.
    pub queued_bytes: usize,
    /// Questions due, as in `Questions`.
    pub questions: VecDeque<u32>,
}

impl Link {
    pub fn new(node: usize, shard: u32) -> Self {
        Self {
            node,
            shard,
            generation: 0,
            stage: Stage::Idle,
            since: Tick::ZERO,
            heard: Tick::ZERO,
            doubted_until: Tick::ZERO,
            retry_at: Tick::ZERO,
            attempts: 0,
            hello_due: false,
            sending: None,
            blocks: VecDeque::new(),
            queued_bytes: 0,
            questions: VecDeque::new(),
        }
    }

    pub fn id(&self, slot: usize) -> LinkId {
        LinkId(u32::from(self.generation) << 16 | slot as u32)
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Until when it is left alone after a failure, if it is.
    #[inline]
    pub fn resting(&self, now: Tick) -> Option<Tick> {
        (self.stage == Stage::Idle && self.retry_at > now).then_some(self.retry_at)
    }

    /// A frame came.
    #[inline]
    pub fn hear(&mut self, now: Tick) {
        self.heard = now;
        self.doubted_until = Tick::ZERO;
    }

    /// Nothing at all came, although an answer was due. `false`: that has been so for longer than
    /// `for_us` now, and the connection counts as dead.
    pub fn doubt(&mut self, now: Tick, for_us: u64) -> bool {
        if self.doubted_until == Tick::ZERO {
            self.doubted_until = now.plus(for_us);
        }
        self.is_doubted(now)
    }

    pub fn is_doubted(&self, now: Tick) -> bool {
        self.doubted_until > now
    }

    pub fn has_work(&self) -> bool {
        !self.blocks.is_empty() || !self.questions.is_empty()
    }

    #[inline]
    pub fn push(&mut self, due: Due) {
        self.queued_bytes += due.size as usize;
        self.blocks.push_back(due);
    }

    #[inline]
    pub fn pop(&mut self) -> Option<Due> {
        let due = self.blocks.pop_front()?;
        self.queued_bytes -= due.size as usize;
        Some(due)
    }

    pub fn become_connecting(&mut self, now: Tick) {
        assert_eq!(self.stage, Stage::Idle);
        self.generation = self.generation.wrapping_add(1);
        self.stage = Stage::Connecting;
        self.since = now;
    }

    pub fn become_greeting(&mut self) {
        assert_eq!(self.stage, Stage::Connecting);
        self.stage = Stage::Greeting;
        self.hello_due = true;
    }

    pub fn become_ready(&mut self, now: Tick) {
        assert_eq!(self.stage, Stage::Greeting);
        self.stage = Stage::Ready;
        self.since = now;
        self.attempts = 0;
    }

    /// Rests for `delay_us`. What was due or sent must be routed again by the caller.
    pub fn become_idle(&mut self, now: Tick, delay_us: u64) {
        self.stage = Stage::Idle;
        self.since = now;
        self.doubted_until = Tick::ZERO;
        self.retry_at = now.plus(delay_us);
        self.attempts = self.attempts.saturating_add(1);
        self.hello_due = false;
        self.sending = None;
        self.blocks.clear();
        self.queued_bytes = 0;
        self.questions.clear();
    }

    /// Failures in a row.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The handshake is to be sent now; says so once.
    pub fn take_hello(&mut self) -> bool {
        std::mem::take(&mut self.hello_due)
    }

    /// Blocks and questions may be sent now.
    #[inline]
    pub fn can_send(&self) -> bool {
        self.stage == Stage::Ready && self.sending.is_none()
    }

    pub fn send_began(&mut self, now: Tick) {
        self.sending = Some(now);
    }

    pub fn send_ended(&mut self) {
        self.sending = None;
    }

    /// When a stage or a send has lasted too long.
    pub fn overdue_at(&self, connect_us: u64, send_us: u64) -> Option<Tick> {
        match self.stage {
            Stage::Idle => None,
            Stage::Connecting | Stage::Greeting => Some(self.since.plus(connect_us)),
            Stage::Ready => self.sending.map(|began| began.plus(send_us)),
        }
    }

    /// When an idle link may be opened again.
    pub fn retry_at(&self) -> Tick {
        self.retry_at
    }
}
