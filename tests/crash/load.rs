//! Callers under whose load processes are killed, and what they were told.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wallex::postgres::{Database, sqlx};

use crate::process::{Serve, run};

pub const WALLETS: usize = 50;
const OPENING: i64 = 1_000;
const WORKERS: u64 = 16;

/// What callers do where a command gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Send it again with its key, to whoever serves now, until there is an answer.
    Patient,
    /// Give it up: it has no key, and each of them stops there.
    Once,
}

/// What a wallet must be, from acknowledged answers alone.
#[derive(Clone, Copy, Default)]
pub struct Account {
    pub balance: i64,
    credits: i64,
    debits: i64,
    /// Postings in its ledger; its events are one more, that of its creation.
    pub postings: i64,
}

impl Account {
    fn pay(&mut self, amount: i64) {
        self.balance -= amount;
        self.debits += amount;
        self.postings += 1;
    }

    fn receive(&mut self, amount: i64) {
        self.balance += amount;
        self.credits += amount;
        self.postings += 1;
    }
}

/// What the callers were told, all together.
#[derive(Clone, Default)]
pub struct Model {
    pub accounts: BTreeMap<String, Account>,
    /// The keys of the commands that were answered with 201.
    pub keys: BTreeSet<String>,
    pub acknowledged: u64,
    unanswered: u64,
}

/// Where callers call.
#[derive(Default)]
struct Place {
    urls: RwLock<Vec<String>>,
    /// How many times they were told to come again, with a 503.
    refusals: AtomicU64,
    /// Held by each caller from its question to its answer, and by whoever wants none under way.
    gate: tokio::sync::RwLock<()>,
}

/// Callers, and where they call.
pub struct Load {
    callers: Callers,
    place: Arc<Place>,
    model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Load {
    pub async fn start(seed: u64, callers: Callers, urls: Vec<String>) -> Load {
        println!("CRASH_SEED={seed}");
        Self::start_paced(seed, callers, urls, Duration::ZERO).await
    }

    /// Callers that rest so long after each answer.
    pub async fn start_paced(seed: u64, callers: Callers, urls: Vec<String>, rest: Duration) -> Load {
        let mut load = Load {
            callers,
            place: Arc::new(Place { urls: RwLock::new(urls), ..Place::default() }),
            model: Arc::default(),
            stop: Arc::default(),
            workers: JoinSet::new(),
        };
        let client = client();
        for wallet in 0..WALLETS {
            let (id, key) = (name(wallet), format!("open-{wallet}"));
            let body = json!({ "walletId": id, "ownerId": "owner", "initialBalance": OPENING });
            assert_eq!(send_until_answered(&client, &load.place, "/wallets", &body, &key).await.0, 201);
            let mut model = load.model.lock().expect("no panic");
            model.accounts.entry(id).or_default().receive(OPENING);
            model.keys.insert(key);
        }
        for worker in 0..WORKERS {
            let (place, model, stop) = (Arc::clone(&load.place), Arc::clone(&load.model), Arc::clone(&load.stop));
            let random = ChaCha8Rng::seed_from_u64(seed ^ (worker + 1));
            load.workers.spawn(work(Caller { worker, callers, rest }, random, place, model, stop));
        }
        load
    }

    /// Where callers call from now on. Where there is nowhere just now, they go on trying where they were.
    pub fn call_at(&self, urls: Vec<String>) {
        if !urls.is_empty() {
            *self.place.urls.write().expect("no panic") = urls;
        }
    }

    /// Waits for the answers that are under way, and keeps callers from further commands for as long as this is held.
    pub async fn pause(&self) -> impl Sized + use<'_> {
        self.place.gate.write().await
    }

    /// What the callers were told until now.
    pub fn model(&self) -> Model {
        self.model.lock().expect("no panic").clone()
    }

    pub fn acknowledged(&self) -> u64 {
        self.model.lock().expect("no panic").acknowledged
    }

    /// Waits until more commands have been acknowledged: the signal that the service is at work.
    pub async fn until_acknowledged(&self, more: u64) {
        Self::until_more(more, "commands are acknowledged again", || self.acknowledged()).await;
    }

    /// Waits until each caller could have been told to come again: the signal that the service cannot work.
    pub async fn until_refused(&self) {
        let refusals = || self.place.refusals.load(Ordering::SeqCst);
        Self::until_more(WORKERS, "callers are told to come again", refusals).await;
    }

    async fn until_more(more: u64, what: &str, count: impl Fn() -> u64) {
        let goal = count() + more;
        let wait = async {
            while count() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(90), wait).await.expect(what);
    }

