//! A `wallex serve` in a process of its own, on the embedded default or brokers of one's own, and load tests against it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wallex::embedded::{DataDir, ServeInfo};

use crate::measuring::resident_mib;

const WALLEX: &str = env!("CARGO_BIN_EXE_wallex");
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Killed when it is dropped, so that nothing outlives a bench that failed.
pub struct Serve {
    child: Child,
    data_dir: PathBuf,
    pub info: ServeInfo,
    /// From the process's start until it was ready to take commands.
    pub started_in: Duration,
}

/// The parts of a load test's report that are looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub operations: Operations,
    pub failures: u64,
    pub ops_per_second: f64,
    pub drained_ops_per_second: Option<f64>,
    pub proof: Proof,
}

#[derive(Deserialize)]
pub struct Operations {
    credit: Kind,
    debit: Kind,
    transfer: Kind,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    ok: u64,
    latency_ms: Latencies,
}

#[derive(Deserialize)]
struct Latencies {
    p99: Option<f64>,
}

#[derive(Deserialize)]
pub struct Proof {
    pub ok: bool,
}

impl Report {
    /// How many events its operations made: two for a transfer.
    pub fn events(&self) -> u64 {
        let Operations { credit, debit, transfer } = &self.operations;
        credit.ok + debit.ok + 2 * transfer.ok
    }

    /// The 99th percentile of the slowest kind, in milliseconds.
    pub fn p99(&self) -> f64 {
        let kinds = [&self.operations.credit, &self.operations.debit, &self.operations.transfer];
        kinds.iter().filter_map(|kind| kind.latency_ms.p99).fold(0.0, f64::max)
    }
}

impl Serve {
    pub async fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[]).await
    }

    /// Told more than where its data is: brokers of one's own, an event store, which parts to run.
    pub async fn start_with(data_dir: &Path, arguments: &[&str]) -> Self {
        let started = Instant::now();
        let mut child = Command::new(WALLEX)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .expect("wallex serve");
        loop {
            if let Some(info) = ready(data_dir, child.id()).await {
                let started_in = started.elapsed();
                return Serve { child, data_dir: data_dir.to_owned(), info, started_in };
            }
            if let Some(status) = child.try_wait().expect("its state") {
                panic!("wallex serve ended with {status}; run it by hand on {}", data_dir.display());
            }
            assert!(started.elapsed() < START_PATIENCE, "wallex serve is not ready after {START_PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("its end");
    }

    /// `kill -9`, as a machine that loses power.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its end");
    }

    /// Resident memory of the process in MiB, PostgreSQL's not with it.
    pub fn resident_mib(&self) -> f64 {
        resident_mib(self.child.id(), "VmRSS").expect("Linux says how much memory is resident")
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = reqwest::get(format!("{}{path}", self.info.url)).await.expect("an answer");
        answer.json().await.expect("the JSON of the contract")
    }

    /// `wallex loadtest` against it, in a process of its own.
    pub fn load_test(&self, operations: u64, workers: u32) -> Report {
        let (operations, workers) = (operations.to_string(), workers.to_string());
        let output = Command::new(WALLEX)
            .args(["loadtest", "-o", "json", "--operations", &operations, "--workers", &workers, "--data-dir"])
            .arg(&self.data_dir)
            .output()
            .expect("wallex loadtest");
        let told = String::from_utf8_lossy(&output.stderr);
        let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert!(report.proof.ok && report.failures == 0, "{}{told}", String::from_utf8_lossy(&output.stdout));
        report
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It has ended already where it was stopped or killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ready(data_dir: &Path, pid: u32) -> Option<ServeInfo> {
    let info = DataDir::find_running(data_dir).ok()??;
    if info.pid != pid || info.url.is_empty() {
        return None;
    }
    let answer = reqwest::get(format!("{}/health/ready", info.url)).await.ok()?;
    answer.status().is_success().then_some(info)
}
