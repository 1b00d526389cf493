//! Rounds of load in which `serve` is killed between the legs of transfers, or at any other time, and the event store fails in every
//! way that it has: everything that was acknowledged is there once, and at rest no money is on its way.
//!
//! On a server that is not the test's own (`store`) `serve` is killed just so, and nothing is done to the server.
//!
//! `CRASH_ROUNDS` says how many rounds, a few else; `CRASH_SEED` draws the same again.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wallex::postgres::{Database, sqlx};

use crate::kurrentdb_server::AppendFault;
use crate::load::{Callers, Load, Model, get};
use crate::process::{Serve, room, wallex};
use crate::shell::until_at_rest;
use crate::store::Store;

/// How long a `serve` under load may take to come to the place where it dies.
const PATIENCE: Duration = Duration::from_secs(120);
/// After so many rounds all comes to rest, so that what does not is noticed near its cause.
const REST_EVERY: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// A `serve` that dies between the legs of its `passes`th transfer.
fn start_to_crash(data_dir: &Path, event_store: &[&str], passes: u64) -> Serve {
    let mut command = wallex(&["serve", "--listen", "127.0.0.1:0", "--log", "error"]);
    command.args(event_store).env("WALLEX_CRASH_AT", format!("between-legs:{passes}")).stderr(Stdio::null());
    Serve::start_as(data_dir, command)
}

/// Something goes wrong with the store, or nothing; with one that is not ours, nothing.
fn disturb(store: &mut Store, random: &mut ChaCha8Rng) {
    let fault = random.random_range(0..6);
    let Some(store) = &mut store.ours else { return };
    match fault {
        0 => store.fail_next_append(AppendFault::CutBefore),
        1 => store.fail_next_append(AppendFault::CutAfter),
        2 => store.cut_connections(),
        3 => {
            store.kill();
            store.start_again();
        }
        4 => store.answer_after(Duration::from_millis(random.random_range(0..5))),
        _ => store.answer_after(Duration::ZERO),
    }
}

/// What there is though it should not be, counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Movements that were acknowledged and are not there.
    lost: i64,
    /// Movements beyond those that were acknowledged.
    doubled: i64,
    /// Events that do not follow the one before them in their wallet.
    out_of_order: i64,
    /// Wallets that hold another amount than by what was acknowledged.
    drifted: i64,
    /// Transfers of which one leg is missing.
    in_transit: i64,
}

impl Found {
    async fn out(model: &Model, serve: &Serve) -> Self {
        let mut found = Found::default();
        for (id, account) in &model.accounts {
            let wallet = get(serve, &format!("/wallets/{id}")).await;
            let movements = wallet["version"].as_i64().expect("a version");
            found.lost += (account.postings - movements).max(0);
            found.doubled += (movements - account.postings).max(0);
            found.drifted += i64::from(wallet["balance"].as_i64() != Some(account.balance));
        }
        let database = Database::connect(&serve.info.database_url, 1).await.expect("a connection");
        let steps =
            "SELECT count(*) FROM (SELECT revision - coalesce(lag(revision) OVER wallet, -1) AS step FROM events
                                           WINDOW wallet AS (PARTITION BY stream_id ORDER BY position)) AS steps
                      WHERE step <> 1";
        let in_transit = "SELECT count(*) FROM stream_transfers WHERE credit_position IS NULL";
        let number = async |query| sqlx::query_scalar(query).fetch_one(database.pool()).await.expect("a number");
        (found.out_of_order, found.in_transit) = (number(steps).await, number(in_transit).await);
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_serve_killed_between_the_legs_again_and_again_loses_and_doubles_nothing() {
    let seed = number("CRASH_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let rounds = number("CRASH_ROUNDS").unwrap_or(6);
    let (room, mut store) = (room(), Store::start().await);
    let data_dir = room.path().join("data");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let event_store: Vec<String> = store.arguments().into_iter().map(str::to_owned).collect();
    let event_store: Vec<&str> = event_store.iter().map(String::as_str).collect();
    let start = || Serve::start_with(&data_dir, &event_store);
    let mut serve = start();
    let mut load = Load::start(seed, Callers::Patient, vec![serve.info.url.clone()]).await;
    let mut between_legs = 0;
    for round in 1..=rounds {
        load.until_acknowledged(random.random_range(1..60)).await;
        disturb(&mut store, &mut random);
        serve.kill();
        if random.random_range(0..3) > 0 {
            serve = start_to_crash(&data_dir, &event_store, random.random_range(1..30));
            load.call_at(vec![serve.info.url.clone()]);
            disturb(&mut store, &mut random);
            serve.until_killed(PATIENCE).await;
            between_legs += 1;
        }
        serve = start();
        load.call_at(vec![serve.info.url.clone()]);
        if round % REST_EVERY == 0 {
            let _held = load.pause().await;
            until_at_rest(&serve).await;
        }
    }
    load.until_acknowledged(50).await;
    load.end().await;
    until_at_rest(&serve).await;
    let events = store.wallet_events().await;
    println!("{rounds} rounds, {between_legs} of them between the legs; {events} events in the store");
    let found = Found::out(&load.model(), &serve).await;
    println!("{found:?}");
    assert_eq!(found, Found::default());
    load.prove(&serve).await;
    // What the store holds is what the copy was made of.
    let head = get(&serve, "/health/progress").await["head"].as_i64();
    assert_eq!(head, Some(events), "each event was copied once, and nobody else's");
}
