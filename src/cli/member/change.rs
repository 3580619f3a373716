//! What a change of members is to lead to, how far it is, and what a refusal of it means.

use super::Members;
use crate::wire::admin::{AdminReply, MemberStep};

/// A change and how it shows that it is done.
pub(super) struct Change {
    pub step: MemberStep,
    /// Whom to watch, and what it is to be; `None`: gone.
    pub goals: Vec<(u32, Option<&'static str>)>,
    /// Addresses of nodes that may lead when it is done.
    pub further: Vec<String>,
    /// In one group only: it is no use to wait for the others.
    pub alone: bool,
}

impl Change {
    pub fn of(step: MemberStep) -> Self {
        let (goals, further) = match &step {
            MemberStep::Add { node, votes, client, .. } => {
                let role = if *votes { "voter" } else { "learner" };
                (vec![(*node, Some(role))], vec![client.clone()])
            }
            MemberStep::Remove { node } => (vec![(*node, None)], Vec::new()),
            MemberStep::Promote { node } => (vec![(*node, Some("voter"))], Vec::new()),
            MemberStep::Demote { node } => (vec![(*node, Some("learner"))], Vec::new()),
            MemberStep::Replace { old, node, client, .. } => {
                (vec![(*node, Some("voter")), (*old, None)], vec![client.clone()])
            }
        };
        Self { step, goals, further, alone: false }
    }

    pub fn is_done(&self, members: &Members) -> bool {
        let reached = |(node, role): &(u32, Option<&str>)| members.role(*node) == *role;
        members.is_of_leader()
            && members.committed
            && !members.joint
            && self.goals.iter().all(reached)
    }

    /// It was begun, now or at an earlier call, and goes on by itself.
    pub fn is_begun(&self, members: &Members) -> bool {
        let (node, role) = self.goals[0];
        let now = members.role(node);
        let begun = now == role || (role == Some("voter") && now == Some("joining"));
        begun && self.goes_too(members)
    }

    /// Whoever is replaced goes with the change under way, or has gone.
    fn goes_too(&self, members: &Members) -> bool {
        let Some(old) = self.replaced() else { return true };
        let new = members.members.iter().find(|row| row.node == self.goals[0].0);
        let is_replaced = new.is_some_and(|row| row.replaces == Some(old));
        is_replaced || matches!(members.role(old), None | Some("leaving"))
    }

    fn replaced(&self) -> Option<u32> {
        match self.step {
            MemberStep::Replace { old, .. } => Some(old),
            _ => None,
        }
    }

    /// Why this can never come about from here, and what does: who is a member already takes nobody's
    /// place.
    pub fn why_never(&self, members: &Members) -> Option<String> {
        let (old, new) = (self.replaced()?, self.goals[0].0);
        let first = match members.role(new)? {
            _ if self.goes_too(members) => return None,
            "learner" => format!("give it a vote (`ringraft member promote --node {new}`), then"),
            // Or its leader's build does not say whose place it takes.
            "joining" => {
                "wait until it votes in all groups (`member list`), and if the old one is still \
                          there then,"
                    .to_owned()
            }
            _ => "where it votes in all groups".to_owned(),
        };
        Some(format!(
            "node {new} is a member already and takes nobody's place: {first} take the old one out \
             with `ringraft member remove --node {old}`"
        ))
    }
}

/// What a refusal means for a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    ForGood,
    /// It is asked for again.
    ForNow,
    /// Asked whether it would go: it will, once this command has changed the other groups. What it
    /// would mean.
    GoesWithTheOthers(String),
}

impl Refusal {
    /// `alone`: the others are not changed; `dry`: nothing is.
    pub fn of(reply: &AdminReply, alone: bool, dry: bool) -> Self {
        let has = |key: &str| reply.data.get(key).is_some();
        match reply.data.get("means").and_then(|means| means.as_str()) {
            Some(means) if dry && !alone => Self::GoesWithTheOthers(means.to_owned()),
            Some(_) if dry => Self::ForGood,
            _ if alone && has("needed") => Self::ForGood,
            _ if has("again") => Self::ForNow,
            _ => Self::ForGood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::seen_by;
    use super::*;

    fn replace(old: u32, node: u32) -> Change {
        let (peer, client) = ("h:1".to_owned(), "h:2".to_owned());
        Change::of(MemberStep::Replace { old, node, peer, client })
    }

    /// Nodes 1 to 4, all of them voters but one.
    fn seen(node: u32, role: &str, replaces: Option<u32>) -> Members {
        let mut members = seen_by(1, 1, &[1, 2, 3, 4]);
        let row = members.members.iter_mut().find(|row| row.node == node).unwrap();
        (row.role, row.replaces) = (role.into(), replaces);
        members
    }

    /// Story: node 4 was added, and later was to replace node 3. Nothing was asked for, the command
    /// waited ten minutes, said that it goes on by itself, and node 3 stayed for ever.
    #[test]
    fn a_member_takes_nobodys_place_and_the_command_says_what_does() {
        let change = replace(3, 4);
        for role in ["voter", "joining", "learner"] {
            let members = seen(4, role, None);
            assert!(!change.is_begun(&members) && !change.is_done(&members), "{role}");
            let why = change.why_never(&members).expect(role);
            assert!(why.contains("member remove --node 3"), "{why}");
            assert_eq!(why.contains("member promote --node 4"), role == "learner", "{why}");
        }
        let other = seen(4, "joining", Some(2));
        assert!(!change.is_begun(&other) && change.why_never(&other).is_some());
    }

    #[test]
    fn a_replacement_under_way_is_waited_for_and_not_asked_for_again() {
        let change = replace(3, 4);
        let before = seen_by(1, 1, &[1, 2, 3]);
        assert!(!change.is_begun(&before) && change.why_never(&before).is_none());
        let joins = seen(4, "joining", Some(3));
        let leaves = seen(3, "leaving", None);
        let after = seen_by(1, 1, &[1, 2, 4]);
        for members in [&joins, &leaves, &after] {
            assert!(change.is_begun(members) && change.why_never(members).is_none());
        }
        assert!(change.is_done(&after) && !change.is_done(&joins) && !change.is_done(&leaves));
    }

    #[test]
    fn what_waits_for_the_other_groups_is_no_refusal_of_a_command_that_changes_them() {
        let data = serde_json::json!({ "again": true, "needed": true, "means": "3 become 2" });
        let needed = AdminReply::refused("still in group 2").with(data);
        let means = Refusal::GoesWithTheOthers("3 become 2".into());
        assert_eq!(Refusal::of(&needed, false, true), means);
        assert_eq!(Refusal::of(&needed, false, false), Refusal::ForNow);
        assert_eq!(Refusal::of(&needed, true, true), Refusal::ForGood);
        assert_eq!(Refusal::of(&needed, true, false), Refusal::ForGood);
        let outside = AdminReply::refused("cannot know");
        assert_eq!(Refusal::of(&outside, false, true), Refusal::ForGood);
    }
}
