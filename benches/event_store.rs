//! Events in an event store of its own: the whole way over HTTP against the bare client on the same server in the same minutes, the copy
//! from a backlog, a lone caller, and several servers on one hot wallet with and without a Redis to queue in. Runs `cargo bench
//! --bench event_store`; `-- --rounds 1` is a quick look.
//!
//! The server is the tests' own (`tests/kurrentdb_server`), which speaks the published protocol, on a thread of this process. Against
//! the bare client it syncs each append to the disk before it acknowledges it, by a real server's rule, and works from memory
//! otherwise; so whoever appends waits as for a real server, and its own processor time is less than a real one's. Everywhere else,
//! and once more against the bare client, it keeps its events in memory alone: what is measured there is wallex and the client. The
//! Redis is a real one. Where `WALLEX_TEST_KURRENTDB_URL` names a server, the comparison with the bare client is made there, in
//! streams of the bench's own, and nothing else is measured. Every load test proves its balances, and one that cannot ends the bench.

#![expect(clippy::float_arithmetic, reason = "times and rates, not money")]

#[path = "../tests/kurrentdb_server/mod.rs"]
mod kurrentdb_server;
#[expect(dead_code, reason = "other benches measure against pgbench")]
mod measuring;
#[path = "../tests/redis_server/mod.rs"]
mod redis_server;
#[expect(dead_code, reason = "other benches look at memory and start-up")]
#[path = "measuring/serve.rs"]
mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use eventstore::{BatchAppendOptions, Client, ClientSettings, EventData, ExpectedRevision};
use kurrentdb_server::KurrentServer;
use measuring::{Sample, Target, note, tell};
use redis_server::RedisServer;
use serde::Deserialize;
use serde_json::json;
use serve::Serve;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wallex::embedded::ManagedPostgres;
use wallex::ingest::Ingest;
use wallex::kurrentdb::{KurrentConfig, KurrentLog};
use wallex::money::{Amount, Currency};
use wallex::postgres::Database;
use wallex::relay::Bell;
use wallex::runtime::{Config, Parts, Wallex};
use wallex::wallet::{Command, OwnerId, WalletId};

/// Names a real server to measure on, as it does for the tests; then only the comparison with the bare client is made.
const ELSEWHERE: &str = "WALLEX_TEST_KURRENTDB_URL";
const OPERATIONS: u64 = 20_000;
const WORKERS: u32 = 20;
/// Appends of the bare client in each round, and over how many streams each of its callers spreads them.
const RAW_APPENDS: usize = 20_000;
const RAW_STREAMS: usize = 50;
const LONE_COMMANDS: usize = 500;
const SERVERS: usize = 4;
/// How often it is looked how far the copy is.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longer than anything here takes at a hundredth of its target.
const PATIENCE: Duration = Duration::from_secs(3_600);

#[derive(Parser)]
struct Args {
    /// Rounds, each of which measures everything once
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds for each measurement on the hot wallet
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Events in the backlog
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Only the hot wallet
    #[arg(long)]
    hot: bool,
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
    let half = Some(Target::AtLeast(0.5));
    if let Some(address) = std::env::var(ELSEWHERE).ok().filter(|address| !address.is_empty()) {
        let data_dir = directory.path().join("named");
        return against_the_bare_client(args.rounds, &data_dir, &address, "the server that is named", half).await;
    }
    if !args.hot {
        for (name, store, target) in [
            ("on disk", KurrentServer::start_on_disk(&directory.path().join("store")), half),
            ("in memory", KurrentServer::start(), None),
        ] {
            let data_dir = directory.path().join(name.replace(' ', "-"));
            against_the_bare_client(args.rounds, &data_dir, &store.connection_string(), name, target).await;
        }
        backlog(&args, directory.path()).await;
        lone_caller(&directory.path().join("lone")).await;
    }
    for callers in [20, 80] {
        hot_wallet(&args, &directory.path().join(format!("hot-{callers}")), callers).await;
    }
}

/// Load tests and runs of the bare client in turn, all in streams that nobody else has.
async fn against_the_bare_client(rounds: u32, data_dir: &Path, address: &str, name: &str, target: Option<Target>) {
    let own = Uuid::now_v7().simple();
    let prefix = format!("wallextest{own}-");
    let serve = Serve::start_with(data_dir, &["--event-store", address, "--event-store-prefix", &prefix]).await;
    let (mut bare, mut issuing, mut drained, mut p99) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for round in 0..rounds {
        bare.push(bare_appends(address, &format!("wallextestbare{own}-{round}")).await);
        let report = serve.load_test(OPERATIONS, WORKERS);
        let events_an_operation = report.events() as f64 / OPERATIONS as f64;
        issuing.push(report.ops_per_second * events_an_operation);
        drained.push(report.drained_ops_per_second.expect("a proven run has drained") * events_an_operation);
        p99.push(report.p99());
    }
    let (bare, issuing, drained) = (bare.median(), issuing.median(), drained.median());
    note(&format!("{name}: bare client, 20 callers, one event each, events a second"), format!("{bare:.0}"));
    note(&format!("{name}: load test 1000/20000/20, events a second while issuing"), format!("{issuing:.0}"));
    note(&format!("{name}: load test, events a second until drained"), format!("{drained:.0}"));
    note(&format!("{name}: load test while issuing, against the bare client"), format!("{:.2}x", issuing / bare));
    let told = format!("{name}: load test, drained and proven, against the bare client");
    match target {
        Some(target) => tell(&told, drained / bare, "x", target),
        None => note(&told, format!("{:.2}x", drained / bare)),
    }
    note(&format!("{name}: load test, p99 of the slowest kind"), format!("{:.2} ms", p99.median()));
    serve.stop();
}

