//! One test an error: the exact line that the operator reads.

use super::*;

const GOOD: &str = r#"
id = 1
data_dir = "./data"
[cluster]
id = "c"
[[cluster.nodes]]
id = 1
peer = "a:1"
client = "a:2"
"#;

fn address(id: u32) -> NodeAddress {
    let at = |base: u32| format!("127.0.0.1:{}", base + id);
    NodeAddress { id, peer: at(7100), client: at(7200), priority: 1 }
}

fn node() -> NodeConfig {
    NodeConfig::new(1, "./data", ClusterConfig::new("example", (1..=3).map(address).collect()))
}

/// The error of a node that `change` has spoiled.
fn refused(change: impl FnOnce(&mut NodeConfig)) -> String {
    let mut config = node();
    config.origin = "node.toml".to_owned();
    change(&mut config);
    let text = config.validate().expect_err("it must be refused").to_string();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

fn refused_text(text: &str) -> String {
    let text = NodeConfig::parse(text, "n.toml").expect_err("it must be refused").to_string();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

#[test]
fn the_commented_example_shows_exactly_the_defaults() {
    let text = include_str!("../../tuning/node.toml");
    let config = NodeConfig::parse(text, "node").unwrap();
    assert_eq!(config, node());
    config.validate().unwrap();
    let keys: Vec<&str> = text.lines().filter_map(|l| l.split_once(" = ")).map(|l| l.0).collect();
    for key in [
        "spare_segments",
        "pin_cores",
        "wal_write_error_at",
        "rpc_timeout_ms",
        "hibernate_after_ms",
        "sessions_max",
        "# admin",
        "per_group",
    ] {
        assert!(keys.contains(&key), "{key} is not shown");
    }
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = NodeConfig::parse(GOOD, "n.toml").unwrap();
    config.validate().unwrap();
    assert_eq!(config.wal, WalConfig::default());
    assert_eq!(config.cluster.timing, TimingConfig::default());
    assert!(config.cluster.wal_sync);
    assert_eq!((config.wal.segments_max(), config.wal.segment_bytes()), (1024, 64 << 20));
    assert_eq!(config.address().peer, "a:1");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let text = refused_text(&GOOD.replace("data_dir", "datadir"));
    assert_eq!(text, "n.toml:3: unknown key `datadir`; did you mean `data_dir`?");
    let text = refused_text(&format!("{GOOD}\n[wal]\nfrobnicate = 1"));
    assert!(
        text.starts_with("n.toml:12: unknown key `frobnicate`; known here are depth, "),
        "{text}"
    );
}

#[test]
fn a_wrong_type_or_a_missing_key_is_named_with_its_line() {
    let text = refused_text(&GOOD.replace("id = 1\ndata", "id = \"one\"\ndata"));
    assert!(
        text.starts_with("n.toml:2: invalid type: string \"one\", expected u32; mend"),
        "{text}"
    );
    let text = refused_text(&GOOD.replace("id = \"c\"", ""));
    assert!(text.contains("missing field `id`") && text.contains("tuning/node.toml"), "{text}");
    let text = refused_text("id = = 1");
    assert!(text.starts_with("n.toml:1: "), "{text}");
}

#[test]
fn a_heartbeat_that_is_too_slow_for_the_election_timeout_is_refused() {
    assert_eq!(
        refused(|c| c.cluster.timing.heartbeat_ms = 75),
        "node.toml: cluster.timing.heartbeat_ms = 75: not below half of election_timeout_min_ms, \
         so one lost heartbeat starts an election; lower it or raise election_timeout_min_ms"
    );
    let mut config = node();
    config.cluster.timing.heartbeat_ms = 74;
    config.validate().unwrap();
    assert!(refused(|c| c.cluster.timing.election_timeout_max_ms = 150).contains("collide"));
    assert!(refused(|c| c.cluster.timing.rpc_timeout_ms = 0).contains("rpc_timeout_ms = 0"));
}

#[test]
fn zero_and_even_voters_are_refused_unless_even_is_wanted() {
    assert!(refused(|c| c.cluster.nodes.clear()).contains("zero voters can elect no leader"));
    assert_eq!(
        refused(|c| drop(c.cluster.nodes.pop())),
        "node.toml: cluster.nodes = 2: an even number of voters tolerates no more failures than \
         one less; add or remove a node, or set cluster.allow_even_voters = true"
    );
    let mut config = node();
    config.cluster.nodes.pop();
    config.cluster.allow_even_voters = true;
    config.validate().unwrap();
}

#[test]
fn identities_and_addresses_are_checked() {
    assert!(refused(|c| c.id = 9).contains("id = 9: no node of cluster.nodes has this id"));
    assert!(refused(|c| c.cluster.nodes[2].id = 0).contains("ids start at 1"));
    assert!(refused(|c| c.cluster.nodes[2].id = 2).contains("two nodes have this id"));
    assert!(refused(|c| c.cluster.id = " ".to_owned()).contains("the cluster has no name"));
    let twice = refused(|c| c.cluster.nodes[2].client = c.cluster.nodes[0].peer.clone());
    assert!(twice.contains("cluster.nodes.client = 127.0.0.1:7101: this address is used twice"));
    assert!(
        refused(|c| c.cluster.nodes[2].peer = c.cluster.nodes[2].client.clone()).contains("twice")
    );
    for bad in ["localhost", "localhost:", ":7101", "localhost:0", "h:65536", "::1:7101"] {
        let text = refused(|c| c.cluster.nodes[1].peer = bad.to_owned());
        assert!(text.contains("not an address; write host:port"), "{text}");
    }
    let mut config = node();
    config.cluster.nodes[1].peer = "[::1]:7102".to_owned();
    config.validate().unwrap();
}

#[test]
fn the_admin_port_is_off_unless_asked_for_and_needs_an_address_of_its_own() {
    assert_eq!(node().admin, None);
    let text = format!("admin = \"localhost:9\"\n{GOOD}\n[metrics]\nper_group = true");
    let config = NodeConfig::parse(&text, "n.toml").unwrap();
    config.validate().unwrap();
    assert_eq!((config.admin.as_deref(), config.metrics.per_group), (Some("localhost:9"), true));
    let admin = |address: &str| refused(|c| c.admin = Some(address.to_owned()));
    assert!(admin("9101").starts_with("node.toml: admin = 9101: not an address; write host:port"));
    assert_eq!(
        admin("127.0.0.1:7202"),
        "node.toml: admin = 127.0.0.1:7202: this address is used for peers or clients; give the \
         admin port one of its own"
    );
}

#[test]
fn sizes_and_counts_are_checked() {
    for (key, text) in [
        ("cluster.groups", refused(|c| c.cluster.groups = 0)),
        ("cluster.shards", refused(|c| c.cluster.shards = 65)),
        ("cluster.store.queues_max", refused(|c| c.cluster.store.queues_max = 0)),
        (
            "cluster.store.session_answers_max",
            refused(|c| c.cluster.store.session_answers_max = 8191),
        ),
        ("limits.client_connections", refused(|c| c.limits.client_connections = 0)),
        ("limits.cache_mib", refused(|c| c.limits.cache_mib = 257)),
        ("limits.staged_mib", refused(|c| c.limits.staged_mib = 1)),
        ("wal.depth", refused(|c| c.wal.depth = 0)),
        ("wal.block_bytes", refused(|c| c.wal.block_bytes = 3000)),
        ("wal.segment_mib", refused(|c| c.wal.segment_mib = 3)),
        ("wal.log_max_gib", refused(|c| (c.wal.log_max_gib, c.wal.segment_mib) = (1, 512))),
        ("wal.sync_lag_ms", refused(|c| c.wal.sync_lag_ms = 0)),
        ("runtime.spin_us", refused(|c| c.runtime.spin_us = 20_000)),
    ] {
        assert!(text.starts_with(&format!("node.toml: {key} = ")), "{text}");
    }
}

#[test]
fn a_missing_directory_is_named_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let parent = directory.path().join("missing");
    let text = refused(|c| c.data_dir = parent.join("data"));
    assert!(text.contains(&format!("missing directory {}; create it", parent.display())), "{text}");
    assert!(!parent.exists());

    let mut config = node();
    config.data_dir = directory.path().join("data");
    config.validate().unwrap();
    assert!(!config.data_dir.exists(), "validating writes nothing");

    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refused(|c| c.data_dir = file).contains("not a directory"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let text = NodeConfig::load(Path::new("/nowhere/node.toml")).unwrap_err().to_string();
    assert!(text.starts_with("/nowhere/node.toml: cannot be read: "), "{text}");
}

#[test]
fn nodes_that_would_disagree_have_different_hashes_and_others_the_same() {
    let hash = |change: fn(&mut ClusterConfig)| {
        let mut cluster = node().cluster;
        change(&mut cluster);
        cluster.hash()
    };
    let same = hash(|_| ());
    assert_eq!(hash(|c| c.nodes.reverse()), same, "the order of the list does not matter");
    assert_eq!(hash(|c| c.timing.heartbeat_ms = 20), same);
    assert_eq!(hash(|c| c.nodes[0].peer = "moved:1".to_owned()), same);
    assert_eq!(hash(|c| c.nodes[2].id = 4), same, "members change while the cluster runs");
    let different: [fn(&mut ClusterConfig); 5] = [
        |c| c.id = "other".to_owned(),
        |c| c.groups = 2,
        |c| c.shards = 2,
        |c| c.wal_sync = false,
        |c| c.store.dedup_ids_max = 7,
    ];
    for change in different {
        assert_ne!(hash(change), same);
    }
}

#[test]
fn a_cluster_id_is_hex_digits_or_a_name() {
    let id = |name: &str| ClusterConfig::new(name, Vec::new()).cluster_id();
    assert_eq!(id("000000000000000000000000000000ff"), 255);
    assert_eq!(id("example"), id("example"));
    assert_ne!(id("example"), id("example2"));
}

#[test]
fn the_four_built_in_profiles_are_what_their_names_promise() {
    let promised = [(true, 1), (false, 100), (false, 1000), (true, 1000)];
    for (name, (wal_sync, batch_size)) in BUILTIN_PROFILES.into_iter().zip(promised) {
        let profile = Profile::builtin(name).unwrap();
        assert_eq!(profile.name, name);
        assert_eq!((profile.wal_sync, profile.batch_size), (wal_sync, batch_size), "{name}");
        assert_eq!(Profile::named_or_file(name).unwrap(), profile);
    }
}

#[test]
fn a_profile_that_cannot_run_is_refused_with_the_reason() {
    let base = "name = \"x\"\nwal_sync = true\nbatch_size = 10\n";
    Profile::parse(base, "p.toml").unwrap();
    let refused = |more: &str| {
        let text = Profile::parse(&format!("{base}{more}"), "p.toml").unwrap_err().to_string();
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        text
    };
    assert_eq!(
        refused("inflight = 1"),
        "p.toml:4: unknown key `inflight`; did you mean `in_flight`?"
    );
    assert!(refused("value_bytes = 200000").contains("does not fit a block of 1 MiB"));
    assert!(refused("in_flight = 40000").contains("window of a session"));
    assert!(refused("nodes = 4").contains("an even number of voters"));
    assert!(refused("groups = 0").contains("p.toml: groups = 0: out of range; use 1 to 100000"));
    let text = Profile::parse("name = \"x\"\nwal_sync = true", "p.toml").unwrap_err().to_string();
    assert!(text.contains("missing field `batch_size`"), "{text}");
    assert_eq!(
        Profile::named_or_file("finance").unwrap_err().to_string(),
        "unknown profile `finance`; built in are financial, iot, logging, durable-logging; \
         give the path of a .toml file for one of your own"
    );
}
