//! What the command line takes and refuses.

use super::*;
use crate::load::options::{BenchOptions, DEFAULT_PROFILES, ProfileOverrides};
use clap::CommandFactory;
use clap::error::ErrorKind;
use std::num::NonZeroU64;
use std::path::PathBuf;

fn parse(line: &str) -> Result<Command, clap::Error> {
    let words = std::iter::once("ringraft").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.command)
}

fn bench_options(line: &str) -> BenchOptions {
    match parse(line) {
        Ok(Command::Bench(args)) => args.into_options(),
        other => panic!("{line}: {other:?}"),
    }
}

fn refusal(line: &str) -> String {
    let error = parse(line).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn bench_alone_runs_the_four_profiles_on_an_embedded_cluster_of_three() {
    let expected = BenchOptions {
        seconds: 6.0,
        profiles: DEFAULT_PROFILES.map(str::to_owned).to_vec(),
        overrides: ProfileOverrides::default(),
        nodes: 3,
        shards: 1,
        rate: None,
        output: Output::Table,
        dir: None,
        cluster: vec![],
    };
    assert_eq!(bench_options("bench"), expected);
}

#[test]
fn every_option_of_bench_arrives() {
    let options = bench_options(
        "bench --seconds 0.5 --profile iot --profile my.toml --in-flight 7 --value-size 64 \
         --groups 48 --nodes 5 --shards 2 --rate 1000 --output json --dir /data \
         --batch-size 10 --wal-sync false",
    );
    let expected = BenchOptions {
        seconds: 0.5,
        profiles: vec!["iot".into(), "my.toml".into()],
        overrides: ProfileOverrides {
            in_flight: Some(7),
            value_bytes: Some(64),
            groups: Some(48),
            batch_size: Some(10),
            wal_sync: Some(false),
        },
        nodes: 5,
        shards: 2,
        rate: NonZeroU64::new(1000),
        output: Output::Json,
        dir: Some(PathBuf::from("/data")),
        cluster: vec![],
    };
    assert_eq!(options, expected);
}

#[test]
fn wal_sync_without_a_value_means_true() {
    assert_eq!(bench_options("bench --wal-sync").overrides.wal_sync, Some(true));
    let options = bench_options("bench --wal-sync --output json");
    assert_eq!((options.overrides.wal_sync, options.output), (Some(true), Output::Json));
}

#[test]
fn a_cluster_is_a_list_of_addresses_and_excludes_an_embedded_one() {
    let options = bench_options("bench --cluster a:7001,10.0.0.2:7001,[::1]:7001");
    assert_eq!(options.cluster, ["a:7001", "10.0.0.2:7001", "[::1]:7001"]);
    let message = refusal("bench --cluster a:7001 --nodes 3");
    assert!(message.contains("--nodes") && message.contains("--cluster"), "{message}");
    assert!(refusal("status").contains("--cluster"));
}

#[test]
fn nonsense_is_refused_by_name_with_code_2() {
    for (line, named) in [
        ("bench --seconds 0", "--seconds"),
        ("bench --seconds nan", "--seconds"),
        ("bench --rate 0", "--rate"),
        ("bench --in-flight 0", "--in-flight"),
        ("bench --batch-size 8193", "--batch-size"),
        ("bench --value-size 2000000", "--value-size"),
        ("bench --groups 0", "--groups"),
        ("bench --nodes 2", "--nodes"),
        ("bench --nodes 0", "--nodes"),
        ("bench --shards 0", "--shards"),
        ("bench --cluster nowhere", "--cluster"),
        ("bench --cluster a:0", "--cluster"),
        ("status --cluster ::1:7", "--cluster"),
        ("bench --output xml", "--output"),
        ("serve", "--config"),
        ("bench --bogus", "--bogus"),
    ] {
        let message = refusal(line);
        assert!(message.contains(named), "{line}: {message}");
    }
}

#[test]
fn help_is_there_for_every_command() {
    for command in ["bench", "serve", "status", "doctor"] {
        let help = parse(&format!("{command} --help")).unwrap_err();
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
        assert!(help.to_string().contains("Usage: ringraft"), "{help}");
    }
}

#[test]
fn failures_have_their_exit_codes() {
    let code = |failure| format!("{:?}", exit_code(failure));
    assert_eq!(code(Ok(())), format!("{:?}", ExitCode::from(0)));
    assert_eq!(code(Err(Failure::Run("x".into()))), format!("{:?}", ExitCode::from(1)));
    assert_eq!(code(Err(Failure::Told)), format!("{:?}", ExitCode::from(1)));
    assert_eq!(code(Err(Failure::Usage("x".into()))), format!("{:?}", ExitCode::from(2)));
}
