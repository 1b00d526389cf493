//! Real processes, killed under load: every acknowledged command is in the log, the ledger and the read model exactly once.
//! The callers do what callers should: they send a command again, with its key, until they have an answer.

mod process;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use process::{Serve, room, run};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const WALLETS: usize = 40;
const OPENING: i64 = 1_000;
const WORKERS: u64 = 12;

/// What was acknowledged.
#[derive(Default)]
struct Model {
    balances: HashMap<usize, i64>,
    /// How many events each wallet must have.
    events: HashMap<usize, i64>,
    acknowledged: u64,
}

/// Callers, and where they call.
struct Load {
    urls: Arc<RwLock<Vec<String>>>,
    model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Load {
    async fn start(seed: u64, urls: Vec<String>) -> Load {
        println!("seed {seed}");
        let load = Load {
            urls: Arc::new(RwLock::new(urls)),
            model: Arc::default(),
            stop: Arc::default(),
            workers: JoinSet::new(),
        };
        let client = client();
        for wallet in 0..WALLETS {
            let body = json!({ "walletId": name(wallet), "ownerId": "owner", "initialBalance": OPENING });
            assert_eq!(send(&client, &load.urls, "/wallets", &body, &format!("open-{wallet}")).await.0, 201);
            let mut model = load.model.lock().expect("no panic");
            model.balances.insert(wallet, OPENING);
            model.events.insert(wallet, 2);
        }
        let mut load = load;
        for worker in 0..WORKERS {
            let (urls, model, stop) = (Arc::clone(&load.urls), Arc::clone(&load.model), Arc::clone(&load.stop));
            let random = ChaCha8Rng::seed_from_u64(seed ^ (worker + 1));
            load.workers.spawn(work(worker, random, urls, model, stop));
        }
        load
    }

    fn call_at(&self, urls: Vec<String>) {
        *self.urls.write().expect("no panic") = urls;
    }

    fn acknowledged(&self) -> u64 {
        self.model.lock().expect("no panic").acknowledged
    }

    /// Waits until more commands have been acknowledged: the signal that the service is at work.
    async fn until_acknowledged(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let wait = async {
            while self.acknowledged() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(90), wait).await.expect("commands are acknowledged again");
    }

    /// Lets every caller have the answer that it waits for.
    async fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a worker without a complaint");
        }
    }

    /// Every balance as acknowledged, each command once, and `verify` content.
    async fn prove(&self, serve: &Serve) {
        let client = client();
        let model = std::mem::take(&mut *self.model.lock().expect("no panic"));
        for wallet in 0..WALLETS {
            let url = format!("{}/wallets/{}", serve.info.url, name(wallet));
            let found: Value = client.get(url).send().await.expect("an answer").json().await.expect("JSON");
            assert_eq!(found["balance"], json!(model.balances[&wallet]), "balance of {}", name(wallet));
            assert_eq!(found["version"], json!(model.events[&wallet] - 1), "version of {}", name(wallet));
        }
        let verified = run(&["verify", "--data-dir", serve.data_dir(), "-o", "json"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        println!("{} commands acknowledged, each once", model.acknowledged);
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client")
}

fn name(wallet: usize) -> String {
    format!("wallet-{wallet}")
}

/// Sends a command until it has an answer that is one: anything but none at all or 503.
async fn send(
    client: &reqwest::Client,
    urls: &RwLock<Vec<String>>,
    path: &str,
    body: &Value,
    key: &str,
) -> (u16, Value) {
    for attempt in 0.. {
        let url = {
            let urls = urls.read().expect("no panic");
            format!("{}{path}", urls[attempt % urls.len()])
        };
        let sent = client.post(url).header("Idempotency-Key", key).json(body).send().await;
        if let Ok(answer) = sent
            && answer.status() != 503
        {
            let status = answer.status().as_u16();
            if let Ok(body) = answer.json().await {
                return (status, body);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("there is always another attempt")
}

async fn work(
    worker: u64,
    mut random: ChaCha8Rng,
    urls: Arc<RwLock<Vec<String>>>,
    model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
) {
    let client = client();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let (from, amount) = (random.random_range(0..WALLETS), random.random_range(1..=300_i64));
        let to = (from + random.random_range(1..WALLETS)) % WALLETS;
        let (kind, body) = match random.random_range(0..3) {
            0 => ("credit", json!({ "amount": amount })),
            1 => ("debit", json!({ "amount": amount })),
            _ => ("transfer", json!({ "amount": amount, "toWalletId": name(to) })),
        };
        let path = format!("/wallets/{}/{kind}", name(from));
        let (status, answer) = send(&client, &urls, &path, &body, &format!("{worker}-{number}")).await;
        let mut model = model.lock().expect("no panic");
        match status {
            201 => {
                let paid = if kind == "credit" { -amount } else { amount };
                *model.balances.entry(from).or_default() -= paid;
                *model.events.entry(from).or_default() += 1;
                if kind == "transfer" {
                    *model.balances.entry(to).or_default() += amount;
                    *model.events.entry(to).or_default() += 1;
                }
            }
            400 => assert_eq!(answer["code"], "INSUFFICIENT_FUNDS", "{answer}"),
            other => panic!("{other}: {answer}"),
        }
        model.acknowledged += 1;
    }
}

fn seed() -> u64 {
    std::env::var("CRASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(rand::random::<u32>()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_serve_killed_again_and_again_loses_and_doubles_nothing() {
    let (room, seed) = (room(), seed());
    let data_dir = room.path().join("data");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut serve = Serve::start(&data_dir);
    let mut load = Load::start(seed, vec![serve.info.url.clone()]).await;
    for _ in 0..10 {
        load.until_acknowledged(random.random_range(1..150)).await;
        serve.kill();
        serve = Serve::start(&data_dir);
        load.call_at(vec![serve.info.url.clone()]);
    }
    load.until_acknowledged(50).await;
    load.end().await;
    load.prove(&serve).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_postgresql_killed_again_and_again_loses_and_doubles_nothing() {
    let (room, seed) = (room(), seed());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let serve = Serve::start(&room.path().join("data"));
    let mut load = Load::start(seed, vec![serve.info.url.clone()]).await;
    for _ in 0..6 {
        load.until_acknowledged(random.random_range(1..150)).await;
        // Between two rounds the server may still be on its way up, and one that failed to start be gone by itself.
        if let Some(postmaster) = serve.postmaster() {
            assert!(matches!(kill(postmaster, Signal::SIGKILL), Ok(()) | Err(nix::errno::Errno::ESRCH)));
        }
    }
    load.until_acknowledged(50).await;
    load.end().await;
    load.prove(&serve).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_several_web_processes_on_one_database_lose_and_double_nothing() {
    let (room, seed) = (room(), seed());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let whole = Serve::start(&room.path().join("whole"));
    let web = |name: &str| {
        let elsewhere = [
            "--only",
            "http",
            "--database-url",
            &whole.info.database_url,
            "--kafka-brokers",
            &whole.info.kafka_brokers,
        ];
        Serve::start_with(&room.path().join(name), &elsewhere)
    };
    let mut webs = [web("one"), web("two")];
    let urls = |webs: &[Serve; 2]| webs.iter().map(|serve| serve.info.url.clone()).collect::<Vec<_>>();
    let mut load = Load::start(seed, urls(&webs)).await;
    for round in 0..6 {
        load.until_acknowledged(random.random_range(20..200)).await;
        let name = ["one", "two"][round % 2];
        // The other one goes on meanwhile.
        let [one, two] = webs;
        let (gone, kept) = if round % 2 == 0 { (one, two) } else { (two, one) };
        gone.kill();
        load.call_at(vec![kept.info.url.clone()]);
        load.until_acknowledged(10).await;
        webs = if round % 2 == 0 { [web(name), kept] } else { [kept, web(name)] };
        load.call_at(urls(&webs));
    }
    load.end().await;
    load.prove(&whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serve_that_is_asked_to_stop_answers_what_it_has_taken() {
    let room = room();
    let data_dir = room.path().join("data");
    let serve = Serve::start(&data_dir);
    let mut load = Load::start(seed(), vec![serve.info.url.clone()]).await;
    load.until_acknowledged(50).await;
    assert_eq!(serve.stop(Signal::SIGTERM), 143);
    let serve = Serve::start(&data_dir);
    load.call_at(vec![serve.info.url.clone()]);
    load.until_acknowledged(50).await;
    load.end().await;
    load.prove(&serve).await;
    assert_eq!(serve.stop(Signal::SIGINT), 130);
}
