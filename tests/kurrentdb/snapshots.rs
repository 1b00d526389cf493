//! Long histories: a wallet that nobody holds in memory is loaded from a snapshot and the few events after it, not from its first
//! event, in the copy as little as in the store.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wallex::Wallex;
use wallex::lanes::CopiedLog;
use wallex::log::{EventLog, PostgresLog, SNAPSHOT_EVERY, SNAPSHOT_FORMAT, read_wallet};
use wallex::wallet::Command;

use crate::whole::config;
use crate::world::{PATIENCE, World, id, opening, patiently};

/// Waits until the wallet has a snapshot at a revision or after it.
async fn until_snapshot(world: &World, revision: i64) {
    let taken = async {
        while world.database.number("SELECT coalesce(max(revision), -1) FROM snapshots").await < revision {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("a snapshot in time");
}

#[tokio::test]
async fn slow_a_cold_wallet_with_ten_thousand_events_is_loaded_from_its_end() {
    const EVENTS: usize = 10_000;
    let world = World::new().await;
    world.store.fill(EVENTS, 1);
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    until_snapshot(&world, EVENTS as i64 - SNAPSHOT_EVERY).await;
    let copy = PostgresLog::new(world.database.database.clone());
    let tail = async || {
        let begun = Instant::now();
        let loaded = copy.load(&[id("w0")], SNAPSHOT_FORMAT).await.expect("a stream");
        (loaded[0].tail.len(), begun.elapsed())
    };
    let (events, took) = tail().await;
    assert!(events <= SNAPSHOT_EVERY as usize, "{events}");
    // From the store no more than the look at the stream's end, and the answer is right.
    let before = world.store.events_read();
    let begun = Instant::now();
    let answer = world.writer().ok(Command::debit(id("w0"), "0.01")).await;
    let command = begun.elapsed();
    assert_eq!((answer.wallet.balance.minor(), answer.wallet.version), (EVENTS as i64 - 2, EVENTS as i64));
    world.copied().await;
    // The ingest looks at the last event 20 times a second meanwhile.
    let read = world.store.events_read() - before;
    assert!(read < EVENTS as u64 / 10, "{read}");
    stop.cancel();
    ingest.await.expect("an ingest that stopped");

    world.database.run("DELETE FROM snapshots").await;
    let (bare, bare_took) = tail().await;
    assert_eq!(bare, EVENTS + 1);
    let begun = Instant::now();
    let answer = world.writer().ok(Command::credit(id("w0"), "0.01")).await;
    let bare_command = begun.elapsed();
    assert_eq!(answer.wallet.balance.minor(), EVENTS as i64 - 1, "nothing but a cache");
    println!(
        "a cold load of {EVENTS} events: {events} read in {took:?}, a first command in {command:?}; without a snapshot {bare} in \
         {bare_took:?}, {bare_command:?}"
    );
}

/// What a snapshot has passed over must still be known: whether a key was used, and whether a transfer was received.
#[tokio::test]
async fn keys_and_transfers_from_before_a_snapshot_are_known() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    let credit = || Command::credit(id("b"), "1.00");
    let first = writer.keyed(credit(), "k").await.expect("an answer");
    let transfer = || Command::transfer(id("a"), id("b"), "2.00");
    let moved = writer.keyed(transfer(), "t").await.expect("an answer");
    for _ in 0..SNAPSHOT_EVERY + 10 {
        writer.ok(Command::credit(id("b"), "0.01")).await;
    }
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    until_snapshot(&world, SNAPSHOT_EVERY).await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    // Beyond the copy, too.
    writer.ok(Command::credit(id("b"), "0.01")).await;
    let events = world.store.log().len();
    let cold = world.writer();
    let again = cold.keyed(credit(), "k").await.expect("an answer");
    assert!(again.replayed && again.wallet == first.wallet);
    let again = cold.keyed(transfer(), "t").await.expect("an answer");
    assert!(again.replayed && again.transfer == moved.transfer);
    assert_eq!(world.store.log().len(), events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_finds_the_snapshots_to_be_the_state_at_their_revision() {
    let world = World::new().await;
    world.store.fill(1_000, 4);
    let directory = tempfile::tempdir().expect("a directory");
    let wallex = Wallex::open(config(&world, &directory, true)).await.expect("a wallex");
    let answer = wallex.execute(Command::credit(id("w0"), "1.00")).await.expect("an answer");
    wallex.projected(answer.position, PATIENCE).await.expect("ledger and read model in time");
    let all = async {
        while world.database.number("SELECT count(*) FROM snapshots").await < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("snapshots in time");
    let proof = wallex.verify().await.expect("a proof");
    assert!(proof.ok, "{proof:?}");
    let check = proof.checks.iter().find(|check| check.name == "snapshots").expect("a check");
    assert_eq!(check.actual, "4 snapshots");
    wallex.close().await;
}

/// Each of the earlier system's events needs what the one before it has left; the copy has that.
#[tokio::test]
async fn the_end_of_a_long_history_of_the_earlier_system_is_not_folded_from_its_beginning() {
    const EVENTS: usize = 1_000;
    let world = World::new().await;
    let at = r#"{"occurredAt":"2024-05-06T07:08:09.123Z"}"#;
    world.store.keep("wallet-old", "WalletCreated", r#"{"ownerId":"owner"}"#, at);
    for _ in 1..EVENTS {
        world.store.keep("wallet-old", "WalletCredited", r#"{"amount":0.1}"#, at);
    }
    world.copy().await;
    let log = world.log();
    patiently(async || log.head().await).await;
    let both = CopiedLog::new(log, PostgresLog::new(world.database.database.clone()));
    let before = world.store.events_read();
    let view = read_wallet(&both, &id("old"), 100).await.expect("a sound history").expect("a wallet");
    assert_eq!((view.wallet.balance.minor(), view.wallet.version, view.trail.len()), (9_990, 999, 100));
    assert_eq!(world.store.events_read() - before, 0, "all of it is in the copy");
    // And two that the copy does not have yet.
    for _ in 0..2 {
        world.store.keep("wallet-old", "WalletCredited", r#"{"amount":0.1}"#, at);
    }
    let end = both.read_stream_end(&id("old"), 5).await.expect("events");
    let revisions: Vec<i64> = end.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, [997, 998, 999, 1_000, 1_001]);
    let view = read_wallet(&both, &id("old"), 100).await.expect("a sound history").expect("a wallet");
    assert_eq!((view.wallet.balance.minor(), view.wallet.version, view.trail.len()), (10_010, 1_001, 100));
    assert_eq!(world.log().read_stream_end(&id("old"), 5).await.expect("events")[4].payload, end[4].payload);
}
