//! Each trap of the store's client, as the copy meets it. Most of them cannot snap any more, because it reads pages and subscribes to
//! nothing (`tests/architecture.rs` keeps it so); then what matters is shown all the same.
//!
//! | trap | the client has it | the copy, or the store that it reads |
//! | --- | --- | --- |
//! | dead after a failed first contact | `server::a_client_whose_first_contact_failed_…` | `a_copy_that_begins_while_the_store_is_away_…`, `store::a_server_that_is_killed_…` |
//! | a wait that is given up subscribes again | `server::a_wait_for_the_next_event_…` | `a_page_that_is_given_up_…` |
//! | a clean end spins a core | | `reads_that_end_cleanly_…`, `the_copy_subscribes_to_nothing_…` |
//! | silence while the log grows | `server::a_connection_that_is_muted_…` | `slow_silence_while_the_log_grows_…`, `store::a_server_that_is_silent_…` |
//! | checkpoints at u64::MAX | `server::a_subscription_is_confirmed_…` | `the_copy_subscribes_to_nothing_…`, and `ingest::recognition` by itself |
//! | resuming after the last place | `server::a_subscription_is_confirmed_…` | `a_copy_that_begins_again_…`, `copy::pages_that_come_twice_…` |
//! | connections that are cut | `server::an_append_that_is_cut_…` | `copy::the_copy_goes_on_after_cuts_…`, `store::an_append_whose_answer_was_lost_…` |
//! | a leader that moves | `server::a_follower_sends_the_client_…` | `the_copy_follows_a_leader_…`, `store::a_leader_that_moves_…` |

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wallex::log::EventLog;
use wallex::wallet::Command;

use crate::world::{PATIENCE, World, id, opening};

const AT: &str = r#"{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1}"#;

/// A client whose first contact has failed is dead for ever: another one is made.
#[tokio::test]
async fn a_copy_that_begins_while_the_store_is_away_goes_on_once_it_is_there() {
    let mut world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("w0", 1_000)).await;
    world.store.kill();
    let log = world.log();
    assert!(log.scan(None, 10).await.is_err(), "the first contact");
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    // A second one: each has a client of its own.
    let other = world.ingest(stop.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.store.start_again();
    world.copied().await;
    world.assert_copy_is_true().await;
    let scanned = async { while log.scan(None, 10).await.is_err() {} };
    tokio::time::timeout(PATIENCE, scanned).await.expect("an answer");
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    other.await.expect("an ingest that stopped");
}

/// A subscription's wait for the next event subscribes again when it is given up. A page that is given up is read again, whole.
#[tokio::test]
async fn a_page_that_is_given_up_half_way_is_read_again_whole() {
    let world = World::new().await;
    world.store.fill(50, 5);
    let log = world.log();
    let whole = log.scan(None, 100).await.expect("a page");
    assert_eq!(whole.events.len(), 50);
    let place = |number: usize| Some(whole.events[number].0);
    for attempt in 0..20 {
        world.store.answer_after(Duration::from_millis(20));
        let given_up = tokio::time::timeout(Duration::from_millis(attempt), log.scan(place(9), 100)).await;
        world.store.answer_after(Duration::ZERO);
        let again = log.scan(place(9), 100).await.expect("a page");
        assert_eq!(again.events.len(), 40, "{}", given_up.is_ok());
        assert_eq!((again.events[0].0, again.looked_to), (whole.events[10].0, whole.looked_to));
    }
    assert_eq!(world.store.subscriptions(), 0);
}

