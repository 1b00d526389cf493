//! `verify` agrees with a world that is right, and names what is wrong with one that is not.

mod world;

use std::time::Duration;

use wallex::kafka::{EVENTS_PARTITIONS, KafkaConfig, OutgoingRecord, partition_of};
use wallex::log::RecordedEvent;
use wallex::money::Amount;
use wallex::projection::BUILT_IN;
use wallex::verify::{VerifyOptions, VerifyProgress, verify};
use wallex::wallet::WalletEvent;

use world::{World, assert_finds, check, failed};

fn place(event: &RecordedEvent) -> String {
    format!("wallet {}, position {}:", event.stream, event.position)
}

fn partition(event: &RecordedEvent) -> i32 {
    partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS)
}

/// The right record of an event, as a relay that has begun with it would send it.
fn record(event: &RecordedEvent) -> OutgoingRecord {
    OutgoingRecord::of(event, event.position - 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_world_that_is_right_is_proven() {
    let world = World::settled().await;
    let mut stages = Vec::new();
    let proof = verify(&world.database, Some(&world.kafka), &VerifyOptions::default(), &mut |now| {
        assert!(now.total == 0 || now.done <= now.total);
        stages.push(now.stage);
    })
    .await
    .expect("a verification");
    assert!(proof.ok, "{proof:#?}");
    assert_eq!(proof.position, world.head());
    assert_eq!(check(&proof, "topic").actual, format!("{} records", world.head()));
    let names: Vec<_> = proof.checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "drained",
            "nothing parked",
            "discarded",
            "log",
            "histories",
            "outbox",
            "topic",
            "ledger",
            "double entry",
            "money",
            "read model",
            "snapshots",
            "idempotency keys",
            "checkpoints"
        ]
    );
    stages.dedup();
    assert_eq!(stages, ["log, ledger, topic", "histories, read model", "keys and the rest"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_world_is_proven() {
    let world = World::empty().await;
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
    assert_eq!(proof.position, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_event_is_named() {
    let world = World::settled().await;
    let gone = world.a_credit().await;
    world.sql(&format!("DELETE FROM events WHERE position = {}", gone.position)).await;
    let proof = world.verify().await;
    let place = format!("position {}: nothing", gone.position);
    let failing = ["log", "histories", "topic", "ledger", "money", "idempotency keys"];
    assert_finds(&proof, &failing, "log", &[&place]);
    assert_finds(&proof, &failing, "histories", &[&format!("revision {}", gone.revision)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_amount_changed_in_the_log_is_named() {
    let world = World::settled().await;
    let changed = world.a_credit().await;
    let WalletEvent::WalletCredited { amount, balance, currency, description, transfer } =
        changed.decode().expect("an event")
    else {
        unreachable!("a credit")
    };
    let amount = amount.checked_add(Amount::from_minor(1).expect("a cent")).expect("an amount");
    let event = WalletEvent::WalletCredited { amount, balance, currency, description, transfer };
    let payload = String::from_utf8(event.to_payload()).expect("JSON").replace('\\', "\\\\");
    let statement = format!(
        "UPDATE events SET payload = convert_to($payload${payload}$payload$, 'UTF8') WHERE position = {}",
        changed.position
    );
    world.sql(&statement.replace("\\\\", "\\")).await;
    let proof = world.verify().await;
    let failing = ["histories", "topic", "ledger", "money"];
    assert_finds(&proof, &failing, "histories", &[&place(&changed), "the event says a balance of"]);
    let found = format!("amount {}", if currency.code() == "JPY" { "25 JPY" } else { "25.00 USD" });
    assert_finds(&proof, &failing, "ledger", &[&place(&changed), "expected amount", &found]);
    assert_finds(&proof, &failing, "topic", &[&place(&changed), "value"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_a_wallets_revisions_is_named() {
    let world = World::settled().await;
    let event = world.a_credit().await;
    world.sql(&format!("UPDATE events SET revision = revision + 1000 WHERE position = {}", event.position)).await;
    let proof = world.verify().await;
    let expected = format!("expected revision {}", event.revision);
    assert!(failed(&proof).contains(&"histories"));
    let histories = check(&proof, "histories");
    assert_eq!(histories.expected, expected.trim_start_matches("expected "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_read_is_named() {
    let world = World::settled().await;
    let event = world.a_credit().await;
    world.sql(&format!("UPDATE events SET payload = '{{}}' WHERE position = {}", event.position)).await;
    let proof = world.verify().await;
    let failing = ["log", "histories", "topic", "money"];
    assert_finds(&proof, &failing, "log", &[&place(&event), "an event that can be read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_name_is_named() {
    let world = World::settled().await;
    world.sql("DELETE FROM streams WHERE name = 'wallet-2'").await;
    let proof = world.verify().await;
    for name in ["log", "histories", "outbox", "read model"] {
        let check = check(&proof, name);
        // The outbox counts what is pending, and nothing is.
        assert_eq!(check.ok, name == "outbox", "{check:?}");
    }
    assert!(check(&proof, "read model").actual.contains("wallet wallet-2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_of_a_posting_gone_is_named() {
    let world = World::settled().await;
    let event = world.a_credit().await;
    world.sql(&format!("DELETE FROM ledger_postings WHERE leg = 1 AND position = {}", event.position)).await;
    let proof = world.verify().await;
    let failing = ["ledger", "double entry"];
    assert_finds(&proof, &failing, "ledger", &[&place(&event), "two postings", "only"]);
    let currency = event.decode().expect("an event").currency();
    assert_finds(&proof, &failing, "double entry", &[&format!("all accounts in {currency}: 25")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_posting_is_named() {
    let world = World::settled().await;
    let event = world.a_credit().await;
    let changes = [
        ("amount = amount - 1", "ledger", "amount"),
        ("account = 'wallet/wallet-0x'", "ledger", "account"),
        ("balance_after = balance_after + 1", "ledger", "balance"),
        ("transaction_type = 'DEBIT'", "ledger", "type"),
        ("reference_id = gen_random_uuid()", "ledger", "reference"),
        ("metadata = '{}'", "ledger", "metadata"),
        ("related_wallet_id = 'wallet-1'", "ledger", "related wallet"),
        ("description = 'beer'", "ledger", "description"),
        ("created_at = created_at + interval '1 microsecond'", "ledger", "time"),
        ("currency = 'EUR'", "ledger", "currency"),
        ("event_id = gen_random_uuid()", "ledger", "event id"),
    ];
    for (change, name, word) in changes {
        let kept = format!("CREATE TABLE kept AS SELECT * FROM ledger_postings WHERE position = {}", event.position);
        world.sql(&kept).await;
        world
            .sql(&format!("UPDATE ledger_postings SET {change} WHERE leg = 0 AND position = {}", event.position))
            .await;
        let proof = world.verify().await;
        let check = check(&proof, name);
        assert!(!check.ok && check.actual.starts_with(&place(&event)), "{change}: {check:?}");
        assert!(check.expected.starts_with(word), "{change}: {check:?}");
        world.sql(&format!("DELETE FROM ledger_postings WHERE position = {}", event.position)).await;
        world.sql("INSERT INTO ledger_postings SELECT * FROM kept").await;
        wallex::postgres::sqlx::query("DROP TABLE kept").execute(world.database.pool()).await.expect("dropped");
    }
    assert!(world.verify().await.ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_posted_with_a_wrong_reference_or_only_one_leg_is_named() {
    let world = World::settled().await;
    let event = world.event_where(|event| event.transfer().is_some()).await;
    world.sql(&format!("UPDATE ledger_postings SET reference_id = event_id WHERE position = {}", event.position)).await;
    assert_finds(&world.verify().await, &["ledger"], "ledger", &[&place(&event), "expected reference"]);
    world.sql(&format!("DELETE FROM ledger_postings WHERE position = {}", event.position)).await;
    let failing = ["ledger", "double entry", "money"];
    assert_finds(&world.verify().await, &failing, "double entry", &["clearing/"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postings_of_no_event_are_named() {
    let world = World::settled().await;
    let created = world.events().await.remove(0);
    let insert = |position: i64| {
        format!(
            "INSERT INTO ledger_postings (position, leg, account, currency, amount, created_at)
             VALUES ({position}, 1, 'external/USD', 'USD', 5, now())"
        )
    };
    world.sql(&insert(created.position)).await;
    let failing = ["ledger", "double entry"];
    assert_finds(&world.verify().await, &failing, "ledger", &[&place(&created), "no posting for WalletCreated"]);
    world.sql("DELETE FROM ledger_postings WHERE amount = 5 AND position = 1").await;
    world.sql(&insert(world.head() + 1)).await;
    let expected = format!("position {}: a posting on external/USD", world.head() + 1);
    assert_finds(&world.verify().await, &["ledger"], "ledger", &[&expected]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_row_that_is_wrong_is_named() {
    let world = World::settled().await;
    let changes = [
        ("balance = balance + 1", "balance"),
        ("owner_id = 'Eve'", "owner"),
        ("status = 'FROZEN'", "status"),
        ("currency = 'EUR'", "currency"),
        ("version = version - 1", "version"),
        ("version = version + 1", "version"),
        ("position = position - 1", "position"),
        ("updated_at = created_at - interval '1 hour'", "updated"),
    ];
    for (change, word) in changes {
        world.sql("CREATE TABLE kept AS SELECT * FROM read_model_wallets").await;
        world.sql(&format!("UPDATE read_model_wallets SET {change} WHERE wallet_id = 'wallet-5'")).await;
        assert_finds(&world.verify().await, &["read model"], "read model", &["wallet wallet-5", word]);
        world.sql("DELETE FROM read_model_wallets").await;
        world.sql("INSERT INTO read_model_wallets SELECT * FROM kept").await;
        wallex::postgres::sqlx::query("DROP TABLE kept").execute(world.database.pool()).await.expect("dropped");
    }
    assert!(world.verify().await.ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_row_missing_or_too_many_is_named() {
    let world = World::settled().await;
    world.sql("DELETE FROM read_model_wallets WHERE wallet_id = 'wallet-5'").await;
    assert_finds(&world.verify().await, &["read model"], "read model", &["wallet wallet-5", "a row", "none"]);
    let world = World::settled().await;
    world
        .sql("INSERT INTO read_model_wallets SELECT 'ghost', owner_id, currency, balance, status, version, position, created_at, updated_at FROM read_model_wallets LIMIT 1")
        .await;
    assert_finds(&world.verify().await, &["read model"], "read model", &["wallet ghost", "no row without events"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_published_twice_is_named() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let twice = world.a_credit().await;
    world
        .publish(
            |event, record| if event.position == twice.position { vec![record.clone(), record] } else { vec![record] },
        )
        .await;
    let proof = world.verify().await;
    assert_finds(&proof, &["topic"], "topic", &[&place(&twice), "each record once", "again"]);

    // And where it is the last one of all.
    let world = World::settled().await;
    let last = world.events().await.pop().expect("an event");
    world.send(partition(&last), &record(&last));
    world.flush();
    assert_finds(&world.verify().await, &["topic"], "topic", &[&place(&last), "again"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_not_published_is_named() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let gone = world.a_credit().await;
    world.publish(|event, record| if event.position == gone.position { vec![] } else { vec![record] }).await;
    assert_finds(&world.verify().await, &["topic"], "topic", &[&place(&gone), "a record", "none in partition"]);

    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let last = world.head();
    let events = world.events().await;
    world.publish(|event, record| if event.position == last { vec![] } else { vec![record] }).await;
    let gone = events.last().expect("an event");
    assert_finds(&world.verify().await, &["topic"], "topic", &[&place(gone), "none in partition"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_comes_late_is_waited_for() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let late = world.events().await.pop().expect("an event");
    world.publish(|event, record| if event.position == late.position { vec![] } else { vec![record] }).await;
    let (database, kafka) = (world.database.clone(), world.kafka.clone());
    let verifying =
        tokio::spawn(async move { verify(&database, Some(&kafka), &VerifyOptions::default(), &mut |_| {}).await });
    // However the two meet: published before the topic is opened, or while its end is being watched.
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.send(partition(&late), &record(&late));
    world.flush();
    let proof = verifying.await.expect("a task").expect("a verification");
    assert!(proof.ok, "{proof:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_checkpoint_stands_still_for_want_of_events_holds_nobody_back() {
    let world = World::settled().await;
    let busy: std::collections::BTreeSet<i32> = world.events().await.iter().map(partition).collect();
    let idle = (0..EVENTS_PARTITIONS).find(|partition| !busy.contains(partition)).expect("an idle partition");
    world.sql(&format!("DELETE FROM projection_checkpoints WHERE partition = {idle}")).await;
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
    // And one that lacks an event does.
    let last = world.events().await.pop().expect("an event");
    let statement = "UPDATE projection_checkpoints SET position = position - 1 WHERE projection = 'ledger-projector'";
    world.sql(&format!("{statement} AND partition = {}", partition(&last))).await;
    let words = format!("ledger-projector is at position {}", last.position - 1);
    let proof = world.verify().await;
    assert!(check(&proof, "drained").actual.contains(&words), "{proof:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_with_other_bytes_is_named() {
    for (word, change) in [
        ("value", (|record| record.value[40] ^= 1) as fn(&mut OutgoingRecord)),
        ("key", |record| record.key = "wallet-0".to_owned()),
        ("headers", |record| record.headers[2].1.push('x')),
        ("headers", |record| _ = record.headers.pop()),
        // It hides the event before it, or itself.
        ("headers", |record| record.headers[6].1 = "0".to_owned()),
        ("headers", |record| record.headers[6].1 = record.headers[4].1.clone()),
    ] {
        let mut world = World::empty().await;
        world.live(0..40).await;
        world.project(&BUILT_IN).await;
        let changed = world.event_where(|event| matches!(event, WalletEvent::WalletCredited { .. })).await;
        world
            .publish(|event, mut record| {
                if event.position == changed.position {
                    change(&mut record);
                }
                vec![record]
            })
            .await;
        let expected = format!("expected {word}");
        assert_finds(&world.verify().await, &["topic"], "topic", &[&place(&changed), &expected, "at offset"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_in_the_wrong_order_or_of_strangers_are_named() {
    let world = World::settled().await;
    let event = world.a_credit().await;
    let mut foreign = record(&event);
    foreign.headers.clear();
    world.send(partition(&event), &foreign);
    world.flush();
    assert_finds(&world.verify().await, &["topic"], "topic", &["records of the relay alone", "without a position"]);

    let world = World::settled().await;
    let event = world.a_credit().await;
    world.send((partition(&event) + 1) % EVENTS_PARTITIONS, &record(&event));
    world.flush();
    assert_eq!(failed(&world.verify().await), ["topic"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_begins_later_is_compared_as_far_as_it_reaches() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let from = world.head() / 2;
    world.publish(|event, record| if event.position <= from { vec![] } else { vec![record] }).await;
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
    let expected = format!("{} records; {from} events are older than it reaches", world.head() - from);
    assert_eq!(check(&proof, "topic").actual, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_deletes_meanwhile_are_no_difference() {
    let mut world = World::empty().await;
    world.live(0..0).await;
    for _ in 0..12_000 {
        world.credit("wallet-1", "1");
    }
    world.commit().await;
    world.publish(|_, record| vec![record]).await;
    let last = world.events().await.pop().expect("an event");
    let mut filler = record(&last);
    filler.value = vec![b'x'; 100_000];
    let (database, kafka) = (world.database.clone(), world.kafka.clone());
    let (begun, begins) = std::sync::mpsc::channel();
    let (filled, go_on) = std::sync::mpsc::channel();
    let mut is_first = true;
    let verifying = tokio::spawn(async move {
        let options = VerifyOptions { wait_max: Duration::ZERO };
        let mut progress = move |now: VerifyProgress| {
            if std::mem::take(&mut is_first) {
                begun.send(now.done).expect("the test listens");
                go_on.recv().expect("the test goes on");
            }
        };
        verify(&database, Some(&kafka), &options, &mut progress).await
    });
    assert!(begins.recv().expect("a first page") < 12_000, "not through yet");
    // The mock broker keeps 5 MiB of a partition, so this pushes out all that was there.
    for number in 0..100 {
        filler.headers = vec![("position", (1_000_000 + number).to_string())];
        world.send(partition(&last), &filler);
    }
    world.flush();
    filled.send(()).expect("the verification waits");
    let proof = verifying.await.expect("a task").expect("a verification");
    let topic = check(&proof, "topic");
    assert!(topic.ok && topic.actual.contains("events are older than it reaches"), "{topic:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_a_difference_and_none_at_all_is_not() {
    let world = World::settled().await;
    let options = VerifyOptions { wait_max: Duration::ZERO };
    let proof = verify(&world.database, None, &options, &mut |_| {}).await.expect("a verification");
    assert!(proof.ok, "{proof:#?}");
    assert_eq!(check(&proof, "topic").actual, "not compared: no broker runs");
    // A port that nobody listens on: bound and never accepted from.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let kafka = KafkaConfig::new(socket.local_addr().expect("an address").to_string());
    drop(socket);
    let proof = verify(&world.database, Some(&kafka), &options, &mut |_| {}).await.expect("a verification");
    assert_finds(&proof, &["topic"], "topic", &["a broker that answers", &kafka.brokers]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_is_named_and_the_rest_is_still_compared() {
    let mut world = World::settled().await;
    let before = world.head();
    world.live(200..230).await;
    world.project(&BUILT_IN[1..]).await;
    let proof = world.verify().await;
    let relay = format!("relay is at position {before}");
    let failing = ["drained"];
    assert_finds(&proof, &failing, "drained", &[&relay, "ledger-projector is at position"]);
    world.publish(|_, record| vec![record]).await;
    let proof = world.verify().await;
    assert_finds(&proof, &failing, "drained", &["ledger-projector is at position"]);
    assert!(!check(&proof, "drained").actual.contains("relay"));
    world.project(&BUILT_IN).await;
    assert!(world.verify().await.ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_records_are_named() {
    let world = World::settled().await;
    world
        .sql(
            "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, record_headers, error_class, error,
                                         attempts, first_failed_at, last_failed_at)
             VALUES ('ledger-projector', 'wallet-3', 17, 'wallet-events', 0, '{}', 'poison', 'cannot be read', 1, now(), now())",
        )
        .await;
    let proof = world.verify().await;
    assert_finds(&proof, &["nothing parked"], "nothing parked", &["wallet wallet-3, position 17", "cannot be read"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_and_keys_beyond_the_log_are_named() {
    let world = World::settled().await;
    world
        .sql("UPDATE projection_checkpoints SET position = 1000000 WHERE projection = 'ledger-projector' AND partition = 3")
        .await;
    let words = ["checkpoint of ledger-projector, partition 3", "position 1000000"];
    assert_finds(&world.verify().await, &["checkpoints"], "checkpoints", &words);

    let world = World::settled().await;
    world.sql("UPDATE idempotency_keys SET position = 1000000 WHERE key = 'key-1'").await;
    let proof = world.verify().await;
    assert_finds(&proof, &["idempotency keys"], "idempotency keys", &["position 1000000", "key-1"]);
    world.sql(&format!("UPDATE idempotency_keys SET position = {} WHERE key = 'key-1'", world.head())).await;
    let proof = world.verify().await;
    assert_finds(&proof, &["idempotency keys"], "idempotency keys", &["an event of wallet"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_the_state_is_named() {
    let world = World::settled().await;
    let insert = "INSERT INTO snapshots
        SELECT s.stream_id, r.version - 1, 1, convert_to(json_build_object('owner_id', r.owner_id, 'currency', r.currency,
               'balance_minor', r.balance, 'status', r.status, 'created_at', r.created_at, 'updated_at', r.updated_at)::text, 'UTF8')
          FROM streams s JOIN read_model_wallets r ON r.wallet_id = s.name WHERE r.wallet_id = 'wallet-4'";
    world.sql(insert).await;
    let proof = world.verify().await;
    assert_finds(&proof, &["snapshots"], "snapshots", &["wallet wallet-4", "state"]);
    world.sql("UPDATE snapshots SET revision = revision + 1").await;
    assert!(world.verify().await.ok);
    world.sql("UPDATE snapshots SET revision = revision + 1").await;
    assert_finds(&world.verify().await, &["snapshots"], "snapshots", &["wallet wallet-4", "at most"]);
    world.sql("UPDATE snapshots SET stream_id = 4711").await;
    assert_finds(&world.verify().await, &["snapshots"], "snapshots", &["stream 4711"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_heads_row_and_the_last_event_must_agree() {
    let world = World::settled().await;
    world.sql("UPDATE log_head SET position = position - 1").await;
    let proof = world.verify().await;
    assert!(!check(&proof, "log").ok, "{proof:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_does_not_disturb_it() {
    let mut world = World::settled().await;
    let (database, kafka) = (world.database.clone(), world.kafka.clone());
    let verifying = tokio::spawn(async move {
        let mut positions = Vec::new();
        for _ in 0..6 {
            let proof = verify(&database, Some(&kafka), &VerifyOptions::default(), &mut |_| {}).await;
            let proof = proof.expect("a verification");
            assert!(proof.ok, "{proof:#?}");
            positions.push(proof.position);
        }
        positions
    });
    let mut turn = 300;
    while !verifying.is_finished() {
        world.live(turn..turn + 4).await;
        turn += 4;
        world.project(&BUILT_IN[1..]).await;
        world.publish(|_, record| vec![record]).await;
        world.project(&BUILT_IN[..1]).await;
    }
    let positions = verifying.await.expect("six verifications");
    assert!(positions.windows(2).any(|pair| pair[0] < pair[1]), "there was traffic: {positions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_lies_where_a_strangers_lay_in_an_older_topic_is_compared_like_any_other() {
    let world = World::settled().await;
    world
        .sql(
            "INSERT INTO discarded_records (parked_id, action_id, discarded_at, projection, topic, partition, kafka_offset, record_value,
                                            record_headers, error_class, error, attempts, first_failed_at, last_failed_at)
             SELECT partition, gen_random_uuid(), now(), 'ledger-projector', 'wallet-events', partition, 1, 'not ours', '[]',
                    'FOREIGN', 'it has no position', 1, now(), now() FROM generate_series(0, 9) AS partition",
        )
        .await;
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_withheld_is_told_and_what_was_published_late_is_no_difference() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    world.project(&BUILT_IN).await;
    let first = world.a_credit().await;
    let is_withheld = |event: &RecordedEvent| event.stream == first.stream && event.position >= first.position;
    world.publish(|event, record| if is_withheld(event) { vec![] } else { vec![record] }).await;
    assert_eq!(failed(&world.verify().await), ["topic"], "nobody knows why they are missing");
    let withheld: Vec<RecordedEvent> = world.events().await.into_iter().filter(is_withheld).collect();
    let statement = format!(
        "INSERT INTO relay_withheld (wallet_id, position, partition, record_bytes, reason) VALUES ('{}', {}, {}, 2000, '')",
        first.stream,
        first.position,
        partition(&first)
    );
    world.sql(&statement).await;
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
    assert!(check(&proof, "topic").actual.contains(&format!("{} events are withheld", withheld.len())));

    // Published after all, but for the last one.
    let (last, others) = withheld.split_last().expect("events");
    others.iter().for_each(|event| world.send(partition(event), &OutgoingRecord::late(event)));
    world.flush();
    world.sql(&format!("UPDATE relay_withheld SET published_to = {}, published_at = now()", last.position)).await;
    assert_finds(&world.verify().await, &["topic"], "topic", &[&place(last), "behind its place", "none"]);
    world.send(partition(last), &OutgoingRecord::late(last));
    world.flush();
    let proof = world.verify().await;
    assert!(proof.ok, "{proof:#?}");
    assert_eq!(check(&proof, "topic").actual, format!("{} records", world.head()));
    world.send(partition(last), &OutgoingRecord::late(last));
    world.flush();
    assert_finds(&world.verify().await, &["topic"], "topic", &[&place(last), "again"]);
}
