//! The port for operators: figures that move and agree with the status, health that tells the truth,
//! and bad requests that harm nobody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use ringraft::shard::ShardStatus;

use crate::cluster::{Cluster, PATIENT, Spec, free_port};
use crate::load::{Load, STEADY};
use crate::openmetrics::Page;
use crate::process::{PATIENCE, eventually};

/// A cluster whose nodes have admin ports.
pub struct Stage {
    pub cluster: Cluster,
    ports: Vec<u16>,
}

impl Stage {
    /// Writes the files and starts nothing. `extra` comes at their end.
    fn prepare(spec: Spec, extra: &str) -> Self {
        let cluster = Cluster::prepare(spec);
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        for (node, port) in ports.iter().enumerate() {
            cluster.configure(node, cluster.spec().timing, extra);
            let path = cluster.config_path(node);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, format!("admin = \"127.0.0.1:{port}\"\n{text}")).unwrap();
        }
        Self { cluster, ports }
    }

    pub fn start(spec: Spec, extra: &str) -> Self {
        let mut stage = Self::prepare(spec, extra);
        (0..3).for_each(|node| stage.cluster.start_node(node));
        stage.cluster.wait_for_leaders();
        stage
    }

    fn get(&self, node: usize, path: &str) -> Option<(u16, String)> {
        request(self.ports[node], format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
    }

    fn page(&self, node: usize) -> Page {
        let (status, body) = self.get(node, "/metrics").expect("the node answers");
        assert_eq!(status, 200, "{body}");
        Page::parse(&body)
    }

    fn ready(&self, node: usize) -> Option<(u16, String)> {
        self.get(node, "/health/ready")
    }

    pub fn wait_for(&self, node: usize, path: &str, status: u16, words: &str) {
        eventually(&format!("{path} says {status} {words:?}"), PATIENCE, || {
            self.get(node, path).filter(|(s, body)| *s == status && body.contains(words))
        });
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

/// Status and body of the answer to these bytes; `None` if nobody is there.
fn request(port: u16, bytes: &[u8]) -> Option<(u16, String)> {
    let mut stream = connect(port)?;
    stream.write_all(bytes).ok()?;
    answer(&mut stream)
}

fn answer(stream: &mut TcpStream) -> Option<(u16, String)> {
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    assert!(body.is_empty() || length == body.len().to_string(), "{head}");
    Some((status, body.to_owned()))
}

#[test]
fn figures_move_under_load_never_fall_and_agree_with_the_status_at_the_end() {
    let spec = Spec { shards: 2, groups: 4, timing: PATIENT, ..Spec::default() };
    let stage = Stage::start(spec, "[metrics]\nper_group = true\n");
    let load = Load::start(&stage.cluster, STEADY);
    let mut before: Vec<Page> = (0..3).map(|node| stage.page(node)).collect();
    for _ in 0..5 {
        load.wait_for(200);
        for (node, earlier) in before.iter_mut().enumerate() {
            let page = stage.page(node);
            for key in &earlier.counters {
                assert!(page.get(key) >= earlier.get(key), "{key} fell on node {}", node + 1);
            }
            for moves in ["raft_blocks_applied_total", "wal_flushes_total", "net_sent_bytes_total"]
            {
                assert!(page.get(moves) > earlier.get(moves), "{moves} stands still");
            }
            *earlier = page;
        }
    }
    let blocks = load.finish().entries.len() as f64;
    let led: f64 = (0..3).map(|node| stage.page(node).get("raft_groups{role=\"leader\"}")).sum();
    assert_eq!(led, 4.0, "one leader a group");
    let measured = |stage_name: &str| -> f64 {
        let key = format!("raft_commit_stage_seconds_count{{stage=\"{stage_name}\"}}");
        (0..3).map(|node| stage.page(node).get(&key)).sum()
    };
    // Several blocks of one group may share a probe; no probe is lost.
    let committed = measured("committed");
    assert!(committed > 100.0 && committed <= blocks, "{committed} of {blocks}");
    eventually("every probe goes through all stages", PATIENCE, || {
        (measured("logged") == committed && measured("applied") == committed).then_some(())
    });
    agrees_with_status(&stage);
}

fn agrees_with_status(stage: &Stage) {
    let report = stage.cluster.wait_until_equal();
    for (node, told) in report.nodes.iter().enumerate() {
        eventually("the last acknowledgements arrive", PATIENCE, || {
            (stage.page(node).sum("raft_replication_lag_entries") == 0.0).then_some(())
        });
        let page = stage.page(node);
        let of_groups = |of: fn(&ringraft::shard::GroupStatus) -> u64| -> f64 {
            told.shards.iter().flat_map(|shard| &shard.groups).map(|g| of(g) as f64).sum()
        };
        let of_shards = |of: fn(&ShardStatus) -> u64| -> f64 {
            told.shards.iter().map(|shard| of(shard) as f64).sum()
        };
        assert_eq!(page.get("raft_commit_index"), of_groups(|g| g.commit));
        assert_eq!(page.get("raft_applied_index"), of_groups(|g| g.applied));
        assert_eq!(page.get("raft_last_index"), of_groups(|g| g.last));
        assert_eq!(page.sum("raft_group_applied_index"), of_groups(|g| g.applied));
        assert_eq!(page.get("raft_groups_without_leader"), 0.0);
        assert_eq!(page.get("raft_peers_connected"), 2.0);
        assert_eq!(page.get("raft_commands_applied_total"), of_shards(|s| s.commands_applied));
        assert_eq!(page.sum("proposals_refused_total"), of_shards(|s| s.proposals_refused));
        assert_eq!(page.get("wal_flushes_total"), of_shards(|s| s.flushes));
        assert_eq!(page.get("wal_flush_commands_count"), of_shards(|s| s.flushes));
        assert_eq!(page.get("wal_written_bytes_total"), of_shards(|s| s.wal_bytes));
        assert!(page.get("wal_sync_seconds_count{op=\"write\"}") > 0.0);
        assert_eq!(page.get("ringraft_shards_answering"), 2.0);
        let (status, json) = stage.get(node, "/cluster/status").unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let shards: Vec<ShardStatus> =
            serde_json::from_value(json["nodes"][0]["shards"].take()).unwrap();
        assert_eq!((status, &shards), (200, &told.shards));
        assert_eq!(json["nodes"][0]["error"], serde_json::Value::Null);
    }
}

#[test]
fn a_node_without_a_quorum_is_live_and_not_ready() {
    let mut stage = Stage::prepare(Spec { groups: 2, ..Spec::default() }, "");
    assert_eq!(stage.ready(0), None, "nobody is there yet");
    stage.cluster.start_node(0);
    stage.wait_for(0, "/health/live", 200, "live");
    stage.wait_for(0, "/health/ready", 503, "2 of 2 groups of shard 0 know no leader: 0, 1");
    stage.cluster.start_node(1);
    stage.wait_for(0, "/health/ready", 200, "ready");
    stage.wait_for(1, "/health/ready", 200, "ready");
    assert!(stage.page(0).get("raft_term") >= 1.0);
    stage.cluster.kill(1);
    stage.wait_for(0, "/health/ready", 503, "know no leader");
    stage.wait_for(0, "/health/live", 200, "live");
    assert_eq!(stage.page(0).get("raft_peers_connected"), 0.0);
    stage.cluster.terminate(0);
    assert_eq!(stage.ready(0), None, "the port goes with the node");
}

#[test]
fn bad_requests_are_refused_and_slow_ones_hold_up_nobody_else() {
    let stage = Stage::start(Spec::default(), "");
    let port = stage.ports[0];
    // Fewer than there are threads: each says half of a request, and nothing more.
    let mut slow: Vec<_> = (0..3).map(|_| connect(port).unwrap()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET /metrics HT").unwrap());
    let status = |bytes: &[u8]| request(port, bytes).map(|(status, _)| status);
    assert_eq!(status(b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), Some(405));
    assert_eq!(status(b"GET /secrets HTTP/1.1\r\n\r\n"), Some(404));
    assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00"), Some(400));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(32 << 10));
    assert_eq!(status(long.as_bytes()), Some(431));
    assert_eq!(request(port, b"HEAD /metrics HTTP/1.1\r\n\r\n").unwrap(), (200, String::new()));
    stage.page(0);
    for stream in &mut slow {
        assert_eq!(answer(stream).unwrap().0, 408);
    }
    // Far more than are served at once, all gone before they are answered.
    drop((0..100).map(|_| connect(port)).collect::<Vec<_>>());
    stage.wait_for(0, "/health/ready", 200, "ready");
}

#[test]
fn a_stopped_process_answers_again_when_it_goes_on() {
    let mut stage = Stage::start(Spec::default(), "");
    stage.cluster.node(2).pause();
    let mut waiting = connect(stage.ports[2]).unwrap();
    waiting.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "nobody answers");
    stage.cluster.node(2).signal(libc::SIGCONT);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let (status, body) = answer(&mut waiting).unwrap();
    assert_eq!(status, 200, "{body}");
    stage.wait_for(2, "/health/ready", 200, "ready");
}

#[test]
fn every_metric_is_explained_in_the_documents_and_no_other() {
    let stage = Stage::start(Spec::default(), "[metrics]\nper_group = true\n");
    let page = stage.page(0);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("## Metrics").expect("a section of its own");
    let table = table.split("\n## ").next().unwrap();
    let named = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: std::collections::BTreeSet<String> =
        named.map(|name| name.split('{').next().unwrap().to_owned()).collect();
    let full = |(name, kind): (&String, &String)| match kind.as_str() {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.clone(),
    };
    let shown: std::collections::BTreeSet<String> = page.families.iter().map(full).collect();
    assert_eq!(documented, shown);
}
