//! `ringraft group`: which groups there are.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::{Failure, OutputArg, parse_address};
use crate::client::operator::Operator;
use crate::client::status::{ClusterReport, cluster_status};
use crate::ids::GroupId;
use crate::load::options::Output;
use crate::wire::admin::{AdminReply, AdminRequest};

/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(100);

/// Show, make and delete groups while the cluster runs
#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// Show the groups: who leads them, and how far they are
    List {
        #[command(flatten)]
        cluster: ClusterArg,
        /// How the result is printed
        #[arg(long, value_enum, default_value_t)]
        output: OutputArg,
    },
    /// Make groups; they begin with the members that the first group of their shard has
    Create {
        #[command(flatten)]
        cluster: ClusterArg,
        /// The number of the first one: the next one of its shard, or one that is there already
        #[arg(long, value_name = "ID")]
        id: Option<u32>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "id",
              value_parser = clap::value_parser!(u32).range(1..=1024))]
        count: u32,
        #[command(flatten)]
        how: HowArgs,
    },
    /// End groups for good: all that is in them goes, their numbers are not used again
    Delete {
        #[command(flatten)]
        cluster: ClusterArg,
        /// The groups
        #[arg(value_name = "ID", required = true)]
        ids: Vec<u32>,
        #[command(flatten)]
        how: HowArgs,
    },
}

#[derive(Clone, Debug, Args)]
struct ClusterArg {
    /// Client addresses of nodes that run
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', required = true,
          value_parser = parse_address)]
    cluster: Vec<String>,
}

#[derive(Clone, Debug, Args)]
struct HowArgs {
    /// Say what would be done and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait so many seconds at most until it is done on all nodes that answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    output: OutputArg,
}

/// What a shard says of its list.
#[derive(Debug, Deserialize)]
struct Listing {
    groups: Vec<u32>,
    ended: Vec<u32>,
    next: u32,
    most: u32,
}

pub(super) fn run(args: GroupArgs) -> Result<(), Failure> {
    match args.command {
        GroupCommand::List { cluster, output } => list(&cluster.cluster, output.into()),
        GroupCommand::Create { cluster, id, count, how } => {
            Session::open(&cluster.cluster, how)?.create(id, count)
        }
        GroupCommand::Delete { cluster, ids, how } => {
            Session::open(&cluster.cluster, how)?.delete(ids)
        }
    }
}

fn failure(error: impl ToString) -> Failure {
    Failure::Run(error.to_string())
}

/// The cluster as it answers, and the number of its shards.
fn look(cluster: &[String]) -> Result<(ClusterReport, u32), Failure> {
    let report = cluster_status(cluster).map_err(failure)?;
    let shards = report.nodes.iter().flat_map(|node| &node.shards).map(|shard| shard.shards).max();
    let shards = shards.ok_or_else(|| failure("no node answers: check --cluster"))?;
    Ok((report, shards))
}

fn listing(operator: &Operator, shard: u32) -> Result<Listing, Failure> {
    let reply = operator.tell(GroupId(shard), None, AdminRequest::Groups).map_err(failure)?;
    if !reply.done {
        return Err(Failure::Run(reply.text));
    }
    serde_json::from_value(reply.data).map_err(failure)
}

fn list(cluster: &[String], output: Output) -> Result<(), Failure> {
    let (report, shards) = look(cluster)?;
    let operator = Operator::connect(cluster.iter().cloned()).map_err(failure)?;
    let (mut rows, mut ended) = (Vec::new(), Vec::new());
    for shard in 0..shards {
        let listing = listing(&operator, shard)?;
        rows.extend(listing.groups.iter().map(|&group| row(&report, group)));
        ended.extend(listing.ended);
    }
    rows.sort_by_key(|row| row["group"].as_u64());
    ended.sort_unstable();
    match output {
        Output::Json => {
            super::print(&(json!({ "groups": rows, "ended": ended }).to_string() + "\n"))
        }
        Output::Table => {
            let mut text = format!(
                "{:>8} {:>6} {:>6} {:>12} {:>6}\n",
                "group", "leader", "term", "commit", "nodes"
            );
            for row in &rows {
                let number = |key: &str| row[key].as_u64().unwrap_or(0);
                text += &format!(
                    "{:>8} {:>6} {:>6} {:>12} {:>6}\n",
                    number("group"),
                    number("leader"),
                    number("term"),
                    number("commit"),
                    number("nodes")
                );
            }
            text += &format!("{} groups, {} have ended\n", rows.len(), ended.len());
            super::print(&text)
        }
    }
}

/// A group by the node that knows most of it.
fn row(report: &ClusterReport, group: u32) -> serde_json::Value {
    let all = report.groups();
    let replicas: Vec<_> = all.iter().filter(|(_, known)| known.group == group).collect();
    let newest = replicas.iter().map(|(_, known)| known).max_by_key(|g| (g.term, g.commit));
    let (leader, term, commit) = newest.map_or((0, 0, 0), |g| (g.leader, g.term, g.commit));
    json!({
        "group": group, "leader": leader, "term": term, "commit": commit, "nodes": replicas.len()
    })
}

/// One command.
struct Session {
    cluster: Vec<String>,
    operator: Operator,
    how: HowArgs,
    shards: u32,
    until: Instant,
}

impl Session {
    fn open(cluster: &[String], how: HowArgs) -> Result<Self, Failure> {
        let (_, shards) = look(cluster)?;
        let operator = Operator::connect(cluster.iter().cloned()).map_err(failure)?;
        let until = Instant::now() + Duration::from_secs(how.wait.max(5));
        Ok(Self { cluster: cluster.to_vec(), operator, how, shards, until })
    }