/// Appends a second of one event each, on the condition that the stream ends where its only writer knows it to end.
async fn bare_appends(address: &str, streams: &str) -> f64 {
    let settings: ClientSettings = address.parse().expect("a connection string");
    let client = Client::new(settings).expect("a client");
    let appends = client.batch_append(&BatchAppendOptions::default()).await.expect("an append call");
    let appends = Arc::new(appends);
    let data = json!({"amount": "12.34", "balance": "1234.56", "currency": "USD", "description": "a load test's"});
    let metadata = br#"{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1,"correlationId":"01a20d22-4eb5-7023-a021-1451e1826517","causationId":"01a20d22-4eb5-7023-a021-14543207cda0"}"#;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..WORKERS as usize {
        let (appends, data, streams) = (Arc::clone(&appends), data.clone(), streams.to_owned());
        callers.spawn(async move {
            for number in 0..RAW_APPENDS / WORKERS as usize {
                let stream = format!("{streams}-{caller}-{}", number % RAW_STREAMS);
                let expected = match (number / RAW_STREAMS).checked_sub(1) {
                    Some(last) => ExpectedRevision::Exact(last as u64),
                    None => ExpectedRevision::NoStream,
                };
                let event = EventData::json("WalletCredited", &data).expect("JSON");
                let event = event.id(Uuid::now_v7()).metadata(bytes::Bytes::from_static(metadata));
                appends.append_to_stream(&stream, expected, vec![event]).await.expect("an append");
            }
        });
    }
    callers.join_all().await;
    RAW_APPENDS as f64 / began.elapsed().as_secs_f64()
}

