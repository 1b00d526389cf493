//! Real processes, killed under load: every acknowledged command is in the log, the ledger and the read model exactly once.
//! The callers do what callers should: they send a command again, with its key, until they have an answer.
//!
//! What a run draws follows from its seed, which it prints; `CRASH_SEED=…` draws the same again.

#[path = "crash/load.rs"]
mod load;
#[path = "crash/points.rs"]
mod points;
mod process;

use std::time::{Duration, Instant};

use load::{Callers, Load};
use nix::sys::signal::{Signal, kill};
use process::{Serve, room};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// No start after a kill may take longer. It takes a fraction of a second; machines under test are busy.
const START_MAX: Duration = Duration::from_secs(20);

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
    let mut load = Load::start(seed, Callers::Patient, vec![serve.info.url.clone()]).await;
    let mut longest = Duration::ZERO;
    for _ in 0..12 {
        load.until_acknowledged(random.random_range(1..400)).await;
        serve.kill();
        serve = Serve::start(&data_dir);
        longest = longest.max(serve.start_took);
        load.call_at(vec![serve.info.url.clone()]);
    }
    load.until_acknowledged(50).await;
    load.end().await;
    load.prove(&serve).await;
    println!("longest start after a kill: {longest:?}");
    assert!(longest < START_MAX, "a start took {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_postgresql_killed_again_and_again_loses_and_doubles_nothing() {
    let (room, seed) = (room(), seed());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let serve = Serve::start(&room.path().join("data"));
    let mut load = Load::start(seed, Callers::Patient, vec![serve.info.url.clone()]).await;
    let mut killed = Vec::new();
    while killed.len() < 6 {
        load.until_acknowledged(random.random_range(1..300)).await;
        // Answers to what was sent before the last kill may still count: the server may be on its way up.
        let Some(postmaster) = serve.postmaster().filter(|postmaster| !killed.contains(postmaster)) else { continue };
        if kill(postmaster, Signal::SIGKILL).is_ok() {
            killed.push(postmaster);
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
    let web = |number: usize| {
        let elsewhere = [
            "--only",
            "http",
            "--database-url",
            &whole.info.database_url,
            "--kafka-brokers",
            &whole.info.kafka_brokers,
        ];
        Serve::start_with(&room.path().join(format!("web-{number}")), &elsewhere)
    };
    let mut webs: Vec<Serve> = (0..2).map(web).collect();
    let urls = |webs: &[Serve]| -> Vec<String> {
        [&whole].into_iter().chain(webs).map(|serve| serve.info.url.clone()).collect()
    };
    let mut load = Load::start(seed, Callers::Patient, urls(&webs)).await;
    for _ in 0..6 {
        load.until_acknowledged(random.random_range(20..300)).await;
        let number = random.random_range(0..2);
        webs.remove(number).kill();
        // The others go on meanwhile; those who call the dead one find that out by themselves.
        load.until_acknowledged(10).await;
        webs.insert(number, web(number));
        load.call_at(urls(&webs));
    }
    load.end().await;
    load.prove(&whole).await;
}

/// Nobody sends anything again here, so that whatever was done without an answer shows as a difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serve_that_is_asked_to_stop_answers_what_it_has_taken() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let room = room();
        let data_dir = room.path().join("data");
        let serve = Serve::start(&data_dir);
        let mut load = Load::start(seed(), Callers::Once, vec![serve.info.url.clone()]).await;
        load.until_acknowledged(100).await;
        let asked = Instant::now();
        assert_eq!(serve.stop(signal), code);
        println!("{signal} to the end: {:?}", asked.elapsed());
        load.until_callers_have_ended().await;
        load.prove(&Serve::start(&data_dir)).await;
    }
}