/// A subscription that a gateway ends with status OK makes the client spin a core. Reads that end so, early, with nothing in them,
/// are asked again at the pace of an idle copy.
#[tokio::test]
async fn reads_that_end_cleanly_and_early_make_nobody_spin() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("w0", 1_000)).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    for early in [false, true] {
        world.store.end_reads_early(early);
        let (before, begun) = (world.store.reads(), Instant::now());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let a_second = (world.store.reads() - before) as f64 / begun.elapsed().as_secs_f64();
        println!("{a_second:.0} reads a second of a copy with nothing to do; ended early: {early}");
        // 20 times a second it looks, with a few reads each where it must make sure of its place. Who spins reads thousands.
        assert!(a_second > 0.0 && a_second < 200.0, "{a_second}");
    }
    world.store.end_reads_early(false);
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    world.copied().await;
    world.assert_copy_is_true().await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

/// The worst silence: the other end is gone without a word while the log grows. The best of some rounds, for others may be using the
/// machine.
#[tokio::test]
async fn slow_silence_while_the_log_grows_is_noticed_within_ten_seconds() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("w0", 1)).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    let mut noticed = Vec::new();
    for round in 0..3 {
        world.store.mute_connections();
        let begun = Instant::now();
        let balance = format!("0.{:02}", round + 2);
        let data = format!(r#"{{"amount":"0.01","balance":"{balance}","currency":"USD"}}"#);
        world.store.keep("wallet-w0", "WalletCredited", &data, AT);
        world.copied().await;
        noticed.push(begun.elapsed());
    }
    println!("silence was noticed, and what it hid was copied, within {noticed:?}");
    assert!(noticed.iter().min().is_some_and(|best| *best < Duration::from_secs(10)), "{noticed:?}");
    world.assert_copy_is_true().await;
    // Commands find their way back too.
    writer.ok(Command::credit(id("w0"), "1.00")).await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

/// Checkpoints that are no positions, deliveries that come twice, clean ends: all of them are for subscribers.
#[tokio::test]
async fn the_copy_subscribes_to_nothing_and_its_place_is_always_an_events() {
    let world = World::new().await;
    world.store.begin_with_no_position(true);
    world.store.deliver_twice(true);
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    let writer = world.writer();
    for wallet in 0..5 {
        writer.ok(opening(&format!("w{wallet}"), 100)).await;
        world.store.keep("of others", "X", "{}", "{}");
        world.store.end_subscriptions();
        world.copied().await;
        let (commit, prepare) = world.database.database.ingested().await.expect("an answer").expect("a place");
        assert!(commit == prepare && world.store.log().iter().any(|kept| kept.position == commit as u64), "{commit}");
    }
    world.assert_copy_is_true().await;
    assert_eq!(world.store.subscriptions(), 0);
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

#[tokio::test]
async fn a_copy_that_begins_again_reads_only_what_comes_after_its_place() {
    let world = World::new().await;
    world.store.fill(3_000, 10);
    world.copy().await;
    world.assert_copy_is_true().await;
    let writer = world.writer();
    writer.ok(opening("new", 100)).await;
    let before = world.store.events_read();
    world.copy().await;
    let read = world.store.events_read() - before;
    // The event at the place, to know it again, twice; the two new ones; and while it waits, the last one again and again.
    assert!((3..100).contains(&read), "{read}");
    world.assert_copy_is_true().await;
}

#[tokio::test]
async fn the_copy_follows_a_leader_that_moves() {
    let world = World::new().await;
    let second = world.store.another_node();
    let writer = world.writer();
    writer.ok(opening("w0", 1_000)).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    world.copied().await;
    // There and back, with connections that are cut and with such that stay.
    for (leader, cut) in [(Some(second.address()), true), (None, false), (Some(second.address()), false), (None, true)]
    {
        second.follow(leader.is_none().then_some(world.store.address()));
        world.store.follow(leader);
        if cut {
            world.store.cut_connections();
            second.cut_connections();
        }
        writer.ok(Command::credit(id("w0"), "1.00")).await;
        world.copied().await;
    }
    assert_eq!(world.events("w0").await.len(), 2 + 4);
    assert_eq!(wallex::log::PostgresLog::new(world.database.database.clone()).head().await.expect("a head"), 6);
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}
