//! What tells the groups of one shard apart when they start.

use crate::ids::{GroupId, Incarnation, NodeId};

/// Spreads the groups' election timeouts; any mixing will do, as long as it is a function of names.
pub(super) fn seed(node: NodeId, incarnation: Incarnation, group: GroupId) -> u64 {
    let mixed = u64::from(node.0) << 48 ^ u64::from(incarnation.0) << 24 ^ u64::from(group.0);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}
