//! Groups that are made and that end while the shards run.

use super::world::{Cluster, MS, Setup, block};
use crate::block::Block;
use crate::ids::{GroupId, NodeId};
use crate::machine::StateMachine;
use crate::membership::Step;
use crate::raft::ChangeRefused;
use crate::raft::ready::Role;
use crate::shard::roster::{Asked, RosterRefused};
use crate::shard::tests::machine::Ledger;
use crate::wire::admin::AdminReply;
use crate::wire::client::Refused;

type Asking = Result<Asked, RosterRefused>;

fn start(groups: u32) -> Cluster<Ledger> {
    let mut c = Setup::new(groups).start();
    c.elect();
    c.converge();
    c
}

impl Cluster<Ledger> {
    fn has(&self, i: usize, group: u32) -> bool {
        self.is_up(i) && self.shard(i).group(GroupId(group)).is_some()
    }

    fn ended(&self, i: usize, group: u32) -> bool {
        self.shard(i).has_ended(GroupId(group))
    }

    fn create(&mut self, wanted: Option<u32>, count: u32, request: u64) -> Asking {
        let (now, leader) = (self.now, self.leader(0).expect("somebody leads"));
        self.nodes[leader].woken = true;
        let shard = self.nodes[leader].shard.as_mut().expect("up");
        shard.create_groups(now, wanted.map(GroupId), count, request, false)
    }

    fn delete(&mut self, group: u32) -> Asking {
        let (now, leader) = (self.now, self.leader(0).expect("somebody leads"));
        self.nodes[leader].woken = true;
        let shard = self.nodes[leader].shard.as_mut().expect("up");
        shard.delete_group(now, GroupId(group), false)
    }

    fn led(&mut self, group: u32) -> usize {
        let leads = |c: &Self, i: usize| c.has(i, group) && c.raft(i, group).role() == Role::Leader;
        let anybody = |c: &mut Self| (0..c.nodes.len()).any(|i| leads(c, i));
        self.run_until("somebody leads it", 3000 * MS, anybody);
        (0..self.nodes.len()).find(|&i| leads(self, i)).expect("just seen")
    }

    /// A block of a client of the group's leader: applied at this index.
    fn write(&mut self, group: u32, seq: u64) -> u64 {
        let leader = self.led(group);
        let client = self.client(leader);
        self.submit(client, &[block(group, 9, seq)]);
        let answer = self.answer(client);
        answer.result.expect("a leader takes it").first.0
    }

    fn asked_of(&mut self, i: usize, what: Block) -> Result<(), Refused> {
        let client = self.client(i);
        self.submit(client, &[what]);
        self.answer(client).result.map(drop)
    }

    fn gone_everywhere(&mut self, group: u32) {
        self.run_until("it is gone everywhere", 5000 * MS, |c| {
            (0..c.nodes.len()).filter(|&i| c.is_up(i)).all(|i| c.ended(i, group))
        });
        for i in (0..self.nodes.len()).filter(|&i| self.is_up(i)) {
            assert!(!self.has(i, group));
            self.shard(i).check_invariants();
        }
    }
}

fn groups(asked: Asking) -> (bool, Vec<u32>) {
    let asked = asked.expect("not refused");
    (asked.done, asked.groups)
}

#[test]
fn groups_that_are_made_elect_answer_and_are_there_after_a_restart_of_all() {
    let mut c = start(2);
    assert_eq!(groups(c.create(None, 2, 77)), (false, vec![2, 3]));
    for group in [2, 3] {
        c.write(group, 1);
    }
    assert_eq!(groups(c.create(None, 2, 77)), (true, vec![2, 3]), "the same request");
    assert_eq!(groups(c.create(Some(3), 1, 0)), (true, vec![3]), "the same number");
    let next = RosterRefused::NotNext { asked: GroupId(7), next: GroupId(4) };
    assert_eq!(c.create(Some(7), 1, 0), Err(next));
    c.run_until("all have it", 1000 * MS, |c| (0..3).all(|i| c.has(i, 3) && c.applied(i, 3) > 1));
    let digest = digest_of(&c, 0, 3);
    (0..3).for_each(|i| c.kill(i));
    (0..3).for_each(|i| c.boot(i));
    assert!(!c.has(0, 3), "the list says so first");
    c.write(2, 2);
    c.run_until("what was written is there", 3000 * MS, |c| c.has(0, 3) && c.applied(0, 3) > 1);
    assert_eq!(digest_of(&c, 0, 3), digest);
    c.run(300 * MS);
    c.converge();
}

