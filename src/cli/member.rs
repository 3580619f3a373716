//! `ringraft member`: who takes part in the groups.

mod change;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use self::change::{Change, Refusal};
use super::{Failure, OutputArg, parse_address};
use crate::client::NODES_MAX;
use crate::client::operator::Operator;
use crate::client::status::cluster_status;
use crate::ids::{GroupId, NodeId};
use crate::load::options::Output;
use crate::wire::admin::{AdminReply, AdminRequest, MemberStep};

/// Between two looks at how far a change is.
const PAUSE: Duration = Duration::from_millis(100);
/// How long `list` looks for leaders, of all groups together.
const LIST_LIMIT: Duration = Duration::from_secs(5);

/// Show and change which nodes take part: add, remove, promote, demote, replace
#[derive(Debug, Args)]
pub(super) struct MemberArgs {
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// Show the members of the groups as their leaders see them
    List {
        #[command(flatten)]
        whole: ClusterArgs,
        /// How the result is printed
        #[arg(long, value_enum, default_value_t)]
        output: OutputArg,
    },
    /// Take a node in; it votes as soon as it has caught up. Start it with `join = true`
    Add {
        #[command(flatten)]
        place: PlaceArgs,
        /// It gets the log and never votes
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a node go
    Remove {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make a learner a voter, as soon as it has caught up
    Promote {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make a voter a learner
    Demote {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take a node in, and let another one go when it has caught up
    Replace {
        /// The node that goes
        #[arg(long, value_name = "ID")]
        old: u32,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

#[derive(Clone, Debug, Args)]
struct ClusterArgs {
    /// Client addresses of nodes that run
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true,
          value_parser = parse_address)]
    cluster: Vec<String>,
    /// Only this group; else all
    #[arg(long, value_name = "ID")]
    group: Option<u32>,
}

#[derive(Clone, Copy, Debug, Args)]
struct NodeArg {
    /// The node
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
}

#[derive(Clone, Debug, Args)]
struct PlaceArgs {
    /// The new node
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    /// Where it listens for the other nodes
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    peer: String,
    /// Where it listens for clients
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    client: String,
}

#[derive(Clone, Debug, Args)]
struct ChangeArgs {
    #[command(flatten)]
    whole: ClusterArgs,
    /// Also if a group would have no quorum of nodes that answer
    #[arg(long)]
    force: bool,
    /// Say what it would mean and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait so many seconds at most until it is done; 0 = only begin it
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait: u64,
}

/// A member as the shard tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    node: u32,
    role: String,
    leads: bool,
    matched: u64,
    live: bool,
    /// By its own word: what it has committed is not in its leader's log.
    #[serde(default)]
    parted: bool,
    /// Who leaves when this one gets its vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Members {
    /// Who says this, and whom it takes for the leader; 0 = nobody.
    node: u32,
    leader: u32,
    index: u64,
    committed: bool,
    joint: bool,
    last: u64,
    members: Vec<Row>,
}

impl Members {
    /// Nobody else knows who is live, how far they are, and whether a change is still under way.
    fn is_of_leader(&self) -> bool {
        self.node == self.leader
    }

    fn client(&self, node: u32) -> Option<&str> {
        self.members.iter().find(|row| row.node == node)?.client.as_deref()
    }

    fn role(&self, node: u32) -> Option<&str> {
        self.members.iter().find(|row| row.node == node).map(|row| row.role.as_str())
    }

    /// What a leader cannot know: which replicas say that they cannot follow it.
    fn mark_parted(&mut self, parted: &[(u32, u32)], group: GroupId) {
        for row in &mut self.members {
            row.parted = parted.contains(&(row.node, group.0));
        }
    }

    fn line(&self, group: GroupId) -> String {
        let member = |row: &Row| {
            let mark = if row.leads { "*" } else { "" };
            let silent = if row.live { "" } else { ", silent" };
            let parted = if row.parted { ", PARTED" } else { "" };
            let replaces = row.replaces.map_or(String::new(), |old| format!(", replaces {old}"));
            let lag = self.last.saturating_sub(row.matched);
            let lag =
                if row.matched > 0 && lag > 0 { format!(", lags {lag}") } else { String::new() };
            format!("{}{mark} ({}{replaces}{silent}{parted}{lag})", row.node, row.role)
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        let open = if self.joint || !self.committed { "  changing" } else { "" };
        let whose = match self.is_of_leader() {
            true => String::new(),
            false => format!("  as node {} sees it: no leader answers", self.node),
        };
        format!("{group:<8} {:>8}  {}{open}{whose}\n", self.index, members.join("  "))
    }
}

pub(super) fn run(args: MemberArgs) -> Result<(), Failure> {
    let place = |place: PlaceArgs| (place.node, place.peer, place.client);
    let (step, change) = match args.command {
        MemberCommand::List { whole, output } => return list(&whole, output.into()),
        MemberCommand::Add { place: at, learner, change } => {
            let (node, peer, client) = place(at);
            (MemberStep::Add { node, votes: !learner, peer, client }, change)
        }
        MemberCommand::Remove { node, change } => (MemberStep::Remove { node: node.node }, change),
        MemberCommand::Promote { node, change } => {
            (MemberStep::Promote { node: node.node }, change)
        }
        MemberCommand::Demote { node, change } => (MemberStep::Demote { node: node.node }, change),
        MemberCommand::Replace { old, place: at, change } => {
            let (node, peer, client) = place(at);
            (MemberStep::Replace { old, node, peer, client }, change)
        }
    };
    let alone = change.whole.group.is_some();
    carry_out(&Change { alone, ..Change::of(step) }, &change)
}

fn failure(error: impl ToString) -> Failure {
    Failure::Run(error.to_string())
}

/// The groups that are meant.
fn groups(whole: &ClusterArgs) -> Result<Vec<GroupId>, Failure> {
    if let Some(group) = whole.group {
        return Ok(vec![GroupId(group)]);
    }
    let report = cluster_status(&whole.cluster).map_err(failure)?;
    let shards = report.nodes.iter().flat_map(|node| &node.shards);
    let mut groups: Vec<_> =
        shards.flat_map(|shard| &shard.groups).map(|group| GroupId(group.group)).collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.is_empty() { Err(failure("no node answers: check --cluster")) } else { Ok(groups) }
}

/// The members of a group as its leader sees them; if none answers until then, as somebody does.
fn members(operator: &Operator, group: GroupId, until: Instant) -> Result<Members, Failure> {
    let ask = |node: Option<u32>, address: Option<&str>| {
        let node = node.map(NodeId);
        let tell = |operator: &Operator| operator.tell(group, node, AdminRequest::Members);
        let reply = match (tell(operator), address) {
            // A leader that joined later may not be in the list of this command.
            (Err(_), Some(address)) => tell(&Operator::connect([address]).map_err(failure)?),
            (reply, _) => reply,
        };
        serde_json::from_value(reply.map_err(failure)?.data).map_err(failure)
    };
    from_leader(ask, until)
}

/// Asks somebody, and then whomever that takes for the leader, until a leader has answered. Who was
/// taken out of the group knows of no leader for good: the members are asked then.
fn from_leader(
    mut ask: impl FnMut(Option<u32>, Option<&str>) -> Result<Members, Failure>,
    until: Instant,
) -> Result<Members, Failure> {
    let mut found = ask(None, None);
    loop {
        let next = match &found {
            Ok(members) if members.is_of_leader() => return found,
            Ok(members) if members.leader > 0 => vec![members.leader],
            Ok(members) => members.members.iter().map(|row| row.node).collect(),
            Err(_) => Vec::new(),
        };
        if Instant::now() >= until {
            return found;
        }
        let mut told = None;
        for node in next {
            let client = found.as_ref().ok().and_then(|members| members.client(node));
            let Ok(said) = ask(Some(node), client) else { continue };
            if said.is_of_leader() {
                return Ok(said);
            }
            if said.leader > 0 {
                told = Some(said);
                break;
            }
        }
        std::thread::sleep(PAUSE);
        found = match told {
            Some(said) => Ok(said),
            None => ask(None, None).or(found),
        };
    }
}

fn list(whole: &ClusterArgs, output: Output) -> Result<(), Failure> {
    let operator = Operator::connect(whole.cluster.clone()).map_err(failure)?;
    let mut text = format!("{:<8} {:>8}  members (* leads)\n", "group", "index");
    let mut all = serde_json::Map::new();
    let until = Instant::now() + LIST_LIMIT;
    let mut lists = Vec::new();
    for group in groups(whole)? {
        lists.push((group, members(&operator, group, until)?));
    }
    let parted = parted_replicas(whole, &lists)?;
    for (group, mut found) in lists {
        found.mark_parted(&parted, group);
        text += &found.line(group);
        for row in found.members.iter().filter(|row| whole.group.is_some() && row.client.is_some())
        {
            let client = row.client.as_deref().unwrap_or_default();
            text += &format!("{:<18}node {} at {client}\n", "", row.node);
        }
        all.insert(group.to_string(), serde_json::to_value(&found).map_err(failure)?);
    }
    if !parted.is_empty() {
        text += "PARTED: the node has committed what its leader lost; see \"Lost quorum\" in the \
                 operations guide\n";
    }
    match output {
        Output::Table => super::print(&text),
        Output::Json => super::print(&(serde_json::Value::Object(all).to_string() + "\n")),
    }
}

/// Nodes and groups of replicas that have parted, by their own word: of the nodes of this command and
/// of all members whose address is known. Who does not answer says nothing.
fn parted_replicas(
    whole: &ClusterArgs,
    lists: &[(GroupId, Members)],
) -> Result<Vec<(u32, u32)>, Failure> {
    let rows = lists.iter().flat_map(|(_, found)| &found.members);
    let known = rows.filter_map(|row| row.client.clone());
    let known: BTreeSet<_> = known.filter(|address| !whole.cluster.contains(address)).collect();
    let mut addresses: Vec<_> = whole.cluster.iter().cloned().chain(known).collect();
    addresses.truncate(NODES_MAX);
    let report = cluster_status(&addresses).map_err(failure)?;
    let parted = report.groups().into_iter().filter(|(_, group)| group.parted);
    Ok(parted.map(|(node, group)| (node, group.group)).collect())
}

fn carry_out(change: &Change, args: &ChangeArgs) -> Result<(), Failure> {
    let groups = groups(&args.whole)?;
    let addresses = args.whole.cluster.iter().chain(&change.further).cloned();
    let operator = Operator::connect(addresses).map_err(failure)?;
    let until = Instant::now() + Duration::from_secs(args.wait.max(30));
    let mut open = Vec::new();
    for &group in &groups {
        let found = members(&operator, group, until)?;
        if !found.is_of_leader() {
            return Err(Failure::Run(format!("group {group}: no leader answers; try again later")));
        }
        if let Some(why) = change.why_never(&found) {
            return Err(Failure::Run(format!("group {group}: {why}")));
        }
        if !change.is_begun(&found) {
            open.push(group);
        }
    }
    look_before(&operator, change, args, &open, until)?;
    if args.dry_run {
        return Ok(());
    }
    if matches!(change.step, MemberStep::Remove { .. }) {
        // The first groups of the shards last: there a node hears which others there are.
        open.reverse();
    }
    for &group in &open {
        ask(&operator, group, change, args.force, false, until)?;
    }
    if args.wait > 0 { wait(&operator, change, &groups, until) } else { Ok(()) }
}

/// Every group says what the change would mean before any of them begins it.
fn look_before(
    operator: &Operator,
    change: &Change,
    args: &ChangeArgs,
    groups: &[GroupId],
    until: Instant,
) -> Result<(), Failure> {
    let mut said: Vec<(String, usize)> = Vec::new();
    for &group in groups {
        let reply = ask(operator, group, change, args.force, true, until)?;
        match said.iter_mut().find(|(text, _)| *text == reply.text) {
            Some((_, count)) => *count += 1,
            None => said.push((reply.text, 1)),
        }
    }
    said.iter().try_for_each(|(text, count)| super::print(&format!("{count} groups: {text}\n")))
}

/// Gives the change to a group's leader; again while another change is under way.
fn ask(
    operator: &Operator,
    group: GroupId,
    change: &Change,
    force: bool,
    dry: bool,
    until: Instant,
) -> Result<AdminReply, Failure> {
    loop {
        let steps = vec![change.step.clone()];
        let request = AdminRequest::Change { steps, force, dry };
        let reply = operator.tell(group, None, request).map_err(failure)?;
        if reply.done {
            return Ok(reply);
        }
        let answer = Refusal::of(&reply, change.alone, dry);
        if let Refusal::GoesWithTheOthers(means) = answer {
            return Ok(AdminReply::done(means));
        }
        let again = answer == Refusal::ForNow && Instant::now() < until;
        // It may have been done: the answer was lost with its leader, and this is about a second copy.
        if !again && !dry && change.is_begun(&members(operator, group, until)?) {
            return Ok(reply);
        }
        if !again {
            return Err(Failure::Run(format!("group {group}: {}", reply.text)));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until every group has done it.
fn wait(
    operator: &Operator,
    change: &Change,
    groups: &[GroupId],
    until: Instant,
) -> Result<(), Failure> {
    let bar = ProgressBar::new(groups.len() as u64);
    let style = ProgressStyle::with_template("groups [{bar:40}] {pos}/{len}  {msg}")
        .expect("the template is a constant");
    bar.set_style(style.progress_chars("=> "));
    let mut open = groups.to_vec();
    while let Some(&group) = open.last() {
        let now = members(operator, group, until)?;
        if change.is_done(&now) {
            open.pop();
            bar.inc(1);
            continue;
        }
        if Instant::now() > until {
            bar.finish_and_clear();
            let text = format!(
                "{} groups are not done; group {group}: {}it goes on by itself, see `ringraft member list`",
                open.len(),
                now.line(group).replace('\n', "; ")
            );
            return Err(Failure::Run(text));
        }
        let node = change.goals[0].0;
        let held = now.members.iter().find(|row| row.node == node).map_or(0, |row| row.matched);
        bar.set_message(format!("group {group}: node {node} holds {held} of {}", now.last));
        std::thread::sleep(PAUSE);
    }
    bar.finish_and_clear();
    super::print(&format!("done in {} groups\n", groups.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn seen_by(node: u32, leader: u32, ids: &[u32]) -> Members {
        let row = |&node: &u32| Row {
            node,
            role: "voter".into(),
            leads: node == leader,
            matched: 0,
            live: true,
            parted: false,
            replaces: None,
            peer: None,
            client: Some(format!("h{node}:2")),
        };
        let members = ids.iter().map(row).collect();
        Members { node, leader, index: 1, committed: true, joint: false, last: 9, members }
    }

    /// Story: n1 was away when 4 joined, and believes that n2 leads. Removing 4 was done, by its word.
    #[test]
    fn a_change_is_done_by_the_word_of_the_leader_and_of_nobody_else() {
        let change = Change::of(MemberStep::Remove { node: 4 });
        let (old, new) = (seen_by(1, 2, &[1, 2, 3]), seen_by(3, 3, &[1, 2, 3, 4]));
        assert!(!change.is_done(&old));
        let mut asked = Vec::new();
        let ask = |node: Option<u32>, address: Option<&str>| {
            asked.push((node, address.map(str::to_owned)));
            match node {
                None => Ok(old.clone()),
                Some(2) => Ok(seen_by(2, 3, &[1, 2, 3])),
                Some(_) => Ok(new.clone()),
            }
        };
        let found = from_leader(ask, Instant::now() + LIST_LIMIT).unwrap();
        assert_eq!((found.node, change.is_done(&found)), (3, false));
        let address = |node| Some(format!("h{node}:2"));
        assert_eq!(asked, [(None, None), (Some(2), address(2)), (Some(3), address(3))]);
    }

    /// Story: n1 was taken out, knows of no leader, and is asked first. n2 is down.
    #[test]
    fn who_was_taken_out_is_not_waited_for() {
        let ask = |node: Option<u32>, _: Option<&str>| match node {
            None => Ok(seen_by(1, 0, &[2, 3, 4])),
            Some(2) => Err(failure("cannot be reached")),
            Some(3) => Ok(seen_by(3, 4, &[2, 3, 4])),
            Some(_) => Ok(seen_by(4, 4, &[2, 3, 4])),
        };
        let found = from_leader(ask, Instant::now() + LIST_LIMIT).unwrap();
        assert!(found.is_of_leader() && found.node == 4);
    }

    #[test]
    fn a_replica_that_has_parted_is_named_in_its_group() {
        let mut found = seen_by(1, 1, &[1, 2, 4]);
        found.mark_parted(&[(4, 7), (2, 8)], GroupId(7));
        let line = found.line(GroupId(7));
        assert!(line.contains("4 (voter, PARTED)") && line.contains("2 (voter)"), "{line}");
    }

    #[test]
    fn where_no_leader_answers_the_list_says_whose_view_it_is() {
        let ask = |node: Option<u32>, _: Option<&str>| match node {
            None => Ok(seen_by(1, 2, &[1, 2, 3])),
            Some(_) => Err(failure("cannot be reached")),
        };
        let found = from_leader(ask, Instant::now()).unwrap();
        assert!(found.line(GroupId(0)).contains("as node 1 sees it: no leader answers"));
        assert!(!seen_by(2, 2, &[1, 2]).line(GroupId(0)).contains("sees it"));
    }
}
