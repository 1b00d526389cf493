//! A whole `wallex serve` on the embedded default, from HTTP to both projections: its rate against `pgbench`'s TPC-B on the
//! same managed PostgreSQL in the same minutes, how far the read model is behind when nothing else happens, and what a
//! million events cost. Runs `cargo bench --bench end_to_end`; `-- --events 100000 --rounds 1` is a quick look. With `-- --kafka` the
//! first of these only, on a real Kafka (`scripts/kafka`) beside everything else on the same machine.
//!
//! Every load test proves its balances, and one that cannot ends the bench.

#![expect(clippy::float_arithmetic, reason = "times and rates, not money")]

#[path = "../tests/kafka/mod.rs"]
mod kafka;
mod measuring;
#[expect(dead_code, reason = "another bench counts the events")]
#[path = "measuring/serve.rs"]
mod serve;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use kafka::Kafka;
use measuring::{PGBENCH_CLIENTS, Pgbench, Sample, Target, note, tell};
use serde::Deserialize;
use serde_json::json;
use serve::Serve;

const OPERATIONS: u64 = 20_000;
const WORKERS: u32 = 20;
/// Of each load test while the log is filled: few enough to see how far it is.
const FILLING_OPERATIONS: u64 = 100_000;
/// Commands whose way into the read model is timed.
const IDLE_COMMANDS: usize = 200;
/// Between two of them, so that nothing of the one before is still going on.
const IDLE_PAUSE: Duration = Duration::from_millis(50);

#[derive(Parser)]
struct Args {
    /// Rounds, each of which measures everything once
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for each run of pgbench
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Events in the long log
    #[arg(long, default_value_t = 1_000_000)]
    events: i64,
    /// Only the load tests against pgbench, on a real Kafka started for this
    #[arg(long)]
    kafka: bool,
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
    let directory = measuring::directory(args.directory.as_ref());
    let long = directory.path().join("long");
    if args.kafka {
        let kafka = Kafka::start();
        let serve = Serve::start_with(&long, &["--kafka-brokers", &kafka.address()]).await;
        against_pgbench(&serve, &args, 1.0);
        return serve.stop();
    }
    let serve = Serve::start(&long).await;
    note("start-up with an empty data directory, initdb included", format!("{:.2}s", serve.started_in.as_secs_f64()));
    against_pgbench(&serve, &args, 1.5);
    idle_latency(&serve).await;
    fill(&serve, args.events).await;
    tell(&format!("resident after {} events", args.events), serve.resident_mib(), " MiB", Target::Below(300.0));
    let serve = start_up(serve, &long, &args).await;
    long_against_short(&serve, directory.path(), &args).await;
    serve.stop();
}

/// Load tests and runs of pgbench in turn; `least` is what their ratio must be.
fn against_pgbench(serve: &Serve, args: &Args, least: f64) {
    let pgbench = Pgbench::prepare(&serve.info.database_url);
    let (mut tpc_b, mut issuing, mut drained, mut p99) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for _ in 0..args.rounds {
        tpc_b.push(pgbench.run(args.seconds));
        let report = serve.load_test(OPERATIONS, WORKERS);
        issuing.push(report.ops_per_second);
        drained.push(report.drained_ops_per_second.expect("a proven run has drained"));
        p99.push(report.p99());
    }
    note(&format!("pgbench TPC-B, {PGBENCH_CLIENTS} clients, a second"), format!("{:.0}", tpc_b.median()));
    note("load test 1000/20000/20, a second while issuing", format!("{:.0}", issuing.median()));
    note("load test 1000/20000/20, a second until drained", format!("{:.0}", drained.median()));
    let ratio = drained.median() / tpc_b.median();
    tell("load test, drained and proven, against pgbench", ratio, "x", Target::AtLeast(least));
    tell("load test, p99 of the slowest kind", p99.median(), " ms", Target::Below(25.0));
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    version: i64,
}

/// From a command's answer until `GET /wallets` has its balance.
async fn idle_latency(serve: &Serve) {
    let (client, url) = (reqwest::Client::new(), &serve.info.url);
    let post = async |path: String, body: serde_json::Value| {
        let answer = client.post(format!("{url}{path}")).json(&body).send().await.expect("an answer");
        answer.error_for_status().expect("a command that is right").json::<Listed>().await.expect("a wallet")
    };
    post("/wallets".to_owned(), json!({"walletId": "idle", "ownerId": "bench"})).await;
    let mut latencies = Sample::default();
    for _ in 0..IDLE_COMMANDS {
        tokio::time::sleep(IDLE_PAUSE).await;
        let made = post("/wallets/idle/credit".to_owned(), json!({"amount": 1})).await;
        let answered = Instant::now();
        // The id before it in order, so that the page begins with it.
        let page = format!("{url}/wallets?limit=1&cursor=idl");
        loop {
            let listed: Vec<Listed> =
                client.get(&page).send().await.expect("an answer").json().await.expect("a page of wallets");
            if listed.iter().any(|wallet| wallet.id == made.id && wallet.version >= made.version) {
                break;
            }
        }
        latencies.push(answered.elapsed().as_secs_f64() * 1_000.0);
    }
    tell("idle: from an answer to its balance in the read model, p50", latencies.median(), " ms", Target::Below(20.0));
    note("idle: the same, p99", format!("{:.2} ms", latencies.at(0.99)));
}

#[derive(Deserialize)]
struct Head {
    head: i64,
}

async fn fill(serve: &Serve, events: i64) {
    loop {
        let Head { head } = serve.get("/health/progress").await;
        eprintln!("{head} of {events} events");
        if head >= events {
            return;
        }
        serve.load_test(FILLING_OPERATIONS, 64);
    }
}

/// How long it takes to be ready after a clean end, and after a kill.
async fn start_up(mut serve: Serve, data_dir: &Path, args: &Args) -> Serve {
    let (mut clean, mut killed) = (Sample::default(), Sample::default());
    for _ in 0..args.rounds {
        serve.stop();
        serve = Serve::start(data_dir).await;
        clean.push(serve.started_in.as_secs_f64());
        serve.kill();
        serve = Serve::start(data_dir).await;
        killed.push(serve.started_in.as_secs_f64());
    }
    tell(&format!("start-up with {} events, ended cleanly", args.events), clean.median(), "s", Target::Below(3.0));
    tell(&format!("start-up with {} events, killed", args.events), killed.median(), "s", Target::Below(3.0));
    serve
}

/// The cost of a command with a long log, as a multiple of its cost with a log of a thousand events.
async fn long_against_short(long: &Serve, directory: &Path, args: &Args) {
    let (mut with_long, mut with_short) = (Sample::default(), Sample::default());
    for round in 0..args.rounds {
        let short = Serve::start(&directory.join(format!("short-{round}"))).await;
        // Both warm: the wallets that this opens are the short log's first thousand events.
        for serve in [&short, long] {
            serve.load_test(1, WORKERS);
        }
        with_short.push(short.load_test(OPERATIONS, WORKERS).ops_per_second);
        with_long.push(long.load_test(OPERATIONS, WORKERS).ops_per_second);
        short.stop();
    }
    let cost = with_short.median() / with_long.median();
    let what = format!("cost of a command with {} events, against a thousand", args.events);
    tell(&what, cost, "x", Target::Within(0.8, 1.2));
}
