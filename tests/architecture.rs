//! The architecture is a test: who may name whom, what the pure layers must not know, and what is
//! allowed nowhere. A breach is printed with its file and line.
//!
//! Comments and string literals are taken out first, so that prose may name what code may not.

use std::path::{Path, PathBuf};

/// Largest source file, bytes.
const FILE_BYTES_MAX: usize = 24 << 10;

/// What each layer may use beside itself. Everything below `runtime` is pure.
const LAYERS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("block", &["ids"]),
    // Who takes part: read and written wherever a group is.
    ("membership", &["ids"]),
    ("raft", &["membership", "block", "ids"]),
    // What every shard counts in; anybody may.
    ("metrics", &[]),
    ("wal", &["metrics", "membership", "block", "ids"]),
    ("machine", &["block", "ids"]),
    // Sideways, and only its messages: see `arrow`.
    ("wire", &["membership", "block", "ids", "raft"]),
    ("snapshot", &["machine", "membership", "block", "ids"]),
    (
        "shard",
        &["snapshot", "membership", "wal", "raft", "machine", "wire", "metrics", "block", "ids"],
    ),
    ("sim", &["shard", "membership", "wal", "raft", "machine", "wire", "block", "ids"]),
    ("config", &["shard", "wal", "raft", "machine", "wire", "block", "ids"]),
    (
        "runtime",
        &["metrics", "membership", "shard", "wal", "raft", "machine", "wire", "block", "ids"],
    ),
    ("client", &["membership", "runtime", "shard", "config", "metrics", "wire", "block", "ids"]),
    (
        "load",
        &["client", "runtime", "shard", "config", "metrics", "machine", "wire", "block", "ids"],
    ),
    (
        "server",
        &[
            "runtime",
            "config",
            "metrics",
            "shard",
            "membership",
            "wal",
            "raft",
            "machine",
            "wire",
            "block",
            "ids",
        ],
    ),
];

/// Layers that know no socket, file, clock, thread, random source or executor.
const PURE: &[&str] = &[
    "ids",
    "metrics",
    "membership",
    "block",
    "raft",
    "wal",
    "machine",
    "wire",
    "snapshot",
    "shard",
    "sim",
];

/// What a pure layer must not name. Its tests may use files, but nothing that makes a run differ
/// from the last.
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::thread",
    "std::os",
    "std::process",
    "async fn",
    "async move",
    ".await",
    "tracing::",
];
const UNSTEADY: &[&str] = &["Instant::", "SystemTime", "rand::", "getrandom", "RandomState"];

struct Source {
    /// Relative to the crate, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The layer of a file in src/; "" for the crate's root files.
    fn layer(&self) -> &str {
        let Some(inner) = self.path.strip_prefix("src/") else { return "" };
        let name = inner.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if matches!(name, "lib" | "main") { "" } else { name }
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }
}

/// Every breach in one file, as `path:line: what`.
fn check(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    if source.path.starts_with("src/") && source.text.len() > FILE_BYTES_MAX {
        let size = source.text.len();
        found.push(format!("{}:1: {size} bytes, more than {FILE_BYTES_MAX}", source.path));
    }
    for (number, line) in code_lines(&source.text).iter().enumerate() {
        let mut breach = |what: String| {
            found.push(format!("{}:{}: {what}", source.path, number + 1));
        };
        arrows(source, line, &mut breach);
        names(source, line, &mut breach);
    }
    found
}

fn arrows(source: &Source, line: &str, breach: &mut impl FnMut(String)) {
    let layer = source.layer();
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else { return };
    if line.contains("crate::{") {
        breach("crate::{...} hides which layers are used: one use for each".into());
    }
    let is_root = source.path.matches('/').count() == 1 || source.path.ends_with("/mod.rs");
    let roots: &[&str] = if is_root { &["crate::", "super::"] } else { &["crate::"] };
    for root in roots {
        for (at, _) in line.match_indices(root) {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &line[at + root.len()..];
            let target: String = rest.chars().take_while(|c| is_word(*c)).collect();
            let is_layer = target == "cli" || LAYERS.iter().any(|(name, _)| *name == target);
            if is_layer && target != layer && !allowed.contains(&target.as_str()) {
                breach(format!("{layer} must not use {target}"));
            }
            if layer == "wire" && target == "raft" && !rest.starts_with("raft::message") {
                breach("wire may use only the messages of raft".into());
            }
        }
    }
}

fn names(source: &Source, line: &str, breach: &mut impl FnMut(String)) {
    let layer = source.layer();
    let mut forbid = |list: &[&str], whose: &str| {
        for name in list.iter().filter(|name| contains_name(line, name)) {
            breach(format!("{name} is not for {whose}"));
        }
    };
    forbid(&["todo!", "unimplemented!", "#[ignore"], "any code");
    if !source.path.starts_with("src/") {
        return;
    }
    if PURE.contains(&layer) {
        forbid(UNSTEADY, "a pure layer");
        if !source.is_test() {
            forbid(IMPURE, "a pure layer");
        }
        if !line.contains("FixedState") && source.path != "src/machine/hash.rs" {
            forbid(&["HashMap", "HashSet"], "a pure layer: FixedMap, FixedSet or a tree");
        }
    }
    if !matches!(layer, "runtime" | "server" | "client" | "load") {
        forbid(&["glommio"], "this layer");
    }
    if !matches!(layer, "runtime" | "cli") {
        forbid(&["io_uring"], "this layer");
    }
    if layer != "runtime" && source.path != "src/block.rs" {
        forbid(&["unsafe"], "code outside runtime/");
    }
    if !source.is_test() && layer != "cli" && !source.path.ends_with("main.rs") {
        forbid(&["println!", "eprintln!", "dbg!"], "anything but the command line");
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `name` in `line`, not as a part of a longer word.
fn contains_name(line: &str, name: &str) -> bool {
    let open = name.starts_with(is_word);
    let close = name.ends_with(is_word);
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].chars().next();
        let longer = open && before.is_some_and(is_word) || close && after.is_some_and(is_word);
        !longer
    })
}

