//! What is told to `wallex serve` about a Redis, what it tells, and two of them that share a hot wallet while that Redis fails.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::kurrentdb_server::KurrentServer;
use crate::load::get;
use crate::process::{Serve, room, run, wallex};
use crate::redis_server::RedisServer;
use crate::shell::{assert_one_clear_line, until_at_rest};

const PATIENCE: Duration = Duration::from_secs(120);
const CALLERS: usize = 8;

#[test]
fn a_redis_that_cannot_be_used_is_refused_in_one_line_that_tells_no_secret() {
    let room = room();
    let place = room.path().join("data").to_str().expect("UTF-8").to_owned();
    let refused = |arguments: &[&str], words: &[&str]| {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", &place];
        assert_one_clear_line(&run(&[&serve, arguments].concat()), words);
    };
    let store = ["--event-store", "esdb://localhost:1?tls=false"];
    let with_store = |redis| [&store[..], &["--redis", redis]].concat();
    refused(&["--redis", "redis://:secret-word@localhost"], &["--redis", "--event-store", "WALLEX_EVENT_STORE"]);
    refused(&with_store("redis://:secret-word@localhost:port"), &["--redis", "redis://user:password@host:6379/0"]);
    refused(&with_store("mysql://:secret-word@localhost"), &["--redis"]);
    refused(&with_store("rediss://:secret-word@localhost"), &["--redis", "TLS"]);
    let environment = |arguments: &[&str]| -> Output {
        let mut command = wallex(arguments);
        command.env("WALLEX_REDIS", "redis://:secret-word@localhost").output().expect("wallex runs")
    };
    let without_store = environment(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &place]);
    assert_one_clear_line(&without_store, &["WALLEX_REDIS", "--event-store"]);
    let help = String::from_utf8(environment(&["serve", "--help"]).stdout).expect("text");
    assert!(help.contains("WALLEX_REDIS") && !help.contains("secret-word"), "{help}");
    assert!(!Path::new(&place).exists(), "nothing was begun");
}

/// Callers of several servers, all on one wallet.
struct Callers {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    running: JoinSet<()>,
}

impl Callers {
    async fn start(urls: Vec<String>) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client");
        let open = json!({ "walletId": "hot", "ownerId": "owner" });
        let opened = client.post(format!("{}/wallets", urls[0])).json(&open).send().await.expect("an answer");
        assert_eq!(opened.status(), 201);
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut running = JoinSet::new();
        for caller in 0..CALLERS {
            let (client, url) = (client.clone(), format!("{}/wallets/hot/credit", urls[caller % urls.len()]));
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            running.spawn(async move {
                for turn in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    credit(&client, &url, &format!("{caller}-{turn}")).await;
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Callers { answered, stop, running }
    }

    async fn more(&self, commands: u64) {
        let goal = self.answered.load(Ordering::SeqCst) + commands;
        until("answers", || self.answered.load(Ordering::SeqCst) >= goal).await;
    }

    /// How many commands were answered, now that no more are sent.
    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.running.join_next().await {
            ended.expect("a caller whom nothing went wrong for");
        }
        self.answered.load(Ordering::SeqCst)
    }
}

/// A cent more, once: on a busy machine an answer may well come too late, and is asked for again.
async fn credit(client: &reqwest::Client, url: &str, key: &str) {
    let begun = Instant::now();
    loop {
        let sent = client.post(url).header("Idempotency-Key", key).json(&json!({ "amount": "0.01" })).send().await;
        match sent.map(|answer| answer.status().as_u16()) {
            Ok(201) => return,
            Ok(503) | Err(_) => assert!(begun.elapsed() < PATIENCE, "{url} does not answer"),
            Ok(other) => panic!("{other}"),
        }
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

fn start(data_dir: &Path, log: &Path, arguments: &[&str]) -> Serve {
    let mut command = wallex(&["serve", "--listen", "127.0.0.1:0", "--log", "wallex=info"]);
    command.args(arguments).stderr(std::fs::File::create(log).expect("a file")).stdout(Stdio::null());
    Serve::start_as(data_dir, command)
}

/// One with everything, and one that only serves HTTP beside it.
fn two_servers(room: &Path, more: &[&str]) -> [Serve; 2] {
    let whole = start(&room.join("whole"), &room.join("whole.log"), more);
    let beside = ["--only", "http", "--database-url", &whole.info.database_url];
    let beside = [&beside[..], &["--kafka-brokers", &whole.info.kafka_brokers], more].concat();
    let web = start(&room.join("web"), &room.join("web.log"), &beside);
    [whole, web]
}

async fn prove(servers: &[Serve; 2], answered: u64) {
    until_at_rest(&servers[0]).await;
    let verified = run(&["verify", "--data-dir", servers[0].data_dir(), "-o", "json"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    for server in servers {
        let wallet: Value = get(server, "/wallets/hot").await;
        assert_eq!(wallet["version"], json!(answered), "each answered command once");
        let cents = format!("{}", wallet["balance"]);
        assert_eq!(
            wallex::money::Amount::parse(&cents, wallex::Currency::USD).map(|it| it.minor()),
            Ok(answered as i64)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_serves_on_one_hot_wallet_lose_and_double_nothing_whatever_becomes_of_their_redis() {
    let (room, store, mut redis) = (room(), KurrentServer::start(), RedisServer::start_with_password("secret-word"));
    let (event_store, address) = (store.connection_string(), redis.address());
    let servers = two_servers(room.path(), &["--event-store", &event_store, "--redis", &address]);
    let said = |name: &str| std::fs::read_to_string(room.path().join(format!("{name}.log"))).expect("text");
    let both_said =
        |words: &str, times: usize| ["whole", "web"].iter().all(|name| said(name).matches(words).count() >= times);
    let callers = Callers::start(servers.iter().map(|server| server.info.url.clone()).collect()).await;
    until("a Redis that answers", || both_said("Redis answers", 1)).await;
    assert_eq!(get(&servers[1], "/health/ready").await["redis"], "connected");
    callers.more(100).await;

    redis.halt();
    callers.more(100).await;
    until("a halted Redis that was noticed", || both_said("Redis is away", 1)).await;
    assert_eq!(get(&servers[0], "/health/ready").await["redis"], "away");
    callers.more(100).await;
    redis.go_on();
    until("a Redis that goes on", || both_said("Redis answers", 2)).await;
    for _ in 0..10 {
        callers.more(10).await;
        redis.ask("FLUSHALL");
    }
    redis.kill();
    until("a killed Redis that was noticed", || both_said("Redis is away", 2)).await;
    callers.more(100).await;
    redis.start_again();
    until("a Redis that is back", || both_said("Redis answers", 3)).await;
    callers.more(100).await;

    prove(&servers, callers.end().await).await;
    for name in ["whole", "web"] {
        let said = said(name);
        assert!(said.contains("redis: redis://127.0.0.1:") && !said.contains("secret-word"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_and_nothing_else_comes_of_it() {
    let (room, store, redis) = (room(), KurrentServer::start(), RedisServer::start_with_password("secret-word"));
    let (event_store, address) = (store.connection_string(), redis.address_with("wrong-secret-word"));
    let servers = two_servers(room.path(), &["--event-store", &event_store, "--redis", &address]);
    let callers = Callers::start(servers.iter().map(|server| server.info.url.clone()).collect()).await;
    callers.more(200).await;
    let said = || std::fs::read_to_string(room.path().join("web.log")).expect("text");
    until("a refusal that is told", || said().contains("Redis is away")).await;
    assert!(said().contains("WRONGPASS") && !said().contains("secret-word"), "{}", said());
    prove(&servers, callers.end().await).await;
}
