//! How a node of the world starts: on the log and the snapshots that its last process has left.

use super::world::Cluster;
use crate::ids::Incarnation;
use crate::machine::StateMachine;
use crate::shard::snapshots::gather::{Gathered, Gathering};
use crate::shard::snapshots::start::log_starts;
use crate::shard::{Output, Shard};
use crate::wal::{LogIdentity, Suspect, Verdict, Wal, recover};

impl<M: StateMachine + 'static> Cluster<M> {
    /// Starts a node on what its disk holds.
    pub fn boot(&mut self, i: usize) {
        assert!(!self.is_up(i));
        let (now, id, epoch) = (self.now, Self::id(i), self.rng.next());
        let mut config = self.setup.shard.clone();
        let node = &mut self.nodes[i];
        node.incarnation += 1;
        (config.node, config.incarnation) = (id, Incarnation(node.incarnation));
        let identity = LogIdentity { cluster: 7, node: id.0, disk: u128::from(id.0) };
        let mut image = node.disk.after_kill();
        let mut log = recover(self.setup.wal, identity, &mut image).expect("the log is readable");
        let rot = matches!(log.verdict, Verdict::Rot { .. });
        assert!(!rot || node.rotten, "an honest disk does not rot");
        if rot {
            node.recovering = Suspect::Everything;
        }
        config.suspect = node.recovering;
        let (sessions, config_hash) = (config.sessions, config.snapshots.config_hash);
        let gathering = Gathering { machine: self.machine, sessions, config_hash };
        let Gathered { found, damaged } = gathering.run(&mut node.files).expect("all can be read");
        assert!(damaged.is_empty(), "what was published is whole");
        node.files.begin_anew(&found.parts);
        let starts = found.starts(&log.groups);
        let mut wal = Wal::resume(self.setup.wal, identity, epoch, &mut log);
        let groups = log_starts(&mut wal, starts);
        node.shard = Some(Shard::with_snapshots(config, wal, groups, found, self.machine, now));
        (node.fatal, node.out, node.woken) = (None, Output::default(), true);
        self.connect_all();
    }
}
