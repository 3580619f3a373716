//! What a block of [`BlockKind::Session`] says: one entry of the log that changes the table of
//! sessions and nothing else.
//!
//! ```text
//! body  u64 what  u64 through
//!         1 keep alive   in a client's session: it is used; also what opens one without a command
//!         2 close        in a client's session: it is over
//!         3 expire       from the leader: what was last used at `through` or before is over
//! ```
//!
//! [`BlockKind::Session`]: crate::block::BlockKind::Session

use bytes::Bytes;

use crate::block::{Block, BlockKind};
use crate::ids::{GroupId, Index};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEntry {
    KeepAlive,
    Close,
    /// The cut-off is an index: no clock decides anything when it is applied.
    Expire {
        through: Index,
    },
}

impl SessionEntry {
    /// As a block of the session that `client` numbers; 0 and 0 for the leader's own.
    pub fn block(self, group: GroupId, client: u64, seq: u64) -> Block {
        let (what, through) = match self {
            Self::KeepAlive => (1u64, 0),
            Self::Close => (2, 0),
            Self::Expire { through } => (3, through.get()),
        };
        let body: Bytes = [what.to_le_bytes(), through.to_le_bytes()].concat().into();
        Block::in_session(group, BlockKind::Session, client, seq, body)
    }

    /// What the block says; `None` if that has no meaning.
    pub fn of(block: &Block) -> Option<Self> {
        if block.kind() != BlockKind::Session || block.count() != 1 {
            return None;
        }
        let (what, through) = block.body().split_at_checked(8)?;
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
        match (word(what)?, word(through)?) {
            (1, 0) => Some(Self::KeepAlive),
            (2, 0) => Some(Self::Close),
            (3, through) => Some(Self::Expire { through: Index(through) }),
            _ => None,
        }
    }

    /// What a client may ask for: its own session, by name and number.
    pub fn of_client(block: &Block) -> Option<Self> {
        let header = block.header();
        let own = header.client != 0 && header.seq != 0;
        Self::of(block).filter(|entry| own && !matches!(entry, Self::Expire { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_clients_may_not_expire_others() {
        let expire = SessionEntry::Expire { through: Index(77) };
        for entry in [SessionEntry::KeepAlive, SessionEntry::Close, expire] {
            let block = entry.block(GroupId(3), 9, 4);
            assert_eq!(SessionEntry::of(&block), Some(entry));
            assert_eq!(SessionEntry::of_client(&block).is_some(), entry != expire);
            assert_eq!(SessionEntry::of_client(&entry.block(GroupId(3), 0, 0)), None);
        }
    }

    #[test]
    fn other_bytes_mean_nothing() {
        let made = |what: u64, through: u64, more: usize| {
            let mut body = [what.to_le_bytes(), through.to_le_bytes()].concat();
            body.resize(16 + more, 0);
            Block::in_session(GroupId(0), BlockKind::Session, 1, 1, body.into())
        };
        for (what, through, more) in [(0, 0, 0), (4, 0, 0), (1, 5, 0), (2, 5, 0), (1, 0, 8)] {
            assert_eq!(SessionEntry::of(&made(what, through, more)), None);
        }
        assert_eq!(SessionEntry::of(&Block::noop(GroupId(0))), None);
        let empty = Block::special(GroupId(0), BlockKind::Session, Bytes::new());
        assert_eq!(SessionEntry::of(&empty), None);
    }
}
