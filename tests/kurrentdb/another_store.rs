//! A store that is not the one which was copied, or that was put back to an earlier state: noticed, said, and nothing copied from it;
//! and what a server takes away by itself, which is none of that.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wallex::ingest::Ingest;
use wallex::kurrentdb::{KurrentConfig, KurrentLog};
use wallex::lag::{LagProbe, State};
use wallex::log::{EventLog, LogError};
use wallex::relay::Bell;
use wallex::verify::{VerifyOptions, verify_copy};
use wallex::wallet::Command;

use crate::kurrentdb_server::KurrentServer;
use crate::world::{PATIENCE, World, id, opening};

const THEIRS: &str = r#"{"x":1}"#;

/// A world with two wallets that were copied, and an ingest that goes on.
async fn copied() -> (World, CancellationToken, JoinHandle<()>) {
    let world = World::at_home_in_the_store().await;
    let writer = world.writer();
    for (wallet, minor) in [("w0", 1_000), ("w1", 2_000)] {
        writer.ok(opening(wallet, minor)).await;
        writer.ok(Command::credit(id(wallet), "1.00")).await;
    }
    writer.stop().await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    (world, stop, ingest)
}

async fn end(stop: CancellationToken, ingest: JoinHandle<()>) {
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

/// What `lag` says of the store, once it says that it is another one.
async fn until_another(world: &World) -> String {
    let said = async {
        loop {
            let ingest = world.ingest_lag().await;
            if ingest.state == Some(State::AnotherStore) {
                assert!(ingest.store.connected && ingest.events.is_none() && ingest.is_above(i64::MAX));
                return ingest.store.error.expect("a reason");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.expect("noticed in time")
}

async fn copied_events(world: &World) -> i64 {
    world.database.number("SELECT count(*) FROM events").await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_behind_the_same_address_is_noticed_and_not_copied() {
    let (world, stop, ingest) = copied().await;
    // It knows wallets by the same names, with more events, and is as long or longer.
    let other = KurrentServer::start();
    other.fill(300, 3);
    let before = copied_events(&world).await;
    world.store.exchange_with(&other);
    let reason = until_another(&world).await;
    assert!(reason.contains("is not the one that this database has a copy of"), "{reason}");
    assert!(reason.contains("of wallet w1") && reason.contains("--event-store"), "{reason}");
    let report = world.report().await;
    assert!(report.total.needs_help && report.total.state == State::AnotherStore);
    let told = world.shell(&["lag", "--event-store", &world.store.connection_string()]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("another store"));
    assert!(String::from_utf8_lossy(&told.stderr).contains("put back to an earlier state"));

    let (store, database) = (world.log(), world.database.database.clone());
    let options = VerifyOptions { wait_max: Duration::ZERO };
    let proof = verify_copy(&database, Some(&store), None, &options, &mut |_| {}).await.expect("a verification");
    let copy = &proof.checks[0];
    assert!(!copy.ok && copy.actual.contains("is not the one"), "{copy:?}");
    // Also by one that begins now.
    end(stop, ingest).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(copied_events(&world).await, before);

    // The right one again: it goes on where it was.
    world.store.exchange_with(&other);
    let writer = world.writer();
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    world.copied().await;
    assert_eq!(world.ingest_lag().await.state, Some(State::Idle));
    world.assert_copy_is_true().await;
    end(stop, ingest).await;
}

/// One copies and another stands by: each is part of a process that takes commands.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_stands_by_refuses_another_store_too() {
    let (world, stop, ingest) = copied().await;
    end(stop, ingest).await;
    let stop = CancellationToken::new();
    let logs = [world.log(), world.log()];
    let ingests = logs.clone().map(|log| {
        tokio::spawn(Ingest::new(log, world.database.database.clone(), Bell::new(), || {}).run(stop.clone()))
    });
    let other = KurrentServer::start();
    other.fill(100, 2);
    for is_right in [true, false, true] {
        let all = async {
            for log in &logs {
                while log.read_stream(&id("w0"), 0, 1).await.is_ok() != is_right {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("both in time");
        if let Err(error) = logs[1].read_stream_end(&id("w0"), 1).await {
            assert!(matches!(&error, LogError::Away(reason) if reason.contains("is not the one")), "{error}");
        }
        world.store.exchange_with(&other);
    }
    stop.cancel();
    for ingest in ingests {
        ingest.await.expect("an ingest that stopped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_put_back_is_noticed_whether_it_went_on_or_not() {
    for events in [0, 4, 5] {
        let (world, stop, ingest) = copied().await;
        let before = copied_events(&world).await;
        assert_eq!(before, 6);
        world.store.put_back(events);
        let reason = until_another(&world).await;
        assert!(reason.contains("event 2 of wallet w1, which was copied, is not there"), "{events}: {reason}");
        // It goes on from there, past where the copy was.
        let data = r#"{"amount":"7.00","balance":"27.00","currency":"USD"}"#;
        let metadata = r#"{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1}"#;
        for _ in 0..10 {
            world.store.keep("wallet-w1", "WalletCredited", data, metadata);
        }
        let reason = until_another(&world).await;
        assert!(reason.contains("of wallet w1"), "{events}: {reason}");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(copied_events(&world).await, before);
        end(stop, ingest).await;
    }
}

/// Servers take away events of streams that are cut to a length or an age, and the copy's place may be one of them.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_others_that_are_taken_away_hold_nobody_up() {
    let (world, stop, ingest) = copied().await;
    world.store.keep("statistics", "X", THEIRS, THEIRS);
    world.copied().await;
    world.store.scavenge("statistics");
    let writer = world.writer();
    writer.ok(Command::credit(id("w1"), "1.00")).await;
    writer.ok(opening("w2", 5)).await;
    world.copied().await;
    assert_eq!(world.ingest_lag().await.state, Some(State::Idle));
    world.assert_copy_is_true().await;
    end(stop, ingest).await;
    // The same where the process was not there when it happened.
    world.store.keep("statistics", "X", THEIRS, THEIRS);
    world.copy().await;
    world.store.scavenge("statistics");
    assert_eq!(world.ingest_lag().await.events, Some(0));
    writer.ok(Command::credit(id("w2"), "1.00")).await;
    assert_eq!(world.ingest_lag().await.events, Some(1));
    world.copy().await;
    world.assert_copy_is_true().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_among_events_of_others_that_is_gone_is_no_place_to_go_on_from() {
    let world = World::at_home_in_the_store().await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.store.keep("statistics", "X", THEIRS, THEIRS);
    world.copied().await;
    end(stop, ingest).await;
    // Another store, or this one with those events taken away: nothing was copied, so nothing can be wrong, and nothing is left out.
    world.store.put_back(0);
    let writer = world.writer();
    writer.ok(opening("w0", 1_000)).await;
    world.copy().await;
    world.assert_copy_is_true().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_under_another_prefix_are_another_store() {
    let (world, stop, ingest) = copied().await;
    end(stop, ingest).await;
    let config = KurrentConfig::new(&world.store.connection_string()).expect("a connection string");
    let config = config.with_stream_prefix("staging-").expect("a prefix");
    let probe = LagProbe::new(world.database.database.clone(), None);
    let probe = probe.with_event_store(Some(KurrentLog::new(config))).with_patience(PATIENCE);
    let ingest = probe.report().await.expect("a report").ingest.expect("an ingest");
    assert_eq!(ingest.state, Some(State::AnotherStore));
    let reason = ingest.store.error.expect("a reason");
    assert!(reason.contains("streams named wallet-… were copied") && reason.contains("staging-…"), "{reason}");
}