fn digest_of(c: &Cluster<Ledger>, i: usize, group: u32) -> u64 {
    c.shard(i).group(GroupId(group)).expect("there").machine().digest()
}

#[test]
fn a_node_that_was_away_hears_of_what_was_made_and_what_has_ended() {
    let mut c = start(2);
    let away = (c.leader(1).unwrap() + 1) % 3;
    c.kill(away);
    c.elect();
    c.create(None, 2, 5).unwrap();
    c.write(2, 1);
    c.write(3, 1);
    for group in [1, 2] {
        c.delete(group).unwrap();
        c.run(300 * MS);
    }
    c.boot(away);
    assert!(c.has(away, 1), "as far as it knows");
    c.run_until("it has read the list", 3000 * MS, |c| c.has(away, 3) && c.applied(away, 3) > 1);
    [1, 2].into_iter().for_each(|group| c.gone_everywhere(group));
}

#[test]
fn a_group_ends_everywhere_and_for_good() {
    let mut c = start(3);
    c.write(1, 1);
    assert_eq!(groups(c.delete(1)), (false, vec![1]));
    c.gone_everywhere(1);
    assert_eq!(groups(c.delete(1)), (true, vec![1]), "asked again");
    for i in 0..3 {
        assert_eq!(c.asked_of(i, block(1, 9, 2)), Err(Refused::NoGroup));
        assert!(c.shard(i).status().groups.iter().all(|group| group.group != 1));
        assert_eq!(c.shard(i).status().groups_ended, 1);
    }
    assert_eq!(c.create(Some(1), 1, 0), Err(RosterRefused::HasEnded(GroupId(1))));
    // Neither a killed process nor a loss of power brings it back, with or without the others.
    c.kill(0);
    c.boot(0);
    (1..3).for_each(|i| c.cut_power_keeping(i, 0));
    assert!(c.ended(0, 1));
    (1..3).for_each(|i| c.boot(i));
    assert!((0..3).all(|i| c.ended(i, 1) && !c.has(i, 1)));
    c.run(1000 * MS);
    assert!((0..3).all(|i| c.ended(i, 1) && !c.has(i, 1)));
    c.write(2, 1);
}

#[test]
fn numbers_are_not_used_again_after_an_end_or_a_restart() {
    let mut c = start(1);
    for number in 1..4 {
        assert_eq!(groups(c.create(None, 1, 100 + u64::from(number))), (false, vec![number]));
        c.write(number, 1);
        c.delete(number).unwrap();
        c.gone_everywhere(number);
        (0..3).for_each(|i| c.kill(i));
        (0..3).for_each(|i| c.boot(i));
        c.elect();
        c.run(300 * MS);
    }
}

