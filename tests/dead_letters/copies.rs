//! What is parked is copied to the topic of dead letters, where any client of Kafka can read it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use wallex::dlq;
use wallex::kafka::{DLQ_PARTITIONS, DLQ_TOPIC, OutgoingRecord, partition_of};
use wallex::projection::LEDGER_PROJECTOR;

use crate::operator::Operator;
use crate::process::Part;
use crate::wallets::{mend, names, parked, poison, positions_of};
use crate::world::{PATIENCE, Raw, Topic, World, partition};

struct Copy {
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: BTreeMap<String, String>,
}

impl Copy {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("(none)", String::as_str)
    }
}

/// Reads the topic from its beginning, until it has so many records.
async fn copies(topic: &Topic, count: usize) -> Vec<Copy> {
    let brokers = topic.kafka().brokers;
    let reading = move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", "somebody")
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        for partition in 0..DLQ_PARTITIONS {
            list.add_partition_offset(DLQ_TOPIC, partition, Offset::Offset(0)).expect("a partition");
        }
        consumer.assign(&list).expect("an assignment");
        let (mut found, began) = (Vec::new(), Instant::now());
        while found.len() < count {
            assert!(began.elapsed() < PATIENCE, "{} copies of {count} have come", found.len());
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.expect("a record");
            let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
            let headers = message.headers().expect("headers").iter();
            found.push(Copy {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
            });
        }
        found
    };
    tokio::task::spawn_blocking(reading).await.expect("no panic")
}

