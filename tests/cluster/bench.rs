//! The short way through the main job.

use crate::cluster::scratch;
use crate::process::ringraft;

#[test]
fn a_short_bench_prints_one_object_with_its_four_runs() {
    let dir = scratch();
    let mut command = ringraft(&["bench", "--seconds", "0.3", "--output", "json", "--dir"]);
    let output = command.arg(dir.path()).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one object, no more");
    assert!(report["calibration"]["dsync_write_us_p50"].as_f64().unwrap() > 0.0);
    let runs = report["runs"].as_array().unwrap();
    let names: Vec<_> = runs.iter().map(|run| run["profile"].as_str().unwrap()).collect();
    assert_eq!(names, ["financial", "iot", "logging", "durable-logging"]);
    for run in runs {
        assert_eq!(run["errors"].as_u64(), Some(0), "{run}");
        assert!(run["commands"].as_u64().unwrap() > 0, "{run}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}
