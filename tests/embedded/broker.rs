//! What the relay and the projections take from the embedded broker for granted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use wallex::embedded::EmbeddedBroker;
use wallex::embedded::broker::{CONSUMER_SETTINGS, PARTITION_BYTES, PRODUCER_SETTINGS};

const TOPIC: &str = "wallet-events";
const PARTITIONS: i32 = 10;
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[(TOPIC, PARTITIONS), ("wallet-events-dlq", 5)]).expect("a broker")
}

fn producer(broker: &EmbeddedBroker, settings: &[(&str, &str)]) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap_servers()).set("enable.idempotence", "true");
    for (name, value) in PRODUCER_SETTINGS.iter().chain(settings) {
        config.set(*name, *value);
    }
    config.create().expect("a producer")
}

fn consumer(broker: &EmbeddedBroker, group: &str, settings: &[(&str, &str)]) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false");
    for (name, value) in CONSUMER_SETTINGS.iter().chain(settings) {
        config.set(*name, *value);
    }
    config.create().expect("a consumer")
}

async fn send(producer: &FutureProducer, partition: i32, key: &str, payload: &[u8]) -> i64 {
    let headers = OwnedHeaders::new()
        .insert(Header { key: "event-type", value: Some("WalletCredited") })
        .insert(Header { key: "position", value: Some(key) });
    let record = FutureRecord::to(TOPIC).partition(partition).key(key).payload(payload).headers(headers);
    let delivery = producer.send(record, PATIENCE).await.expect("a delivery");
    assert_eq!(delivery.partition, partition);
    delivery.offset
}

/// A hundred records, ten a partition. Key and position header are the number, the partition is its last digit.
async fn send_a_hundred(producer: &FutureProducer) {
    for number in 0..100_i32 {
        let payload = format!(r#"{{"number":{number},"text":"{}"}}"#, "la".repeat(100));
        send(producer, number % PARTITIONS, &number.to_string(), payload.as_bytes()).await;
    }
}

/// Polls the consumers in turn until they have `count` records together. Answers with the keys, by partition, in order.
fn receive(consumers: &[&BaseConsumer], count: usize) -> BTreeMap<i32, Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut received: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    let mut total = 0;
    while total < count {
        assert!(Instant::now() < deadline, "only {total} of {count} records: {received:?}");
        for consumer in consumers {
            let Some(record) = consumer.poll(POLL) else { continue };
            let record = record.expect("a record");
            let key = String::from_utf8(record.key().expect("a key").to_owned()).expect("text");
            let headers = record.headers().expect("headers");
            assert_eq!(headers.get(1), Header { key: "position", value: Some(key.as_bytes()) });
            assert!(record.payload().is_some_and(|payload| payload.starts_with(b"{")));
            received.entry(record.partition()).or_default().push(key);
            total += 1;
        }
    }
    received
}

fn each_partition_in_order() -> BTreeMap<i32, Vec<String>> {
    (0..PARTITIONS).map(|digit| (digit, (0..10).map(|ten| (ten * 10 + digit).to_string()).collect())).collect()
}

fn partition_at(partition: i32, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, partition, Offset::Offset(offset)).expect("an offset");
    list
}

fn committed(consumer: &BaseConsumer, partition: i32) -> Offset {
    let asked = partition_at(partition, 0);
    let answer = consumer.committed_offsets(asked, PATIENCE).expect("committed offsets");
    answer.find_partition(TOPIC, partition).expect("the partition").offset()
}

#[tokio::test]
async fn compressed_records_arrive_with_key_headers_and_order_per_partition() {
    let broker = broker();
    send_a_hundred(&producer(&broker, &[("compression.type", "gzip")])).await;
    let reader = consumer(&broker, "one", &[]);
    reader.subscribe(&[TOPIC]).unwrap();
    assert_eq!(receive(&[&reader], 100), each_partition_in_order());
}

