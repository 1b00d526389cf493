//! What the relay says of itself.

use std::time::Duration;

use wallex::kafka::KafkaConfig;
use wallex::relay::{RelayOptions, RelayState};

use crate::support::TestDatabase;
use crate::world::{Running, Writer, broker, published, until_state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_says_that_it_publishes_and_that_it_was_stopped() {
    let database = TestDatabase::new().await;
    let status = database.database.relay_status().await.expect("a status");
    assert_eq!((status.state, status.holder), (RelayState::Absent, None));
    let (_broker, kafka) = broker();
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    until_state(&database, RelayState::Publishing).await;
    let status = database.database.relay_status().await.expect("a status");
    assert!(status.holder.is_some_and(|holder| holder.contains(&std::process::id().to_string())));
    relay.stop().await;
    let status = database.database.relay_status().await.expect("a status");
    assert_eq!((status.state, status.reason.as_deref()), (RelayState::Absent, Some("it was stopped")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_broker_is_away_says_so_and_goes_on_when_it_is_back() {
    let database = TestDatabase::new().await;
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(100).await;
    let gone = broker();
    let address = gone.1.brokers.clone();
    drop(gone);
    let relay = Running::start(&database.database, &KafkaConfig::new(&address), RelayOptions::default());
    // What it says while it begins is that it compares the topic; then why it cannot.
    let reason = loop {
        let reason = until_state(&database, RelayState::Waiting).await;
        if reason.contains("does not answer") {
            break reason;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(reason.contains(&address), "{reason}");
    relay.stop().await;
    let (_broker, kafka) = broker();
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    until_state(&database, RelayState::Publishing).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_the_log_blocks_the_relay_by_name_until_it_is_mended() {
    let database = TestDatabase::new().await;
    let mut writer = Writer::new(database.log());
    writer.append_many(100).await;
    database.run("CREATE TABLE kept AS SELECT * FROM events WHERE position = 60").await;
    database.run("DELETE FROM events WHERE position = 60").await;
    let (_broker, kafka) = broker();
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let reason = until_state(&database, RelayState::Blocked).await;
    assert!(reason.contains("position 61 where 60 should be"), "{reason}");
    database.run("INSERT INTO events SELECT * FROM kept").await;
    published(&database, 100).await;
    until_state(&database, RelayState::Publishing).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_ended_without_a_word_is_absent_after_a_while() {
    let database = TestDatabase::new().await;
    database
        .run(
            "UPDATE relay_status SET state = 'publishing', holder = 'process 1 on a', seen_at = now() - interval '5 s'",
        )
        .await;
    let status = database.database.relay_status().await.expect("a status");
    assert_eq!(status.state, RelayState::Publishing, "it may well be between two sessions");
    database.run("UPDATE relay_status SET seen_at = now() - interval '11 s'").await;
    let status = database.database.relay_status().await.expect("a status");
    assert_eq!((status.state, status.since), (RelayState::Absent, status.seen_at));
}