    /// Gives a request to the shard's first group; again while it says that it may go later. `till_done`:
    /// until it is applied.
    fn ask(
        &self,
        shard: u32,
        request: &AdminRequest,
        till_done: bool,
    ) -> Result<AdminReply, Failure> {
        loop {
            let reply =
                self.operator.tell(GroupId(shard), None, request.clone()).map_err(failure)?;
            let open = match reply.done {
                true => till_done && reply.data["done"] != json!(true),
                false if reply.data["again"] == json!(true) => true,
                false => return Err(Failure::Run(reply.text)),
            };
            if !open {
                return Ok(reply);
            }
            if Instant::now() > self.until {
                return Err(Failure::Run(format!("not done in time: {}", reply.text)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn create(&self, id: Option<u32>, count: u32) -> Result<(), Failure> {
        let mut made = Vec::new();
        for (shard, count) in self.shares(id, count)? {
            let request = AdminRequest::CreateGroups {
                group: id,
                count,
                request: token(),
                dry: self.how.dry_run,
            };
            let reply = self.ask(shard, &request, !self.how.dry_run)?;
            let groups: Vec<u32> =
                serde_json::from_value(reply.data["groups"].clone()).map_err(failure)?;
            made.extend(groups);
        }
        made.sort_unstable();
        if !self.how.dry_run {
            self.wait(&made, "led", |report| {
                let led = |group: &u32| {
                    let all = report.groups();
                    let mut replicas = all.iter().filter(|(_, known)| known.group == *group);
                    let led = replicas.clone().any(|(_, known)| known.leader != 0);
                    led && replicas.by_ref().count() > 0
                };
                made.iter().filter(|group| led(group)).count()
            })?;
        }
        self.tell(&made, "made", "would be made")
    }

    /// How many groups each shard makes: those whose next numbers are lowest.
    fn shares(&self, id: Option<u32>, count: u32) -> Result<Vec<(u32, u32)>, Failure> {
        if let Some(id) = id {
            return Ok(vec![(id % self.shards, 1)]);
        }
        let mut all = Vec::new();
        for shard in 0..self.shards {
            let Listing { next, groups, most, .. } = listing(&self.operator, shard)?;
            all.push((next, most.saturating_sub(groups.len() as u32), 0, shard));
        }
        for _ in 0..count {
            let free = all.iter_mut().filter(|(_, room, ..)| *room > 0);
            let Some((next, room, share, _)) = free.min_by_key(|(next, ..)| *next) else {
                let text =
                    "there are as many groups as limits.groups permits: delete some or raise it";
                return Err(Failure::Run(text.into()));
            };
            (*next, *room, *share) = (*next + self.shards, *room - 1, *share + 1);
        }
        let shares = all.into_iter().map(|(_, _, share, shard)| (shard, share));
        Ok(shares.filter(|(_, share)| *share > 0).collect())
    }

    fn delete(&self, mut ids: Vec<u32>) -> Result<(), Failure> {
        ids.sort_unstable();
        ids.dedup();
        // All of them are looked at before the first one goes.
        for dry in [true, false] {
            for &group in ids.iter().filter(|_| dry || !self.how.dry_run) {
                let request = AdminRequest::DeleteGroup { group, dry };
                self.ask(group % self.shards, &request, !dry)?;
            }
        }
        if !self.how.dry_run {
            self.wait(&ids, "gone", |report| {
                let settled = report.nodes.iter().flat_map(|node| &node.shards);
                if settled.map(|shard| shard.groups_ending).sum::<u32>() > 0 {
                    return 0;
                }
                let all = report.groups();
                let gone = |group: &&u32| all.iter().all(|(_, known)| known.group != **group);
                ids.iter().filter(gone).count()
            })?;
        }
        self.tell(&ids, "deleted", "would be deleted, and all that is in them")
    }

    /// Waits until all nodes that answer show it.
    fn wait(
        &self,
        groups: &[u32],
        what: &str,
        done: impl Fn(&ClusterReport) -> usize,
    ) -> Result<(), Failure> {
        let bar = ProgressBar::new(groups.len() as u64);
        let style = ProgressStyle::with_template("groups [{bar:40}] {pos}/{len} {msg}")
            .expect("the template is a constant");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_owned());
        loop {
            let (report, _) = look(&self.cluster)?;
            let count = done(&report);
            bar.set_position(count as u64);
            if count == groups.len() {
                bar.finish_and_clear();
                return Ok(());
            }
            if Instant::now() > self.until {
                bar.finish_and_clear();
                let text = format!(
                    "decided, and {count} of {} {what} so far: it goes on by itself, see `ringraft \
                     group list`",
                    groups.len()
                );
                return Err(Failure::Run(text));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn tell(&self, groups: &[u32], done: &str, dry: &str) -> Result<(), Failure> {
        let Output::Table = self.how.output.into() else {
            let told = json!({ "groups": groups, "dry_run": self.how.dry_run });
            return super::print(&(told.to_string() + "\n"));
        };
        let names: Vec<_> = groups.iter().map(u32::to_string).collect();
        let what = if self.how.dry_run { dry } else { done };
        super::print(&format!("{} groups {what}: {}\n", groups.len(), names.join(" ")))
    }
}

/// Names a request, so that one that is asked twice is carried out once.
fn token() -> u64 {
    let random = crate::runtime::entropy::random().unwrap_or_default() as u64;
    random ^ u64::from(std::process::id()) << 32 | 1
}
