//! A soak: load on many real processes, each of which is killed, stopped or halted at random, on a real PostgreSQL and a real
//! Kafka that are killed and halted too; wallets poisoned and healed, strangers' records, members that come and go, topics deleted.
//! At the end `verify`, and a count from independent sources that ends with four zeros: lost, doubled, out of order, drifted.
//!
//! `scripts/soak` runs it for as long as it is told. What is done follows from the seed (when it hits does not: that is up to the
//! machine); a run that fails prints the command that runs it again.

#[path = "../kafka/mod.rs"]
mod kafka;
#[path = "../crash/load.rs"]
mod load;
#[path = "../process/mod.rs"]
mod process;

mod disturbances;
mod judge;
mod system;

use std::time::{Duration, Instant};

use disturbances::{Disturbance, disturb, heal, prepare_poison};
use judge::Verdict;
use load::{Callers, Load};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use system::System;
use wallex::postgres::sqlx;

/// How long each caller rests after an answer: enough load to be in the middle of something at any time, and not so much that the
/// count at the end takes longer than the soak.
const REST: Duration = Duration::from_millis(40);
/// After so many rounds everything must have been dealt with once, so that a standstill is noticed near its cause.
const DRAIN_EVERY: usize = 10;
/// How long at least a round lasts, in milliseconds: processes should come to work before they are killed again.
const ROUND: std::ops::Range<u64> = 1_500..4_500;

/// What `scripts/soak` tells us.
struct Options {
    seed: u64,
    rounds: usize,
    /// Begin no round after this time; all rounds count where it is not given.
    minutes: Option<u64>,
}

impl Options {
    fn from_environment() -> Options {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
        let minutes = number("SOAK_MINUTES");
        let rounds = number("SOAK_ROUNDS").map(|rounds: u64| rounds as usize);
        Options {
            seed: number("SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())),
            rounds: rounds.unwrap_or(if minutes.is_some() { usize::MAX } else { 10 }),
            minutes,
        }
    }

    fn again(&self) -> String {
        let long = match self.minutes {
            Some(minutes) => format!("--minutes {minutes}"),
            None => format!("--rounds {}", self.rounds),
        };
        format!("scripts/soak {long} --seed {}", self.seed)
    }

    fn is_over(&self, round: usize, began: Instant) -> bool {
        round >= self.rounds || self.minutes.is_some_and(|minutes| began.elapsed() >= Duration::from_secs(minutes * 60))
    }

    /// Whether the last part has begun, after the topic was made anew: without strangers and without relays that are halted. What
    /// either leaves in the topic is a difference for `verify` as long as it is kept.
    fn is_late(&self, round: usize, began: Instant) -> bool {
        match self.minutes {
            Some(minutes) => began.elapsed() >= Duration::from_secs(minutes * 60) * 4 / 5,
            None => round >= self.rounds * 4 / 5,
        }
    }
}

/// Says how to run a failed soak again, however it fails.
struct OnFailure(String);

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nthe soak has failed; the same again: {}", self.0);
        }
    }
}

/// Everything goes on, and callers know where.
async fn calm(system: &mut System, load: &Load) {
    system.calm();
    system.until_served().await;
    load.call_at(system.urls());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_soak_on_a_real_kafka_ends_with_four_zeros() {
    let options = Options::from_environment();
    let _on_failure = OnFailure(options.again());
    println!("{}", options.again());
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut system = System::start().await;
    prepare_poison(&system).await;
    system.until_served().await;
    let mut load = Load::start_paced(options.seed, Callers::Patient, system.urls(), REST).await;

    let began = Instant::now();
    let (mut verdict, mut round, mut is_late) = (Verdict::default(), 0, false);
    // What lay in its buffers may be in the topic twice.
    let mut a_relay_was_halted = false;
    while !options.is_over(round, began) {
        if !is_late && options.is_late(round, began) {
            is_late = true;
            calm(&mut system, &load).await;
            let paused = load.pause().await;
            system.until_drained().await;
            verdict.judge_topic(&system, a_relay_was_halted).await;
            drop(paused);
            println!("round {round}: {}", disturb(&mut system, Disturbance::DeleteTopic, &mut random).await);
        }
        let mut what = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            let drawn = Disturbance::draw(&mut random);
            if !(is_late && matches!(drawn, Disturbance::Foreign | Disturbance::Halt(system::Role::Relay))) {
                a_relay_was_halted |= drawn == Disturbance::Halt(system::Role::Relay);
                what.push(disturb(&mut system, drawn, &mut random).await);
            }
        }
        println!("round {round}: {}", what.join("; "));
        let goal = load.acknowledged() + random.random_range(50..600);
        let until = Instant::now() + Duration::from_millis(random.random_range(ROUND));
        system
            .until("commands are acknowledged again", async |system: &System| {
                load.call_at(system.urls());
                load.acknowledged() >= goal && Instant::now() >= until
            })
            .await;
        round += 1;
        if round.is_multiple_of(DRAIN_EVERY) {
            calm(&mut system, &load).await;
            system.until_drained().await;
        }
    }

    println!("the end: nothing is disturbed any more");
    calm(&mut system, &load).await;
    load.end().await;
    system.until_drained().await;
    let healed = heal(&mut system).await;
    println!("{}", String::from_utf8_lossy(&healed.stdout));
    system.command(&[
        "dlq",
        "discard",
        "--error",
        "FOREIGN",
        "--execute",
        "--reason",
        "strangers' records of the soak",
    ]);
    system.until_drained().await;
    let parked: i64 = sqlx::query_scalar("SELECT count(*) FROM parked_records")
        .fetch_one(system.database.pool())
        .await
        .expect("a count");
    let verified = system.command(&["verify"]);
    verdict.judge_topic(&system, false).await;
    verdict.judge_effects(&system, &load.model()).await;
    println!("{}", String::from_utf8_lossy(&verified.stdout));
    println!("{}", verdict.table(options.seed, round, began.elapsed()));
    let is_well = verdict.is_clean() && verified.status.success() && parked == 0;
    assert!(is_well, "not four zeros, or verify has found something, or something is parked: {parked} records");
}
