//! What `wallex verify` costs on a long log: events a second, and the memory that it takes, which must not grow with the log.
//! Runs `cargo bench --bench verify`; `-- --events 10000000` for a log of ten million events, which takes some 9 GB of disk.
//!
//! The log, the ledger and the read model are filled by SQL, as no other way fills ten million in minutes; `verify` runs as
//! operators run it, in a process of its own.

#![expect(clippy::float_arithmetic, reason = "times and rates, not money")]

#[expect(dead_code, reason = "the other benches measure against pgbench")]
mod measuring;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use measuring::{Target, note, resident_mib, tell};
use wallex::embedded::ManagedPostgres;
use wallex::postgres::Database;
use wallex::postgres::sqlx::{self, AssertSqlSafe};
use wallex::verify::Proof;

const WALLEX: &str = env!("CARGO_BIN_EXE_wallex");
/// What `verify` may have resident at its peak, however long the log is.
const RESIDENT_MAX_MIB: f64 = 64.0;
/// How often is looked at how much it has. The peak only grows, so the last look has it, or all but what the last moment added.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Parser)]
struct Args {
    /// Events in the log
    #[arg(long, default_value_t = 1_000_000)]
    events: i64,
    /// Wallets that they are spread over
    #[arg(long, default_value_t = 10_000)]
    wallets: i64,
    /// Where to keep the data; a disk, not memory [default: /var/tmp]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    // Both ends of each transfer are in the log.
    let (events, wallets) = (args.events / 2 * 2, args.wallets / 2 * 2);
    assert!(wallets >= 2 && events >= wallets, "each wallet has an event, and none of them transfers to itself");
    let directory = measuring::directory(args.directory.as_ref());
    let postgres = ManagedPostgres::start(directory.path()).await.expect("a PostgreSQL");
    fill(postgres.url(), events, wallets).await;

    let nowhere = directory.path().join("nowhere");
    let started = Instant::now();
    let mut verify = Command::new(WALLEX)
        .args(["verify", "-o", "json", "--log", "error", "--database-url", postgres.url(), "--data-dir"])
        .arg(&nowhere)
        .stdout(Stdio::piped())
        .spawn()
        .expect("wallex verify");
    let mut peak = None;
    let status = loop {
        peak = resident_mib(verify.id(), "VmHWM").or(peak);
        match verify.try_wait().expect("its state") {
            Some(status) => break status,
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    let took = started.elapsed();
    let proof: Proof = serde_json::from_reader(verify.stdout.take().expect("a pipe")).expect("a proof");
    assert!(status.success() && proof.ok && proof.position == events, "{proof:#?}");
    note(&format!("verify of {events} events of {wallets} wallets"), format!("{:.1}s", took.as_secs_f64()));
    note("verified, events a second", format!("{:.0}", events as f64 / took.as_secs_f64()));
    let peak = peak.expect("Linux says how much memory was resident");
    tell(&format!("verify of {events} events, resident at its peak"), peak, " MiB", Target::Below(RESIDENT_MAX_MIB));
    postgres.stop().await;
}

async fn fill(url: &str, events: i64, wallets: i64) {
    let database = Database::connect(url, 1).await.expect("a connection");
    database.migrate().await.expect("the schema");
    let started = Instant::now();
    for statement in include_str!("measuring/filled_log.sql").split(";\n\n") {
        let statement = statement.replace(":events", &events.to_string()).replace(":wallets", &wallets.to_string());
        let done = sqlx::raw_sql(AssertSqlSafe(statement.as_str())).execute(database.pool()).await;
        done.unwrap_or_else(|error| panic!("{error}: {statement}"));
        let first = statement.lines().find(|line| !line.starts_with("--")).unwrap_or_default();
        eprintln!("{:6.1}s {first}", started.elapsed().as_secs_f64());
    }
    database.close().await;
}
