//! The copy of the store in PostgreSQL: whole, in order, once, whatever fails in between.

use std::time::{Duration, Instant};

use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision};
use tokio_util::sync::CancellationToken;
use wallex::log::{PostgresLog, read_wallet};
use wallex::wallet::Command;

use crate::world::{PATIENCE, World, id, opening};

async fn lively(world: &World, wallets: i64) {
    let writer = world.writer();
    for wallet in 0..wallets {
        writer.ok(opening(&format!("w{wallet}"), 1_000)).await;
    }
    for turn in 0..wallets * 3 {
        let (from, to) = (format!("w{}", turn % wallets), format!("w{}", (turn + 1) % wallets));
        writer.keyed(Command::credit(id(&from), "1.00"), &format!("k{turn}")).await.expect("an answer");
        writer.ok(Command::transfer(id(&from), id(&to), "0.50")).await;
    }
    writer.stop().await;
}

#[tokio::test]
async fn everything_is_copied_once_and_in_order_with_keys_and_transfers() {
    let world = World::new().await;
    lively(&world, 4).await;
    let client = Client::new(world.store.connection_string().parse().expect("a connection string")).expect("a client");
    let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
    let foreign = EventData::json("WalletSnapshot", &"x").expect("JSON");
    client.append_to_stream("snapshot-wallet-w1", &options, foreign).await.expect("a stream of others");
    world.copy().await;
    world.assert_copy_is_true().await;
    assert_eq!(world.database.number("SELECT count(*) FROM idempotency_keys").await, 12);
    assert_eq!(world.database.number("SELECT count(*) FROM stream_transfers").await, 12);
    assert_eq!(world.in_transit().await, 0);
    // A key stands for its command's first event, and stays out of what everybody gets.
    let keyed =
        "SELECT count(*) FROM idempotency_keys k JOIN events e USING (position) JOIN streams s USING (stream_id)
                  WHERE s.name = k.wallet_id AND e.event_type = 'WalletCredited'";
    assert_eq!(world.database.number(keyed).await, 12);
    let shown = "SELECT count(*) FROM events WHERE convert_from(metadata, 'UTF8') NOT LIKE '{\"correlationId\":%'
                                                OR convert_from(metadata, 'UTF8') LIKE '%idempotency%'";
    assert_eq!(world.database.number(shown).await, 0);
    // The copy is a log like any other.
    let view = read_wallet(&PostgresLog::new(world.database.database.clone()), &id("w1"), 10).await;
    assert_eq!(view.expect("a sound history").expect("a wallet").wallet.balance.minor(), world.balance("w1").await);
    // Again, from where it ended: nothing twice.
    lively_again(&world).await;
    world.copy().await;
    world.assert_copy_is_true().await;
}

async fn lively_again(world: &World) {
    let writer = world.writer();
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    writer.ok(opening("new", 5)).await;
    writer.stop().await;
}

/// A page that was read before its predecessor's checkpoint was known to be stored: its events are there already.
#[tokio::test]
async fn pages_that_come_twice_change_nothing() {
    let world = World::new().await;
    lively(&world, 3).await;
    world.copy().await;
    let half_way = {
        let log = world.store.log();
        let kept = &log[log.len() / 2];
        format!(
            "UPDATE ingest_checkpoint SET commit_position = {0}, prepare_position = {0}, event_id = '{1}'",
            kept.position, kept.id
        )
    };
    for begin_again in ["DELETE FROM ingest_checkpoint", &half_way] {
        world.database.run(begin_again).await;
        world.copy().await;
        world.assert_copy_is_true().await;
        assert_eq!(world.database.number("SELECT count(*) FROM idempotency_keys").await, 9);
    }
}

#[tokio::test]
async fn one_copies_and_another_takes_over_when_it_ends() {
    let world = World::new().await;
    let stops = [CancellationToken::new(), CancellationToken::new()];
    let ingests = stops.clone().map(|stop| world.ingest(stop));
    lively(&world, 3).await;
    world.copied().await;
    let holders = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
                      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(world.database.number(holders).await, 1);
    // Whichever it is: its session goes, then itself.
    world.database.end_connections().await;
    lively_again(&world).await;
    world.copied().await;
    for (stop, ingest) in stops.into_iter().zip(ingests) {
        let writer = world.writer();
        writer.ok(Command::credit(id("w0"), "1.00")).await;
        world.copied().await;
        stop.cancel();
        ingest.await.expect("an ingest that stopped");
    }
    world.assert_copy_is_true().await;
}

#[tokio::test]
async fn the_copy_goes_on_after_cuts_kills_silence_and_reads_that_end_early() {
    let mut world = World::new().await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    lively(&world, 2).await;
    world.copied().await;
    let writer = world.writer();
    world.store.cut_connections();
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    world.copied().await;
    world.store.kill();
    world.store.start_again();
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    world.copied().await;
    world.store.end_reads_early(true);
    lively_again(&world).await;
    world.store.end_reads_early(false);
    world.copied().await;
    // Silent on open connections: noticed, and read again once it speaks.
    world.store.be_silent(true);
    tokio::time::sleep(Duration::from_secs(6)).await;
    world.store.be_silent(false);
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    world.copied().await;
    world.assert_copy_is_true().await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

/// Something is missing between what the copy has and what the store goes on with: nothing is copied past it.
#[tokio::test]
async fn the_copy_stops_before_a_gap() {
    let world = World::new().await;
    lively(&world, 2).await;
    world.copy().await;
    let copied = world.database.number("SELECT count(*) FROM events").await;
    let writer = world.writer();
    for _ in 0..3 {
        writer.ok(Command::credit(id("w0"), "1.00")).await;
    }
    // As a copy that was never given the first of these events.
    let (place, event) = {
        let log = world.store.log();
        let kept = &log[log.len() - 2];
        (kept.position, kept.id)
    };
    let statement = format!(
        "UPDATE ingest_checkpoint SET commit_position = {place}, prepare_position = {place}, event_id = '{event}'"
    );
    world.database.run(&statement).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    assert_eq!(world.database.number("SELECT count(*) FROM events").await, copied);
    let commit = world.database.database.ingested().await.expect("a checkpoint").map(|(commit, _)| commit as u64);
    assert_eq!(commit, Some(place));
}

/// A backlog, of many wallets and of few with long histories, which get snapshots meanwhile. How fast it is copied is for whoever reads
/// it; the bound is only for what is far off.
#[tokio::test]
async fn slow_a_backlog_is_copied_fast() {
    const EVENTS: usize = 40_000;
    for wallets in [1_000, 10] {
        let world = World::new().await;
        world.store.fill(EVENTS, wallets);
        let begun = Instant::now();
        let stop = CancellationToken::new();
        let ingest = world.ingest(stop.clone());
        tokio::time::timeout(PATIENCE, world.copied()).await.expect("in time");
        let rate = EVENTS as f64 / begun.elapsed().as_secs_f64();
        println!("copied {EVENTS} events of {wallets} wallets at {rate:.0}/s");
        stop.cancel();
        ingest.await.expect("an ingest that stopped");
        assert_eq!(world.database.number("SELECT position FROM log_head").await, EVENTS as i64);
    }
}