#[test]
fn whoever_waits_when_a_group_ends_is_told() {
    let mut c = start(2);
    let leader = c.leader(1).unwrap();
    let others: Vec<_> = (0..3).filter(|&i| i != leader).collect();
    let client = c.client(leader);
    // Nobody but its leader is to know of the block when the group ends.
    let list = c.leader(0).unwrap();
    c.delete(1).unwrap();
    c.submit(client, &[block(1, 9, 1)]);
    c.gone_everywhere(1);
    let answers = c.answers(client);
    assert_eq!(answers.len(), 1, "an answer, and one");
    assert!(list < 3 && others.len() == 2);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut c = start(2);
    assert_eq!(c.delete(0), Err(RosterRefused::KeepsTheList(GroupId(0))));
    assert_eq!(c.delete(9), Err(RosterRefused::Unknown(GroupId(9))));
    assert_eq!(c.create(None, 0, 0), Err(RosterRefused::Count));
    let most = RosterRefused::TooMany { living: 2, most: 64 };
    assert_eq!(c.create(None, 63, 0), Err(most));
    let follower = (c.leader(0).unwrap() + 1) % 3;
    let now = c.now;
    let shard = c.nodes[follower].shard.as_mut().unwrap();
    let asked = shard.create_groups(now, None, 1, 0, false);
    assert!(matches!(asked, Err(RosterRefused::NotLeader(Some(_)))), "{asked:?}");
    c.create(None, 1, 1).unwrap();
    assert_eq!(c.create(None, 1, 2), Err(RosterRefused::NotYet), "one after the other");
    // Only who knows says that there is no such group; others name who does.
    assert!(matches!(c.asked_of(follower, block(40, 9, 1)), Err(Refused::NotLeader(Some(_)))));
    c.run(300 * MS);
    let leader = c.leader(0).unwrap();
    assert_eq!(c.asked_of(leader, block(40, 9, 1)), Err(Refused::NoGroup));
}

/// A crash between the entry and the record of the end leaves the group as it was, to end again.
#[test]
fn an_end_that_power_took_comes_again() {
    let mut c = start(2);
    c.write(1, 1);
    let list = c.leader(0).unwrap();
    let slow = (list + 1) % 3;
    c.delete(1).unwrap();
    c.run_until("the entry is committed", 500 * MS, |c| !c.has(list, 1));
    c.run_until("the other one has applied it", 500 * MS, |c| !c.has(slow, 1));
    c.hold_disk(slow);
    let early = c.ended(slow, 1);
    c.cut_power_keeping(slow, 0);
    c.release_disk(slow);
    c.boot(slow);
    assert!(early || c.has(slow, 1), "what is not durable has not happened");
    c.gone_everywhere(1);
}

/// n4 is a member of group 1 alone: no list says it what has become of that.
#[test]
fn who_is_not_in_the_first_group_is_told_by_the_others() {
    let mut setup = Setup::new(2);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let step = [Step::Remove(NodeId(4))];
    let (now, list) = (c.now, c.leader(0).unwrap());
    let mover = c.nodes[list].shard.as_mut().unwrap();
    mover.change_group(now, GroupId(0), &step).expect("a leader that has committed");
    c.run_until("n4 has left the first group", 3000 * MS, |c| {
        let leader = c.leader(0);
        leader.is_some_and(|i| {
            let members = c.raft(i, 0).membership();
            !members.is_member(NodeId(4)) && members.index <= c.raft(i, 0).commit()
        })
    });
    c.run(500 * MS);
    c.delete(1).unwrap();
    c.gone_everywhere(1);
}

#[test]
fn a_new_group_begins_with_the_members_that_the_first_one_has() {
    let mut setup = Setup::new(1);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let (now, list) = (c.now, c.leader(0).unwrap());
    let gone = NodeId(if list == 3 { 1 } else { 4 });
    let mover = c.nodes[list].shard.as_mut().unwrap();
    mover.change_group(now, GroupId(0), &[Step::Remove(gone)]).expect("it leads");
    assert!(matches!(c.create(None, 1, 3), Err(RosterRefused::MembersChange(_))));
    c.run(1000 * MS);
    c.create(None, 1, 3).unwrap();
    c.write(1, 1);
    let leader = c.led(1);
    assert_eq!(c.raft(leader, 1).membership().voters.len(), 3);
    assert!(!c.raft(leader, 1).membership().is_member(gone));
    (0..4).for_each(|i| c.kill(i));
    (0..4).for_each(|i| c.boot(i));
    c.write(1, 2);
    let leader = c.led(1);
    assert!(!c.raft(leader, 1).membership().is_member(gone), "also after a start");
}