    /// Lets every caller have the answer that it waits for.
    pub async fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.until_callers_have_ended().await;
    }

    /// Waits for callers that stop by themselves.
    pub async fn until_callers_have_ended(&mut self) {
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a worker without a complaint");
        }
    }

    /// Each acknowledged command once and nothing else: in the log by key and by version, in the ledger, in the read
    /// model; and `verify` content.
    pub async fn prove(&self, serve: &Serve) {
        let model = std::mem::take(&mut *self.model.lock().expect("no panic"));
        // It waits for the drain, so that ledger and read model can be asked afterwards.
        let verified = run(&["verify", "--data-dir", serve.data_dir(), "-o", "json"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));

        let list = get(serve, "/wallets?limit=1000").await;
        let listed: BTreeMap<&str, &Value> = list
            .as_array()
            .expect("an array")
            .iter()
            .map(|wallet| (wallet["id"].as_str().expect("an id"), wallet))
            .collect();
        assert_eq!(listed.len(), WALLETS);
        for (id, account) in &model.accounts {
            let found = get(serve, &format!("/wallets/{id}")).await;
            for (place, wallet) in [("log", &found), ("read model", listed[id.as_str()])] {
                assert_eq!(wallet["balance"], json!(account.balance), "balance of {id} in the {place}");
                assert_eq!(wallet["version"], json!(account.postings), "version of {id} in the {place}");
            }
            let ledger = get(serve, &format!("/ledger/wallet/{id}/summary")).await;
            let posted = (&ledger["totalCredits"], &ledger["totalDebits"], &ledger["transactionCount"]);
            let expected = (&json!(account.credits), &json!(account.debits), &json!(account.postings));
            assert_eq!(posted, expected, "ledger of {id}");
        }
        if self.callers == Callers::Patient {
            let found = keys_in_the_log(serve).await;
            let mut differing = found.symmetric_difference(&model.keys);
            assert_eq!(differing.next(), None, "in the log: {}, acknowledged: {}", found.len(), model.keys.len());
        }
        println!(
            "{} commands answered, each accepted one once; {} without an answer, none of them done",
            model.acknowledged, model.unanswered
        );
    }
}

/// The keys of all commands that were appended; one that stands there twice fails.
async fn keys_in_the_log(serve: &Serve) -> BTreeSet<String> {
    let database = Database::connect(&serve.info.database_url, 1).await.expect("a connection");
    let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM idempotency_keys ORDER BY key")
        .fetch_all(database.pool())
        .await
        .expect("the keys");
    let count = keys.len();
    let keys: BTreeSet<String> = keys.into_iter().collect();
    assert_eq!(keys.len(), count, "each key once");
    keys
}

pub async fn get(serve: &Serve, path: &str) -> Value {
    let answer = client().get(format!("{}{path}", serve.info.url)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.expect("JSON")
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client")
}

pub fn name(wallet: usize) -> String {
    format!("wallet-{wallet}")
}

/// Sends a command until it has an answer that is one: anything but none at all or 503.
async fn send_until_answered(
    client: &reqwest::Client,
    place: &Place,
    path: &str,
    body: &Value,
    key: &str,
) -> (u16, Value) {
    // Callers start at different places, so that all of them are called.
    let first = key.bytes().map(usize::from).sum::<usize>();
    for attempt in first.. {
        let url = {
            let urls = place.urls.read().expect("no panic");
            format!("{}{path}", urls[attempt % urls.len()])
        };
        let sent = client.post(url).header("Idempotency-Key", key).json(body).send().await;
        if let Ok(answer) = sent {
            let status = answer.status().as_u16();
            if status == 503 {
                place.refusals.fetch_add(1, Ordering::SeqCst);
            } else if let Ok(body) = answer.json().await {
                return (status, body);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("there is always another attempt")
}

/// Sends a command that has no key, once. `None` where nobody has answered. Half an answer is a broken promise.
async fn send_once(client: &reqwest::Client, place: &Place, path: &str, body: &Value) -> Option<(u16, Value)> {
    let url = format!("{}{path}", place.urls.read().expect("no panic")[0]);
    let answer = client.post(url).json(body).send().await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.json().await.expect("a whole answer")))
}

/// One of the callers.
struct Caller {
    worker: u64,
    callers: Callers,
    rest: Duration,
}

async fn work(
    Caller { worker, callers, rest }: Caller,
    mut random: ChaCha8Rng,
    place: Arc<Place>,
    model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
) {
    let client = client();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
        number += 1;
        let (from, amount) = (random.random_range(0..WALLETS), random.random_range(1..=300_i64));
        let to = (from + random.random_range(1..WALLETS)) % WALLETS;
        let (from, to) = (name(from), name(to));
        let (kind, body) = match random.random_range(0..3) {
            0 => ("credit", json!({ "amount": amount })),
            1 => ("debit", json!({ "amount": amount })),
            _ => ("transfer", json!({ "amount": amount, "toWalletId": to })),
        };
        let (path, key) = (format!("/wallets/{from}/{kind}"), format!("{worker}-{number}"));
        let _under_way = place.gate.read().await;
        let answer = match callers {
            Callers::Patient => Some(send_until_answered(&client, &place, &path, &body, &key).await),
            Callers::Once => send_once(&client, &place, &path, &body).await,
        };
        let mut model = model.lock().expect("no panic");
        let Some((status, answer)) = answer else {
            model.unanswered += 1;
            return;
        };
        match status {
            201 => {
                if kind == "credit" {
                    model.accounts.entry(from).or_default().receive(amount);
                } else {
                    model.accounts.entry(from).or_default().pay(amount);
                }
                if kind == "transfer" {
                    model.accounts.entry(to).or_default().receive(amount);
                }
                model.keys.insert(key);
            }
            400 => assert_eq!(answer["code"], "INSUFFICIENT_FUNDS", "{answer}"),
            other => panic!("{other}: {answer}"),
        }
        model.acknowledged += 1;
    }
}