/// The lines of a file without comments and without the contents of strings.
fn code_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let skip = match rest {
            ['/', '/', ..] => until(rest, &['\n']),
            ['/', '*', ..] => until(rest, &['*', '/']) + 2,
            ['r', '"', ..] => 2 + until(&rest[2..], &['"']) + 1,
            ['r', '#', '"', ..] => 3 + until(&rest[3..], &['"', '#']) + 2,
            ['"', ..] => string(rest),
            ['\'', '"', '\'', ..] => 3,
            ['\'', '\\', _, '\'', ..] => 4,
            _ => 0,
        };
        let end = chars.len().min(at + skip.max(1));
        for &c in &chars[at..end] {
            match c {
                '\n' => lines.push(String::new()),
                c if skip == 0 => lines.last_mut().expect("at least one").push(c),
                _ => {}
            }
        }
        at = end;
    }
    lines
}

/// Characters before `end` begins.
fn until(chars: &[char], end: &[char]) -> usize {
    chars.windows(end.len()).position(|part| part == end).unwrap_or(chars.len())
}

/// Length of the string literal at the front.
fn string(chars: &[char]) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn sources(dir: &Path, root: &Path, into: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("readable")
        .map(|entry| entry.expect("entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            sources(&path, root, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let inside = path.strip_prefix(root).expect("below the root");
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            into.push(Source { path: inside.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

#[test]
fn the_source_keeps_to_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "tests", "benches"].iter().for_each(|dir| sources(&root.join(dir), root, &mut files));
    assert!(files.len() > 80, "only {} files found", files.len());
    for layer in PURE {
        assert!(files.iter().any(|file| file.layer() == *layer), "{layer} is nowhere");
    }
    let breaches: Vec<String> = files.iter().flat_map(check).collect();
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

fn breaches(path: &str, text: &str) -> Vec<String> {
    check(&Source { path: path.into(), text: text.into() })
}

#[test]
fn a_planted_breach_is_found_with_its_line() {
    for (path, text) in [
        ("src/raft/x.rs", "use crate::ids::Term;\nuse crate::wal::Wal;"),
        ("src/raft/x.rs", "\nfn f() { crate::machine::hash::mix(1, 2); }"),
        ("src/raft/mod.rs", "\nuse super::wire::frame::Frame;"),
        ("src/wal/x.rs", "\nuse crate::{block::Block, raft::Raft};"),
        ("src/wire/x.rs", "\nuse crate::raft::ready::Ready;"),
        ("src/block.rs", "\nuse crate::wire::frame::Frame;"),
        ("src/shard/x.rs", "\nuse crate::runtime::ring::Ring;"),
        ("src/runtime/x.rs", "\nuse crate::server::start;"),
        ("src/client/x.rs", "\nuse crate::server::start;"),
        ("src/shard/x.rs", "\nuse std::net::TcpStream;"),
        ("src/wal/x.rs", "\nlet file = std::fs::File::open(name);"),
        ("src/shard/x.rs", "\nstd::thread::spawn(run);"),
        ("src/raft/x.rs", "\nlet now = Instant::now();"),
        ("src/machine/x.rs", "\nlet now = std::time::SystemTime::now();"),
        ("src/raft/x.rs", "\nlet n = rand::random::<u64>();"),
        ("src/shard/x.rs", "\npub async fn run() {}"),
        ("src/machine/x.rs", "\nuse std::collections::HashMap;"),
        ("src/wire/tests.rs", "\nlet seen = std::collections::HashSet::new();"),
        ("src/shard/x.rs", "\nprintln!();"),
        ("src/wire/x.rs", "\nuse glommio::net::TcpStream;"),
        ("src/server/x.rs", "\nuse io_uring::IoUring;"),
        ("src/server/x.rs", "\nunsafe { libc::getpid() };"),
        ("src/load/x.rs", "\ntodo!()"),
        ("tests/x.rs", "\n#[ignore = \"slow\"]"),
    ] {
        let found = breaches(path, text);
        let place = format!("{path}:2: ");
        assert!(found.len() == 1 && found[0].starts_with(&place), "{path} {text}: {found:?}");
    }
    let long = "x".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(breaches("src/wal/long.rs", &long).len(), 1);
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (path, text) in [
        ("src/wire/peer.rs", "use crate::raft::message::{Body, Message};"),
        ("src/shard/mod.rs", "use crate::wal::Wal; use self::group::Group; use super::raft::Raft;"),
        ("src/machine/hash.rs", "use std::collections::{HashMap, HashSet};"),
        ("src/machine/x.rs", "type M = HashMap<u8, u8, FixedState>;"),
        ("src/raft/x.rs", "// like std::net, in a comment with \"quotes\"\n/* HashMap */"),
        ("src/raft/x.rs", "let text = \"std::fs \\\" unsafe\"; let other = r#\"todo!()\"#;"),
        ("src/raft/x.rs", "let quote = '\"'; let n = operand::of(1); // rand::random"),
        ("src/raft/tests/script.rs", "let text = std::fs::read_to_string(path);"),
        ("src/runtime/ring.rs", "unsafe { ring.submission().push(&entry) }"),
        ("src/cli/mod.rs", "println!(); use crate::server::start;"),
    ] {
        assert_eq!(breaches(path, text), Vec::<String>::new(), "{path} {text}");
    }
}