/// The copy, from nothing to the end of a log that is there already.
async fn backlog(args: &Args, directory: &Path) {
    let store = KurrentServer::start();
    store.fill(args.events, 1_000);
    let end = store.log().last().expect("events").position as i64;
    let mut rates = Sample::default();
    for round in 0..args.rounds {
        let place = directory.join(format!("copy-{round}"));
        std::fs::create_dir(&place).expect("a directory");
        let postgres = ManagedPostgres::start(&place).await.expect("a PostgreSQL");
        let database = Database::connect(postgres.url(), 8).await.expect("a connection");
        database.migrate().await.expect("the schema");
        let stop = CancellationToken::new();
        let began = Instant::now();
        let copying = tokio::spawn(Ingest::new(log(&store), database.clone(), Bell::new(), || {}).run(stop.clone()));
        while database.ingested().await.expect("an answer").is_none_or(|(commit, _)| commit < end) {
            assert!(began.elapsed() < PATIENCE, "the copy does not get through");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        rates.push(args.events as f64 / began.elapsed().as_secs_f64());
        stop.cancel();
        copying.await.expect("an ingest that stopped");
        database.close().await;
        postgres.stop().await;
    }
    tell("copy of a backlog, events a second", rates.median(), "", Target::AtLeast(10_000.0));
}

fn config(store: &KurrentServer) -> KurrentConfig {
    KurrentConfig::new(&store.connection_string()).expect("a connection string")
}

fn log(store: &KurrentServer) -> KurrentLog {
    KurrentLog::new(config(store))
}

/// One caller, who sends a command once the one before it is answered.
async fn lone_caller(data_dir: &Path) {
    let store = KurrentServer::start();
    let parts = Parts { commands: true, ..Parts::NONE };
    let wallex = Wallex::open(Config { parts, event_store: Some(config(&store)), ..Config::embedded(data_dir) }).await;
    let wallex = wallex.expect("a wallex");
    let id = WalletId::new("lone").expect("an id");
    let open = Command::create(id.clone(), OwnerId::new("owner").expect("an owner"), Currency::USD, Amount::ZERO);
    wallex.execute(open).await.expect("a new wallet");
    let mut latencies = Sample::default();
    for _ in 0..LONE_COMMANDS {
        let began = Instant::now();
        wallex.execute(Command::credit(id.clone(), "1")).await.expect("a credit");
        latencies.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    tell("a lone caller's command, p50", latencies.median(), " ms", Target::Below(5.0));
    note("a lone caller's command, p99", format!("{:.2} ms", latencies.at(0.99)));
    wallex.close().await;
}

/// What several servers did to one wallet.
struct Shared {
    commands_a_second: f64,
    p99_ms: f64,
    longest_ms: f64,
    /// What the server that did least has done of what would be its fair part, in per cent.
    least_served: f64,
    refused_a_thousand: f64,
}

/// Four servers and one wallet, without and with a Redis, in turn.
async fn hot_wallet(args: &Args, directory: &Path, callers: usize) {
    let redis = RedisServer::start();
    let address = redis.address();
    let mut found: [[Sample; 5]; 2] = Default::default();
    for round in 0..args.rounds {
        for (place, redis) in [None, Some(address.as_str())].into_iter().enumerate() {
            let room = directory.join(format!("{round}-{place}"));
            let shared = share_a_wallet(&room, redis, callers, args.seconds).await;
            let Shared { commands_a_second, p99_ms, longest_ms, least_served, refused_a_thousand } = shared;
            let figures = [commands_a_second, p99_ms, longest_ms, least_served, refused_a_thousand];
            for (sample, figure) in found[place].iter_mut().zip(figures) {
                sample.push(figure);
            }
        }
        eprintln!("round {} of {} with {callers} callers", round + 1, args.rounds);
    }
    for (with, [commands, p99, longest, least, refused]) in ["without", "with"].iter().zip(&found) {
        let what = format!("{SERVERS} servers, one wallet, {callers} callers, {with} Redis:");
        note(&format!("{what} commands a second"), format!("{:.0}", commands.median()));
        note(&format!("{what} p99"), format!("{:.1} ms", p99.median()));
        note(&format!("{what} longest"), format!("{:.1} ms", longest.median()));
        note(&format!("{what} least served, of a fair part"), format!("{:.0} %", least.median()));
        note(&format!("{what} appends refused in 1000 commands"), format!("{:.0}", refused.median()));
    }
    let [without, with] = &found;
    let what = format!("{SERVERS} servers, one wallet, {callers} callers, with Redis against without:");
    note(&format!("{what} commands"), format!("{:.2}x", with[0].median() / without[0].median()));
    note(&format!("{what} p99"), format!("{:.2}x", with[1].median() / without[1].median()));
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

async fn share_a_wallet(room: &Path, redis: Option<&str>, callers: usize, seconds: u64) -> Shared {
    std::fs::create_dir_all(room).expect("a directory");
    let store = KurrentServer::start();
    let event_store = store.connection_string();
    let mut told = vec!["--only", "http", "--event-store", &event_store];
    told.extend(redis.iter().flat_map(|redis| ["--redis", redis]));
    let first = Serve::start_with(&room.join("0"), &told).await;
    let place = ["--database-url", &first.info.database_url, "--kafka-brokers", &first.info.kafka_brokers];
    let beside = [&told[..], &place].concat();
    let mut others = Vec::new();
    for number in 1..SERVERS {
        others.push(Serve::start_with(&room.join(number.to_string()), &beside).await);
    }
    let servers: Vec<&Serve> = std::iter::once(&first).chain(&others).collect();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let open = json!({"walletId": "hot", "ownerId": "bench"});
    let opened = client.post(format!("{}/wallets", first.info.url)).json(&open).send().await.expect("an answer");
    opened.error_for_status().expect("a new wallet");

    let refused = store.conflicts();
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let mut calling = JoinSet::new();
    for caller in 0..callers {
        let (client, url) = (client.clone(), format!("{}/wallets/hot/credit", servers[caller % SERVERS].info.url));
        calling.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < until {
                let sent = Instant::now();
                let answer = client.post(&url).json(&json!({"amount": "0.01"})).send().await.expect("an answer");
                answer.error_for_status().expect("a credit").bytes().await.expect("a whole answer");
                latencies.push(sent.elapsed().as_secs_f64() * 1_000.0);
            }
            (caller % SERVERS, latencies)
        });
    }
    let (mut sample, mut commands, mut of_server) = (Sample::default(), 0, [0; SERVERS]);
    for (server, latencies) in calling.join_all().await {
        commands += latencies.len();
        of_server[server] += latencies.len();
        latencies.into_iter().for_each(|latency| sample.push(latency));
    }
    let took = began.elapsed().as_secs_f64();
    let refused = store.conflicts() - refused;
    for server in &servers {
        let Version { version } = server.get("/wallets/hot").await;
        assert_eq!(version, commands as u64, "each command once");
    }
    let least = of_server.into_iter().min().unwrap_or_default();
    others.into_iter().for_each(Serve::stop);
    first.stop();
    Shared {
        commands_a_second: commands as f64 / took,
        p99_ms: sample.at(0.99),
        longest_ms: sample.at(1.0),
        least_served: (least * SERVERS * 100) as f64 / commands as f64,
        refused_a_thousand: refused as f64 * 1_000.0 / commands as f64,
    }
}