#[tokio::test]
async fn a_new_group_does_not_wait_for_more_members() {
    let broker = broker();
    send(&producer(&broker, &[]), 3, "0", b"{}").await;
    let reader = consumer(&broker, "new", &[]);
    let start = Instant::now();
    reader.subscribe(&[TOPIC]).unwrap();
    receive(&[&reader], 1);
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[tokio::test]
async fn two_members_share_the_partitions() {
    for assignor in ["range", "cooperative-sticky"] {
        let broker = broker();
        let settings = [("partition.assignment.strategy", assignor), ("session.timeout.ms", "2000")];
        let readers = [consumer(&broker, "two", &settings), consumer(&broker, "two", &settings)];
        for reader in &readers {
            reader.subscribe(&[TOPIC]).unwrap();
        }
        let share = |reader: &BaseConsumer| reader.assignment().unwrap().count();
        let deadline = Instant::now() + PATIENCE;
        while !readers.iter().all(|reader| share(reader) == 5) {
            assert!(Instant::now() < deadline, "{assignor}: {:?}", readers.each_ref().map(share));
            for reader in &readers {
                assert!(reader.poll(POLL).is_none(), "nothing was sent yet");
            }
        }
        send_a_hundred(&producer(&broker, &[])).await;
        assert_eq!(receive(&readers.each_ref(), 100), each_partition_in_order(), "{assignor}");
    }
}

#[tokio::test]
async fn committed_offsets_are_seen_by_others_and_outlive_the_member() {
    let broker = broker();
    send_a_hundred(&producer(&broker, &[])).await;
    let member = consumer(&broker, "committing", &[]);
    member.subscribe(&[TOPIC]).unwrap();
    receive(&[&member], 100);
    member.commit(&partition_at(7, 10), CommitMode::Sync).unwrap();
    let observer = consumer(&broker, "committing", &[]);
    assert_eq!(committed(&observer, 7), Offset::Offset(10));
    assert_eq!(committed(&observer, 8), Offset::Invalid);
    drop(member);
    assert_eq!(committed(&observer, 7), Offset::Offset(10));
    // Not a member, in a group that has had some: refused.
    let refused = observer.commit(&partition_at(7, 3), CommitMode::Sync);
    assert_eq!(refused, Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId)));
}

#[tokio::test]
async fn a_consumer_that_assigns_itself_partitions_can_commit_too() {
    let broker = broker();
    send_a_hundred(&producer(&broker, &[])).await;
    let reader = consumer(&broker, "assigned", &[]);
    reader.assign(&partition_at(4, 5)).unwrap();
    assert_eq!(receive(&[&reader], 5)[&4], ["54", "64", "74", "84", "94"]);
    reader.commit(&partition_at(4, 10), CommitMode::Sync).unwrap();
    assert_eq!(committed(&reader, 4), Offset::Offset(10));
}

#[tokio::test]
async fn watermarks_are_the_first_and_the_next_offset() {
    let broker = broker();
    let observer = consumer(&broker, "observer", &[]);
    assert_eq!(observer.fetch_watermarks(TOPIC, 2, PATIENCE).unwrap(), (0, 0));
    send_a_hundred(&producer(&broker, &[])).await;
    assert_eq!(observer.fetch_watermarks(TOPIC, 2, PATIENCE).unwrap(), (0, 10));
    let topics = observer.fetch_metadata(None, PATIENCE).unwrap();
    let mut sizes: Vec<(&str, usize)> =
        topics.topics().iter().map(|topic| (topic.name(), topic.partitions().len())).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [("wallet-events", 10), ("wallet-events-dlq", 5)]);
}

#[tokio::test]
async fn a_partition_silently_drops_the_oldest_beyond_its_size() {
    let broker = broker();
    let sender = producer(&broker, &[]);
    let observer = consumer(&broker, "observer", &[]);
    let payload = vec![b'x'; 100_000];
    let that_fit = i64::try_from(PARTITION_BYTES / 101_000).unwrap();
    for _ in 0..that_fit {
        send(&sender, 0, "0", &payload).await;
    }
    assert_eq!(observer.fetch_watermarks(TOPIC, 0, PATIENCE).unwrap(), (0, that_fit), "all that fit are there");
    for _ in 0..10 {
        send(&sender, 0, "0", &payload).await;
    }
    let (first, next) = observer.fetch_watermarks(TOPIC, 0, PATIENCE).unwrap();
    assert_eq!(next, that_fit + 10);
    assert!((8..=10).contains(&first), "{first}");
    assert_eq!(observer.fetch_watermarks(TOPIC, 1, PATIENCE).unwrap(), (0, 0), "each partition for itself");
}

#[tokio::test]
async fn a_record_is_received_soon_after_it_was_sent() {
    let broker = broker();
    let sender = producer(&broker, &[]);
    let reader = consumer(&broker, "soon", &[]);
    send(&sender, 0, "0", b"{}").await;
    reader.subscribe(&[TOPIC]).unwrap();
    receive(&[&reader], 1);
    let mut took = Vec::new();
    for number in 1..=20_i32 {
        // The consumer is idle by now: its fetches come back empty.
        assert!(reader.poll(Duration::from_millis(20)).is_none());
        let start = Instant::now();
        send(&sender, number % PARTITIONS, &number.to_string(), b"{}").await;
        receive(&[&reader], 1);
        took.push(start.elapsed());
    }
    took.sort_unstable();
    // 6 ms on an idle machine; with librdkafka's default of 500 ms for an empty fetch it would be half a second.
    assert!(took[10] < Duration::from_millis(150), "median {:?}", took[10]);
}

#[test]
fn a_dropped_broker_is_gone() {
    let broker = broker();
    let address = broker.bootstrap_servers().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    std::net::TcpStream::connect(&address).unwrap();
    drop(broker);
    assert!(std::net::TcpStream::connect(&address).is_err());
}
