//! A topic that is not the one that was published to last.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig};
use wallex::log::EventLog;
use wallex::relay::{RelayOptions, RelayState};

use crate::support::TestDatabase;
use crate::world::{
    Running, Writer, assert_follows, assert_once_and_in_order, broker, checkpoint, project, published, send, topic,
    until_state,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_position_goes_back_with_the_topic_and_is_true_while_it_is_filled() {
    let database = TestDatabase::new().await;
    let (first, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(5_000).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    drop(first);
    project(&database, 1_000).await;

    // A broker that takes nothing for the moment: what is published is what consumers have.
    let cluster = MockCluster::new(1).expect("a broker");
    cluster.create_topic(EVENTS_TOPIC, EVENTS_PARTITIONS, 1).expect("a topic");
    let kafka = KafkaConfig::new(cluster.bootstrap_servers());
    cluster.broker_round_trip_time(1, Duration::from_millis(300)).expect("a slow broker");
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let reason = until_state(&database, RelayState::Refilling).await;
    assert!(reason.contains("ends at offset 0"), "{reason}");
    let published_now = checkpoint(&database).await;
    assert!((1_000..head).contains(&published_now), "{published_now}");
    cluster.broker_round_trip_time(1, Duration::ZERO).expect("a broker as before");
    published(&database, head).await;
    until_state(&database, RelayState::Publishing).await;
    relay.stop().await;
    let seen = topic(&kafka).await;
    assert_once_and_in_order(&seen, 1_001..=head);
    assert_follows(&database, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_restored_from_the_past_gets_everything_after_what_it_ends_with() {
    let database = TestDatabase::new().await;
    let (first, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(2_000).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    drop(first);
    // The projections are through; whoever else reads the topic goes on where it ends.
    project(&database, head).await;
    let (_broker, kafka) = broker();
    send(&kafka, &database.log().read(0, 1_200).await.expect("the log"));
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let head = {
        until_state(&database, RelayState::Publishing).await;
        published(&database, head).await;
        writer.append_many(100).await
    };
    published(&database, head).await;
    relay.stop().await;
    assert_once_and_in_order(&topic(&kafka).await, 1..=head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_among_records_that_no_checkpoint_knows_is_published() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(500).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    // A session has sent more and learned of none of it, and one in three has not arrived.
    let head = writer.append_many(300).await;
    let events = database.log().read(500, 300).await.expect("the log");
    send(&kafka, events.iter().filter(|event| event.position % 3 != 0));
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    let mut positions: Vec<i64> = topic(&kafka).await.iter().map(|record| record.position).collect();
    positions.sort_unstable();
    assert_eq!(positions, (1..=head).collect::<Vec<_>>());
}
