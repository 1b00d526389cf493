//! Rounds of load under faults of the store, with servers that are killed between the legs: in the end everything that was asked
//! has happened once, and no money is lost, made or on its way.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wallex::sequencer::CommandError;
use wallex::wallet::Command;

use crate::kurrentdb_server::AppendFault;
use crate::world::{PATIENCE, World, id, opening, with_key};

const WALLETS: u32 = 6;
const CALLERS: u32 = 8;
const EACH: u32 = 12;

fn command(random: &mut ChaCha8Rng) -> Command {
    let wallet = |number: u32| id(&format!("w{number}"));
    let (from, step) = (random.random_range(0..WALLETS), random.random_range(1..WALLETS));
    match random.random_range(0..4) {
        0 => Command::credit(wallet(from), "0.03"),
        1 => Command::debit(wallet(from), "0.02"),
        _ => Command::transfer(wallet(from), wallet((from + step) % WALLETS), "0.05"),
    }
}

/// One round: callers with keys on two servers, one of which is killed; each caller asks until it has an answer.
async fn round(seed: u64) {
    let mut world = World::new().await;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    let (doomed, steady) = (world.writer(), world.writer());
    for wallet in 0..WALLETS {
        steady.ok(opening(&format!("w{wallet}"), 1_000)).await;
    }
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let services = [doomed.service.clone(), steady.service.clone()];
        let mut random = ChaCha8Rng::seed_from_u64(seed * 1_000 + u64::from(caller));
        callers.spawn(async move {
            for turn in 0..EACH {
                let (command, key) = (command(&mut random), format!("{caller}-{turn}"));
                let mut attempt = caller as usize;
                loop {
                    match services[attempt % 2].execute(with_key(command.clone(), &key)).await {
                        Ok(_) | Err(CommandError::Rejected(_)) => break,
                        Err(CommandError::Unavailable { .. }) => attempt += 1,
                        Err(other) => panic!("seed {seed}: {other}"),
                    }
                }
            }
        });
    }
    let kill_after = random.random_range(0..12);
    for turn in 0..12 {
        match random.random_range(0..6) {
            0 => world.store.fail_next_append(AppendFault::CutBefore),
            1 | 2 => world.store.fail_next_append(AppendFault::CutAfter),
            3 => world.store.cut_connections(),
            4 => {
                world.store.kill();
                world.store.start_again();
            }
            _ => world.store.answer_after(Duration::from_millis(random.random_range(0..5))),
        }
        if turn == kill_after {
            doomed.kill();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
    }
    world.store.answer_after(Duration::ZERO);
    while let Some(done) = callers.join_next().await {
        done.expect("a caller that got its answers");
    }
    let settled = async {
        loop {
            world.copied().await;
            if world.in_transit().await == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("seed {seed}: in transit for ever"));
    world.assert_copy_is_true().await;

    // What the balances add up to is what came in and went out, key by key once.
    let mut total = 0;
    for wallet in 0..WALLETS {
        total += world.balance(&format!("w{wallet}")).await;
    }
    let outside = "SELECT coalesce(sum(CASE event_type WHEN 'WalletCredited' THEN 1 ELSE -1 END
                      * round((convert_from(payload, 'UTF8')::json->>'amount')::numeric * 100)), 0)::bigint
                     FROM events WHERE event_type <> 'WalletCreated'
                      AND convert_from(payload, 'UTF8')::json->'transfer' IS NULL";
    assert_eq!(total, world.database.number(outside).await, "seed {seed}");
    let legs = "SELECT count(*) FROM (SELECT convert_from(payload, 'UTF8')::json->'transfer'->>'id' AS id, event_type,
                       count(*) AS times FROM events WHERE convert_from(payload, 'UTF8')::json->'transfer' IS NOT NULL
                       GROUP BY 1, 2) t WHERE times <> 1";
    assert_eq!(world.database.number(legs).await, 0, "seed {seed}: a leg twice");
    let decided = "SELECT count(*) FROM events e WHERE event_type <> 'WalletCreated' AND NOT EXISTS (
                       SELECT FROM idempotency_keys k WHERE k.position = e.position)
                      AND convert_from(payload, 'UTF8')::json->'transfer' IS NULL
                      AND coalesce(convert_from(payload, 'UTF8')::json->>'description', '') <> 'Initial balance'";
    assert_eq!(world.database.number(decided).await, 0, "seed {seed}: a key's effect twice");
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    steady.stop().await;
}

#[tokio::test]
async fn a_few_rounds_of_faults_lose_and_double_nothing() {
    for seed in 0..3 {
        round(seed).await;
    }
}

/// `WALLEX_TEST_ROUNDS` says how many, 20 else.
#[tokio::test]
async fn slow_many_rounds_of_faults_lose_and_double_nothing() {
    let rounds = std::env::var("WALLEX_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    for seed in 100..100 + rounds {
        round(seed).await;
    }
}