fn project(operator: &Operator) -> Part {
    Part::spawn(operator.command(&["project", "ledger", "--kafka-config", "session.timeout.ms=6000"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_parked_record_is_copied_with_its_bytes_and_where_it_came_from() {
    let mut world = World::new(501).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(10)).await;
    world.operate(50).await;
    let bad = world.credit("wallet-5").await;
    world.credit("wallet-5").await;
    poison(&world, LEDGER_PROJECTOR, bad).await;
    let foreign =
        Raw { key: Some(vec![0xc3, 0x28]), value: None, headers: vec![("trace".to_owned(), vec![1, 2, 255])] };
    topic.send(9, &foreign);
    topic.send(9, &Raw { value: Some(b"no key".to_vec()), ..Raw::default() });
    world.relay(&topic, 0, world.head()).await;
    let projecting = project(&operator);
    let found = copies(&topic, 4).await;
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, 4);

    let event = world.events(bad - 1, bad).await.remove(0);
    let sent = Raw::of(&event);
    let copy = found.iter().find(|copy| copy.header("position") == bad.to_string()).expect("the event's copy");
    assert_eq!((&copy.key, &copy.value), (&sent.key, &sent.value));
    assert_eq!(copy.partition, partition_of(b"wallet-5", DLQ_PARTITIONS));
    let letter = operator.json(&["dlq", "show", "wallet-5", "--limit", "1"]).await[0].clone();
    for (name, expected) in [
        (dlq::HEADER_PARKED_ID, letter["recordId"].to_string()),
        (dlq::HEADER_CONSUMER_GROUP, LEDGER_PROJECTOR.to_owned()),
        (dlq::HEADER_ORIGINAL_TOPIC, "wallet-events".to_owned()),
        (dlq::HEADER_ORIGINAL_PARTITION, partition("wallet-5").to_string()),
        (dlq::HEADER_ORIGINAL_OFFSET, letter["offset"].to_string()),
        (dlq::HEADER_ERROR_CLASS, "APPLY".to_owned()),
        (dlq::HEADER_ATTEMPTS, "5".to_owned()),
        (dlq::HEADER_EVENT_ID, event.event_id.to_string()),
        ("event-type", "WalletCredited".to_owned()),
        ("aggregate-id", "wallet-5".to_owned()),
    ] {
        assert_eq!(copy.header(name), expected, "{name}");
    }
    assert!(copy.header(dlq::HEADER_ERROR_MESSAGE).contains(&format!("poison_{bad}")));
    for name in [dlq::HEADER_ORIGINAL_TIMESTAMP, dlq::HEADER_FIRST_FAILURE, dlq::HEADER_LAST_FAILURE] {
        chrono::DateTime::parse_from_rfc3339(copy.header(name)).expect(name);
    }
    let behind = found.iter().find(|copy| copy.header(dlq::HEADER_ERROR_CLASS) == "BEHIND").expect("the one behind");
    assert_eq!((behind.header(dlq::HEADER_ATTEMPTS), behind.partition), ("0", copy.partition));

    let tombstone = found.iter().find(|copy| copy.key == foreign.key).expect("the tombstone");
    assert!(tombstone.value.is_none() && tombstone.headers.contains_key("trace"));
    assert_eq!(tombstone.header(dlq::HEADER_EVENT_ID), "(none)");
    let keyless = found.iter().find(|copy| copy.key.is_none()).expect("the one without a key");
    assert_eq!((keyless.value.as_deref(), keyless.partition), (Some(&b"no key"[..]), 9 % DLQ_PARTITIONS));

    // It fails again: one more copy, of the same record.
    world
        .until("copies are noted", || async {
            world.database.number("SELECT count(*) FROM parked_records WHERE copied_at IS NULL").await == 0
        })
        .await;
    operator.json_and_code(&["dlq", "replay", "--all", "--execute"]).await;
    let found = copies(&topic, 5).await;
    let again: Vec<&Copy> = found
        .iter()
        .filter(|found| found.header(dlq::HEADER_PARKED_ID) == copy.header(dlq::HEADER_PARKED_ID))
        .collect();
    assert_eq!(again.iter().map(|copy| copy.header(dlq::HEADER_ATTEMPTS)).collect::<Vec<_>>(), ["5", "6"]);
    drop(projecting);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_read_from_the_log_is_copied_as_the_relay_would_have_sent_it() {
    let mut world = World::new(502).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(5)).await;
    let bad = world.credit("wallet-3").await;
    poison(&world, LEDGER_PROJECTOR, bad).await;
    // The topic that had them is gone.
    world.published(world.head()).await;
    let projecting = project(&operator);
    let copy = copies(&topic, 1).await.remove(0);
    let sent = OutgoingRecord::of(&world.events(bad - 1, bad).await[0], 0);
    assert_eq!((copy.key.as_deref(), copy.value.as_deref()), (Some(sent.key.as_bytes()), Some(&sent.value[..])));
    assert_eq!((copy.header("position"), copy.header("follows")), (bad.to_string().as_str(), "(none)"));
    assert_eq!(copy.header(dlq::HEADER_ORIGINAL_OFFSET), "(none)");
    // It can be replayed all the same.
    mend(&world, LEDGER_PROJECTOR, bad).await;
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    let position = positions_of(&world, "wallet-3").await.pop().expect("an event");
    let posted = format!("SELECT count(*) FROM ledger_postings WHERE position = {position}");
    assert_eq!(world.database.number(&posted).await, 2);
    drop(projecting);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_for_a_broker_that_is_away_and_one_that_is_too_large_goes_without_its_value() {
    let mut world = World::new(503).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(5)).await;
    world.relay(&topic, 0, world.head()).await;
    topic.send(1, &Raw { value: Some(vec![b'x'; 60_000]), ..Raw::default() });
    topic.send(1, &Raw { value: Some(b"small".to_vec()), ..Raw::default() });
    topic.flush();
    let ledger = world.start(wallex::projection::LedgerProjection::new(), &topic);
    world.until("they are parked", || async { parked(&world, LEDGER_PROJECTOR).await == 2 }).await;
    ledger.stop().await;

    let (database, stop) = (world.database.database.clone(), tokio_util::sync::CancellationToken::new());
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let away = wallex::kafka::KafkaConfig::new(nowhere.to_string());
    let copying = tokio::spawn(dlq::copy_dead_letters(database.clone(), away, stop.clone()));
    // Long enough to have tried; nothing is lost by it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let uncopied = "SELECT count(*) FROM parked_records WHERE copied_at IS NULL";
    assert_eq!(world.database.number(uncopied).await, 2);
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), copying)
        .await
        .expect("it ends at once")
        .expect("no panic")
        .expect("no error");

    let mut narrow = topic.kafka();
    narrow.properties.insert("message.max.bytes".to_owned(), "30000".to_owned());
    let stop = tokio_util::sync::CancellationToken::new();
    let copying = tokio::spawn(dlq::copy_dead_letters(database, narrow, stop.clone()));
    let found = copies(&topic, 2).await;
    let large = found.iter().find(|copy| copy.value.is_none()).expect("the large one");
    assert_eq!(large.header(dlq::HEADER_VALUE_OMITTED), "60000");
    assert!(found.iter().any(|copy| copy.value.as_deref() == Some(b"small")));
    world.until("copies are noted", || async { world.database.number(uncopied).await == 0 }).await;
    let shown = operator.json(&["dlq", "show", "--no-wallet"]).await;
    assert!(
        shown
            .as_array()
            .expect("letters")
            .iter()
            .any(|letter| letter["value"]["hex"].as_str().is_some_and(|hex| hex.len() == 120_000))
    );
    stop.cancel();
    copying.await.expect("no panic").expect("no error");
}
