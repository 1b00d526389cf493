//! The load test over an event store: it waits until everything that was answered has been copied and projected, and proves it.

use serde_json::Value;

use crate::load::get;
use crate::process::{Serve, room, run};
use crate::store::Store;

async fn proven(wallets: &str, operations: &str) {
    let (room, store) = (room(), Store::start().await);
    let serve = Serve::start_with(&room.path().join("data"), &store.arguments());
    let load = ["loadtest", "--wallets", wallets, "--operations", operations, "--workers", "20", "--seed", "7"];
    let output = run(&[&load[..], &["-o", "json", "--data-dir", serve.data_dir()]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    println!("{report:#}");
    assert!(output.status.success(), "{said}");
    assert_eq!((&report["failures"], &report["proof"]["ok"]), (&0.into(), &true.into()));
    assert!(report["drainedOpsPerSecond"].as_f64().is_some_and(|rate| rate > 0.0), "drained");
    let head = get(&serve, "/health/progress").await["head"].as_i64();
    assert_eq!(head, Some(store.wallet_events().await), "each event was copied once, and nobody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_drained_and_proven() {
    proven("20", "300").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_the_whole_load_is_drained_and_proven() {
    proven("1000", "20000").await;
}