/// It may have to make that group yet, and nobody else would tell it.
#[test]
fn who_is_in_a_group_that_was_made_leaves_the_first_one_last() {
    let mut setup = Setup::new(1);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let list = c.leader(0).unwrap();
    let gone = NodeId(if list == 3 { 1 } else { 4 });
    let leave = |c: &mut Cluster<Ledger>, group: u32| {
        let (now, leader) = (c.now, c.led(group));
        let mover = c.nodes[leader].shard.as_mut().unwrap();
        mover.change_group(now, GroupId(group), &[Step::Remove(gone)])
    };
    c.create(None, 1, 3).unwrap();
    assert_eq!(leave(&mut c, 0), Err(ChangeRefused::NotYet), "it is not made yet");
    c.write(1, 1);
    let needed = ChangeRefused::Needed { node: gone, group: GroupId(1) };
    assert_eq!(leave(&mut c, 0), Err(needed));
    leave(&mut c, 1).expect("nobody needs it there");
    c.run_until("the leader of the list knows", 3000 * MS, |c| {
        c.leader(0).is_some_and(|i| c.has(i, 1) && !c.raft(i, 1).membership().is_member(gone))
    });
    leave(&mut c, 0).expect("it is in no group that was made");
    c.write(1, 2);
}

/// n1 leads the first group and was taken out of a group that was made. Of whoever leaves that later it
/// hears nothing, so it does not say who is in it.
#[test]
fn who_is_out_of_a_group_that_was_made_does_not_say_who_is_in_it() {
    let mut setup = Setup::new(1);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let list = c.leader(0).unwrap();
    c.create(None, 1, 3).unwrap();
    c.write(1, 1);
    let leave = |c: &mut Cluster<Ledger>, group: u32, gone: NodeId| {
        let (now, leader) = (c.now, c.led(group));
        c.nodes[leader].woken = true;
        let mover = c.nodes[leader].shard.as_mut().unwrap();
        mover.change_group(now, GroupId(group), &[Step::Remove(gone)])
    };
    let out = |c: &Cluster<Ledger>, gone: NodeId| {
        let leads = |i: &usize| c.has(*i, 1) && c.raft(*i, 1).role() == Role::Leader;
        let Some(leader) = (0..4).find(leads) else { return false };
        let raft = c.raft(leader, 1);
        let members = raft.membership();
        !members.is_joint() && members.index <= raft.commit() && !members.is_member(gone)
    };
    let me = NodeId(list as u32 + 1);
    leave(&mut c, 1, me).expect("it leads only the other one");
    c.run_until("it is out", 5000 * MS, |c| out(c, me));
    let leader = c.led(1);
    let gone = (0..4).find(|&i| i != list && i != leader).map(|i| NodeId(i as u32 + 1)).unwrap();
    leave(&mut c, 1, gone).expect("three are left");
    c.run_until("it is out, too", 5000 * MS, |c| out(c, gone));
    c.run(3000 * MS);
    let outside = ChangeRefused::Outside { node: gone, group: GroupId(1) };
    assert_eq!(leave(&mut c, 0, gone), Err(outside));
    let reply = ask(&mut c, list, 0, &[Step::Remove(gone)], true);
    let asked = reply.expect("it leads");
    assert!(!asked.done && asked.data.is_null() && asked.text.contains("cannot know"));
    let (now, heir) = (c.now, NodeId(leader as u32 + 1));
    c.nodes[list].woken = true;
    c.nodes[list].shard.as_mut().unwrap().transfer(now, GroupId(0), heir).unwrap();
    c.run_until("a member leads", 3000 * MS, |c| c.leader(0) == Some(leader));
    c.run(300 * MS);
    leave(&mut c, 0, gone).expect("it is in no group that was made");
}

