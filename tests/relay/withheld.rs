//! Records that are larger than they may be.

use wallex::kafka::{EVENTS_PARTITIONS, HEADER_LATE, KafkaConfig, partition_of};
use wallex::log::EventLog;
use wallex::relay::RelayOptions;
use wallex::wallet::Description;

use crate::support::TestDatabase;
use crate::world::{Running, Seen, Writer, assert_follows, broker, published, topic};

/// The client is told by an operator to send nothing larger.
fn narrow(kafka: &KafkaConfig) -> KafkaConfig {
    let mut kafka = kafka.clone();
    kafka.properties.insert("message.max.bytes".to_owned(), "1200".to_owned());
    kafka
}

async fn withheld(database: &TestDatabase) -> Vec<(String, i64, i64)> {
    let found = database.database.relay_withheld().await.expect("what is withheld");
    found.into_iter().map(|wallet| (wallet.wallet_id, wallet.position, wallet.events)).collect()
}

fn of<'a>(seen: &'a [Seen], wallet: &str) -> Vec<&'a Seen> {
    seen.iter().filter(|record| record.key == wallet.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_too_large_is_withheld_with_its_wallet_and_published_in_order_once_it_fits() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    writer.append_many(400).await;
    writer.description = Description::new("x".repeat(1_000)).ok();
    let large = writer.append(["wallet-3".to_owned()]).await;
    writer.description = None;
    let head = writer.append_many(600).await;
    let relay = Running::start(&database.database, &narrow(&kafka), RelayOptions::default());
    published(&database, head).await;
    let log = database.log().read(0, 2_000).await.expect("the log");
    let behind: Vec<i64> = log
        .iter()
        .filter(|event| event.stream.as_str() == "wallet-3" && event.position >= large)
        .map(|event| event.position)
        .collect();
    assert!(behind.len() > 2, "{behind:?}");
    assert_eq!(withheld(&database).await, [("wallet-3".to_owned(), large, behind.len() as i64)]);
    let seen = topic(&kafka).await;
    assert_eq!(seen.len() + behind.len(), head as usize);
    assert!(seen.iter().all(|record| !behind.contains(&record.position)));
    assert_follows(&database, &seen).await;
    relay.stop().await;

    // A later relay knows of it, and withholds what comes.
    let relay = Running::start(&database.database, &narrow(&kafka), RelayOptions::default());
    let head = writer.append(["wallet-3".to_owned(), "wallet-4".to_owned()]).await;
    published(&database, head).await;
    relay.stop().await;
    assert_eq!(withheld(&database).await, [("wallet-3".to_owned(), large, behind.len() as i64 + 1)]);
    assert_eq!(of(&topic(&kafka).await, "wallet-3").last().map(|record| record.position < large), Some(true));

    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let head = writer.append(["wallet-3".to_owned()]).await;
    published(&database, head).await;
    relay.stop().await;
    assert_eq!(withheld(&database).await, []);
    let seen = topic(&kafka).await;
    let mut positions: Vec<i64> = seen.iter().map(|record| record.position).collect();
    positions.sort_unstable();
    assert_eq!(positions, (1..=head).collect::<Vec<_>>());
    let wallet = of(&seen, "wallet-3");
    assert!(wallet.is_sorted_by_key(|record| record.headers["revision"].parse::<i64>().expect("a revision")));
    for record in &seen {
        let is_late = record.key == b"wallet-3" && (large..head).contains(&record.position);
        assert_eq!(record.headers.contains_key(HEADER_LATE), is_late, "{record:?}");
    }
    assert_follows(&database, &seen).await;

    // What stands at the end of the partition, behind its place, leads no later relay astray.
    let partition = partition_of(b"wallet-3", EVENTS_PARTITIONS);
    assert!(seen.iter().filter(|record| record.partition == partition).count() > behind.len());
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let head = writer.append_many(100).await;
    published(&database, head).await;
    relay.stop().await;
    assert_eq!(topic(&kafka).await.len(), head as usize);
}