fn ask(
    c: &mut Cluster<Ledger>,
    i: usize,
    group: u32,
    steps: &[Step],
    dry: bool,
) -> Result<AdminReply, Refused> {
    let now = c.now;
    c.nodes[i].woken = true;
    c.nodes[i].shard.as_mut().unwrap().change_members(now, group, steps, false, dry)
}

/// Story: `--dry-run` said yes, and of the groups that the command then went through the last one
/// refused, when the others had changed. What only waits for the others says what it would mean.
#[test]
fn who_asks_whether_a_change_would_go_hears_what_the_change_would() {
    let mut setup = Setup::new(1);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let list = c.leader(0).unwrap();
    let gone = NodeId(((list + 1) % 4) as u32 + 1);
    c.create(None, 1, 3).unwrap();
    c.write(1, 1);
    c.run(1000 * MS);
    let comes = Step::Add { node: NodeId(9), votes: true, address: None };
    let leader = c.led(1);
    for (i, group, step, why, means) in [
        (list, 0, Step::Remove(gone), "still in group 1", "become 3"),
        (leader, 1, comes, "not a member of group 0", "become 5"),
    ] {
        let steps = [step];
        let before = c.raft(i, group).last_index();
        let looked = ask(&mut c, i, group, &steps, true).expect("it leads");
        assert!(!looked.done && looked.text.contains(why), "{}", looked.text);
        assert!(looked.data["means"].as_str().is_some_and(|text| text.contains(means)));
        assert_eq!(ask(&mut c, i, group, &steps, false), Ok(looked), "the same, in earnest");
        assert_eq!(c.raft(i, group).last_index(), before);
    }
    let fine = ask(&mut c, leader, 1, &[Step::Remove(gone)], true).expect("it leads");
    assert!(fine.done && c.raft(leader, 1).membership().is_member(gone), "{}", fine.text);
}

/// Before it has applied the list a leader says "try again"; who does not lead says who does; and each
/// of several that leave at once is looked at.
#[test]
fn only_a_leader_that_knows_the_list_refuses_a_replacement_for_good() {
    let mut setup = Setup::new(1);
    setup.nodes = 4;
    let mut c = setup.start();
    c.elect();
    let list = c.leader(0).unwrap();
    let [old, other] = [1, 2].map(|n| NodeId(((list + n) % 4) as u32 + 1));
    let ask = |c: &mut Cluster<Ledger>, i: usize, steps: &[Step]| ask(c, i, 0, steps, false);
    let replace = [Step::Replace { old, new: NodeId(9), address: None }];
    c.create(None, 1, 3).unwrap();
    let reply = ask(&mut c, list, &replace).unwrap();
    assert!(reply.data.get("again").is_some(), "{}", reply.text);
    c.write(1, 1);
    c.run(1000 * MS);
    let reply = ask(&mut c, list, &replace).unwrap();
    assert!(reply.data.get("again").is_none() && reply.text.contains("still in group 1"));
    let hint = Some(NodeId(list as u32 + 1));
    let reply = ask(&mut c, (list + 1) % 4, &replace);
    assert_eq!(reply.err(), Some(Refused::NotLeader(hint)));
    // One has left the group that was made, the other has not.
    let (now, leader) = (c.now, c.led(1));
    c.nodes[leader].woken = true;
    let mover = c.nodes[leader].shard.as_mut().unwrap();
    mover.change_group(now, GroupId(1), &[Step::Remove(old)]).unwrap();
    c.run_until("its leader knows", 3000 * MS, |c| {
        let raft = c.raft(list, 1);
        !raft.membership().is_joint() && !raft.membership().is_member(old)
    });
    let reply = ask(&mut c, list, &[Step::Remove(old), Step::Remove(other)]).unwrap();
    assert!(!reply.done && reply.data.get("needed").is_some(), "{}", reply.text);
}
