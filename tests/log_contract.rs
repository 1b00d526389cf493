//! What every event log must do: one suite, run against each store; and what only those must do that append to several streams
//! at once.

#[path = "kurrentdb_server/mod.rs"]
mod kurrentdb_server;
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use support::{TestDatabase, TestServer};
use uuid::Uuid;
use wallex::kurrentdb::{KurrentConfig, KurrentLog};
use wallex::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, MemoryLog, NewEvent, Snapshot, StreamKey,
};
use wallex::wallet::WalletId;

fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a stream's name")
}

fn event(stream: &str, revision: i64) -> NewEvent {
    NewEvent {
        stream: id(stream),
        stream_key: None,
        revision,
        event_id: Uuid::now_v7(),
        event_type: "WalletCredited",
        payload: format!(r#"{{"amount":"{revision}.00",  "note":"bytes are kept as they are: é"}}"#).into_bytes(),
        metadata: Arc::from(&br#"{"correlationId":"c","causationId":"d"}"#[..]),
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 123_456_000).expect("a time")
}

fn batch(expected_head: Option<i64>, events: Vec<NewEvent>) -> Batch {
    Batch { expected_head, recorded_at: at(0), events, keys: Vec::new() }
}

fn key(wallet: &str, key: &str, position: i64) -> KeyRecord {
    let scope = KeyScope { wallet_id: id(wallet), command_kind: "credit", key: key.into() };
    KeyRecord { scope, fingerprint: [7; 32], position, event_count: 1 }
}

/// What can be asked of a store that appends to one stream at a time. Positions grow here, and may have gaps.
async fn it_keeps_the_contract_of_streams<L: EventLog>(log: L) {
    one_streams_events_are_read_back_as_they_were_written(&log).await;
    a_stream_that_is_not_at_the_expected_revision_is_a_conflict(&log).await;
    the_same_events_again_are_never_written_twice(&log).await;
    streams_are_loaded_whole_and_those_that_are_not_there_left_out(&log).await;
}

async fn one_streams_events_are_read_back_as_they_were_written<L: EventLog>(log: &L) {
    let head = log.head().await.expect("a head");
    let written: Vec<NewEvent> = (0..5).map(|revision| event("one", revision)).collect();
    let mut positions = Vec::new();
    for events in [&written[..2], &written[2..3], &written[3..]] {
        match log.append(&batch(None, events.to_vec())).await.expect("an append") {
            Appended::At(position) => positions.push(position),
            Appended::Conflict => panic!("a conflict"),
        }
    }
    assert!(head < positions[0] && positions.is_sorted_by(|one, next| one < next), "{positions:?}");
    let read = log.read_stream(&id("one"), 0, 10).await.expect("events");
    assert_eq!(read.len(), written.len());
    for (read, written) in read.iter().zip(&written) {
        assert_eq!((&read.stream, read.revision, read.event_id), (&written.stream, written.revision, written.event_id));
        assert_eq!((&read.payload, read.metadata.as_slice()), (&written.payload, written.metadata.as_ref()));
        assert_eq!((read.event_type.as_str(), read.event_version), (written.event_type, 1));
        assert_eq!(read.recorded_at, at(0));
    }
    assert!(read.is_sorted_by(|one, next| one.position < next.position));
    assert_eq!([read[1].position, read[2].position, read[4].position], positions[..]);
    assert_eq!(log.read_stream(&id("one"), 1, 3).await.expect("events"), read[1..4]);
    assert_eq!(log.read_stream(&id("one"), 5, 3).await.expect("events"), []);
    assert_eq!(log.read_stream_end(&id("one"), 2).await.expect("events"), read[3..]);
    assert_eq!(log.read_stream_end(&id("one"), 100).await.expect("events"), read);
    assert_eq!(log.read_stream(&id("nobody"), 0, 10).await.expect("no events"), []);
    assert_eq!(log.read_stream_end(&id("nobody"), 10).await.expect("no events"), []);
    assert_eq!(log.read(head, 10).await.expect("events"), read);
    assert_eq!(log.read(read[1].position, 2).await.expect("events"), read[2..4]);
    assert!(log.head().await.expect("a head") >= read[4].position);
}

async fn a_stream_that_is_not_at_the_expected_revision_is_a_conflict<L: EventLog>(log: &L) {
    log.append(&batch(None, vec![event("two", 0), event("two", 1)])).await.expect("an append");
    for wrong in [vec![0], vec![1], vec![3], vec![1, 2], vec![2, 4], vec![2, 2]] {
        let lost = batch(None, wrong.iter().map(|revision| event("two", *revision)).collect());
        assert_eq!(log.append(&lost).await.expect("an answer"), Appended::Conflict, "{wrong:?}");
    }
    assert_eq!(log.append(&batch(None, vec![event("new", 1)])).await.expect("an answer"), Appended::Conflict);
    assert_eq!(log.read_stream(&id("two"), 0, 10).await.expect("events").len(), 2);
    assert_eq!(log.read_stream(&id("new"), 0, 10).await.expect("events"), []);
}

async fn the_same_events_again_are_never_written_twice<L: EventLog>(log: &L) {
    let first = batch(None, vec![event("three", 0), event("three", 1)]);
    let at_first = log.append(&first).await.expect("an append");
    log.append(&batch(None, vec![event("three", 2)])).await.expect("an append");
    // A log of one order calls it a conflict; the other kind answers as it did at first.
    let expected = match log.atomicity() {
        Atomicity::Log => Appended::Conflict,
        Atomicity::Stream => at_first,
    };
    assert_eq!(log.append(&first).await.expect("an answer"), expected);
    assert_eq!(log.read_stream(&id("three"), 0, 10).await.expect("events").len(), 3);
}

async fn streams_are_loaded_whole_and_those_that_are_not_there_left_out<L: EventLog>(log: &L) {
    log.append(&batch(None, vec![event("four", 0), event("four", 1)])).await.expect("an append");
    log.append(&batch(None, vec![event("five", 0)])).await.expect("an append");
    let mut loaded = log.load(&[id("four"), id("nobody"), id("five")], 1).await.expect("streams");
    loaded.sort_by(|one, other| one.stream.cmp(&other.stream));
    let lengths: Vec<_> = loaded.iter().map(|found| (found.stream.as_str(), found.tail.len())).collect();
    assert_eq!(lengths, [("five", 1), ("four", 2)]);
}

/// What only a store can keep that appends to several streams at once, in one order without a gap.
async fn it_keeps_the_contract<L: EventLog>(new: impl AsyncFn() -> L) {
    appends_are_read_back_in_one_gapless_order(new().await).await;
    a_moved_head_is_a_conflict_and_writes_nothing(new().await).await;
    a_wrong_revision_is_a_conflict_and_writes_nothing(new().await).await;
    the_same_batch_again_is_a_conflict_and_doubles_nothing(new().await).await;
    streams_are_read_from_either_end(new().await).await;
    snapshots_shorten_a_load_and_change_nothing(new().await).await;
    keys_are_found_and_never_written_twice(new().await).await;
    the_head_can_be_locked_and_is_free_after_an_append(new().await).await;
}

async fn appends_are_read_back_in_one_gapless_order<L: EventLog>(log: L) {
    assert_eq!(log.head().await.expect("a head"), 0);
    let events = vec![event("a", 0), event("b", 0), event("a", 1)];
    let first = batch(Some(0), events.clone());
    assert_eq!(log.append(&first).await.expect("an append"), Appended::At(3));
    assert_eq!(log.append(&batch(None, vec![event("b", 1)])).await.expect("an append"), Appended::At(4));
    let read = log.read(0, 10).await.expect("events");
    assert_eq!(read.iter().map(|event| event.position).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (read, written) in read.iter().zip(&events) {
        assert_eq!((&read.stream, read.revision, read.event_id), (&written.stream, written.revision, written.event_id));
        assert_eq!((&read.payload, read.metadata.as_slice()), (&written.payload, written.metadata.as_ref()));
        assert_eq!((read.event_type.as_str(), read.recorded_at), (written.event_type, at(0)));
    }
    assert_eq!(log.read(1, 2).await.expect("events").iter().map(|event| event.position).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(log.read(4, 10).await.expect("events"), []);
    assert_eq!(log.head().await.expect("a head"), 4);
}

async fn a_moved_head_is_a_conflict_and_writes_nothing<L: EventLog>(log: L) {
    log.append(&batch(Some(0), vec![event("a", 0)])).await.expect("an append");
    for expected in [0, 2] {
        let lost = batch(Some(expected), vec![event("a", 1)]);
        assert_eq!(log.append(&lost).await.expect("an answer"), Appended::Conflict);
    }
    assert_eq!(log.head().await.expect("a head"), 1);
    assert_eq!(log.append(&batch(Some(1), vec![event("a", 1)])).await.expect("an append"), Appended::At(2));
}

async fn a_wrong_revision_is_a_conflict_and_writes_nothing<L: EventLog>(log: L) {
    log.append(&batch(Some(0), vec![event("a", 0), event("a", 1)])).await.expect("an append");
    for wrong in [0, 1, 3] {
        // The good event beside it is not written either.
        let lost = batch(None, vec![event("b", 0), event("a", wrong)]);
        assert_eq!(log.append(&lost).await.expect("an answer"), Appended::Conflict, "revision {wrong}");
    }
    assert_eq!(log.append(&batch(None, vec![event("new", 1)])).await.expect("an answer"), Appended::Conflict);
    let gap_inside = batch(Some(2), vec![event("a", 2), event("a", 4)]);
    assert_eq!(log.append(&gap_inside).await.expect("an answer"), Appended::Conflict);
    let twice_inside = batch(Some(2), vec![event("a", 2), event("a", 2)]);
    assert_eq!(log.append(&twice_inside).await.expect("an answer"), Appended::Conflict);
    assert_eq!(log.head().await.expect("a head"), 2);
    assert!(log.read_stream(&id("b"), 0, 10).await.expect("events").is_empty());
}

async fn the_same_batch_again_is_a_conflict_and_doubles_nothing<L: EventLog>(log: L) {
    let batch = batch(Some(0), vec![event("a", 0), event("b", 0)]);
    assert_eq!(log.append(&batch).await.expect("an append"), Appended::At(2));
    assert_eq!(log.append(&batch).await.expect("an answer"), Appended::Conflict);
    // Which is how whoever lost the answer finds out that it was his.
    assert_eq!(log.read(0, 1).await.expect("events")[0].event_id, batch.events[0].event_id);
    assert_eq!(log.head().await.expect("a head"), 2);
}

async fn streams_are_read_from_either_end<L: EventLog>(log: L) {
    let events = (0..5).flat_map(|revision| [event("a", revision), event("b", revision)]).collect();
    log.append(&batch(Some(0), events)).await.expect("an append");
    let revisions =
        |events: Vec<wallex::log::RecordedEvent>| events.iter().map(|event| event.revision).collect::<Vec<_>>();
    assert_eq!(revisions(log.read_stream(&id("a"), 1, 3).await.expect("events")), [1, 2, 3]);
    assert_eq!(revisions(log.read_stream_end(&id("b"), 2).await.expect("events")), [3, 4]);
    assert_eq!(revisions(log.read_stream_end(&id("b"), 100).await.expect("events")), [0, 1, 2, 3, 4]);
    assert!(log.read_stream(&id("nobody"), 0, 10).await.expect("no events").is_empty());
}

async fn snapshots_shorten_a_load_and_change_nothing<L: EventLog>(log: L) {
    log.append(&batch(Some(0), (0..6).map(|revision| event("a", revision)).collect())).await.expect("an append");
    log.append(&batch(Some(6), vec![event("b", 0)])).await.expect("an append");
    let names = [id("a"), id("nobody"), id("b")];
    let load = async |format| {
        let mut loaded = log.load(&names, format).await.expect("streams");
        loaded.sort_by(|one, other| one.stream.cmp(&other.stream));
        loaded
    };
    let bare = load(1).await;
    assert_eq!(bare.len(), 2);
    assert_eq!((bare[0].tail.len(), bare[1].tail.len()), (6, 1));
    let snapshot = |stream_key: StreamKey, revision, state: &str| Snapshot {
        stream_key,
        revision,
        format: 1,
        state: state.as_bytes().to_vec(),
    };
    let key = bare[0].stream_key;
    log.save_snapshots(&[snapshot(key, 3, "newer"), snapshot(bare[1].stream_key, 0, "b")]).await.expect("saved");
    log.save_snapshots(&[snapshot(key, 2, "older")]).await.expect("saved");
    let short = load(1).await;
    assert_eq!(short[0].snapshot.as_ref().map(|found| found.state.as_slice()), Some(&b"newer"[..]));
    assert_eq!(short[0].tail, bare[0].tail[4..]);
    assert!(short[1].tail.is_empty(), "a stream that its snapshot holds whole is loaded all the same");
    // Another format is no snapshot.
    assert_eq!(load(2).await[0].tail, bare[0].tail);
    // The keys that a load gives are good for appending.
    let mut next = event("a", 6);
    next.stream_key = Some(key);
    assert_eq!(log.append(&batch(Some(7), vec![next])).await.expect("an append"), Appended::At(8));
    assert_eq!(log.read_stream(&id("a"), 6, 1).await.expect("events")[0].position, 8);
}

async fn keys_are_found_and_never_written_twice<L: EventLog>(log: L) {
    let with_key = |head, revision, name: &str| Batch {
        keys: vec![key("a", name, head + 1)],
        recorded_at: at(head),
        ..batch(Some(head), vec![event("a", revision)])
    };
    assert_eq!(log.append(&with_key(0, 0, "k")).await.expect("an append"), Appended::At(1));
    assert_eq!(log.append(&with_key(1, 1, "k")).await.expect("an answer"), Appended::Conflict);
    assert_eq!(log.head().await.expect("a head"), 1);
    assert_eq!(log.append(&with_key(1, 1, "other")).await.expect("an append"), Appended::At(2));
    let twice = Batch { keys: vec![key("a", "new", 3), key("a", "new", 3)], ..batch(Some(2), vec![event("a", 2)]) };
    assert_eq!(log.append(&twice).await.expect("an answer"), Appended::Conflict);
    assert_eq!(log.head().await.expect("a head"), 2);
    let other_wallet = KeyScope { wallet_id: id("b"), ..key("a", "k", 1).scope };
    let asked = [key("a", "other", 0).scope, other_wallet, key("a", "k", 0).scope, key("a", "none", 0).scope];
    let found: BTreeSet<_> =
        log.find_keys(&asked).await.expect("keys").into_iter().map(|found| (found.scope.key, found.position)).collect();
    assert_eq!(found, BTreeSet::from([("k".into(), 1), ("other".into(), 2)]));
    assert_eq!(log.forget_keys(at(0) + TimeDelta::milliseconds(1), 10).await.expect("forgotten"), 1);
    assert_eq!(log.find_keys(&asked).await.expect("keys").len(), 1);
}

async fn the_head_can_be_locked_and_is_free_after_an_append<L: EventLog>(log: L) {
    assert_eq!(log.lock_head().await.expect("a head"), 0);
    assert_eq!(log.append(&batch(Some(0), vec![event("a", 0)])).await.expect("an append"), Appended::At(1));
    assert_eq!(log.lock_head().await.expect("a head"), 1);
    log.append(&Batch::default()).await.expect("released");
    assert_eq!(log.head().await.expect("a head"), 1);
}

#[tokio::test]
async fn the_log_in_memory_keeps_the_contract() {
    it_keeps_the_contract_of_streams(MemoryLog::new()).await;
    it_keeps_the_contract(async || MemoryLog::new()).await;
}

#[tokio::test]
async fn the_log_in_postgresql_keeps_the_contract() {
    it_keeps_the_contract_of_streams(TestDatabase::new().await.log()).await;
    let mut databases = Vec::new();
    for _ in 0..8 {
        databases.push(TestDatabase::new().await);
    }
    let next = std::sync::Mutex::new(databases.iter());
    it_keeps_the_contract(async || next.lock().expect("no panic").next().expect("a database each").log()).await;
}

/// On the server that `WALLEX_TEST_KURRENTDB_URL` names, if it names one, under streams of its own; else on the test server.
#[tokio::test]
async fn the_log_in_kurrentdb_keeps_the_contract_of_streams() {
    let server = kurrentdb_server::KurrentServer::start();
    let address = std::env::var("WALLEX_TEST_KURRENTDB_URL").ok().filter(|address| !address.is_empty());
    let address = address.unwrap_or_else(|| server.connection_string());
    let config = KurrentConfig::new(&address).expect("a connection string");
    let prefix = format!("wallextest{}-", Uuid::now_v7().simple());
    let config = config.with_stream_prefix(&prefix).expect("a prefix");
    it_keeps_the_contract_of_streams(KurrentLog::new(config)).await;
}

/// The same, on a server of another process that others use too.
#[test]
fn on_a_server_that_is_named_the_contract_is_kept_beside_what_others_have_there() {
    let server = kurrentdb_server::KurrentServer::start();
    for stream in ["wallet-one", "orders-1"] {
        server.keep(stream, "X", "{}", "{}");
    }
    let output = std::process::Command::new(std::env::current_exe().expect("this very binary"))
        .args(["--exact", "the_log_in_kurrentdb_keeps_the_contract_of_streams"])
        .env("WALLEX_TEST_KURRENTDB_URL", server.connection_string())
        .output()
        .expect("the tests run");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    let log = server.log();
    assert!(log.len() > 10, "{}", log.len());
    let foreign = log[2..].iter().find(|kept| !kept.stream.starts_with("wallextest"));
    assert!(foreign.is_none(), "{foreign:?}");
}

#[tokio::test]
async fn the_log_in_postgresql_writes_many_streams_at_once() {
    assert_eq!(TestDatabase::new().await.log().atomicity(), Atomicity::Log);
}

#[tokio::test]
async fn a_locked_head_keeps_other_writers_waiting_until_its_holder_appends_or_is_gone() {
    let database = TestDatabase::new().await;
    let (holder, other) = (database.log(), database.log());
    holder.lock_head().await.expect("locked");
    let waiting = {
        let other = other.clone();
        tokio::spawn(async move { other.append(&batch(None, vec![event("b", 0)])).await })
    };
    let blocked =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while database.number(blocked).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(holder.append(&batch(Some(0), vec![event("a", 0)])).await.expect("an append"), Appended::At(1));
    assert_eq!(waiting.await.expect("no panic").expect("an append"), Appended::At(2));
    // A conflict ends the lock too, also one that is seen without asking the store.
    for conflict in [vec![event("a", 1), event("a", 3)], vec![event("a", 0)]] {
        holder.lock_head().await.expect("locked");
        assert_eq!(holder.append(&batch(None, conflict)).await.expect("an answer"), Appended::Conflict);
        let locks =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
        assert_eq!(database.number(locks).await, 0);
    }
    // A holder that is gone holds nothing.
    holder.lock_head().await.expect("locked");
    drop(holder);
    let appended = tokio::time::timeout(Duration::from_secs(10), other.append(&batch(None, vec![event("b", 1)]))).await;
    assert_eq!(appended.expect("in time").expect("an append"), Appended::At(3));
}

/// Several writers append batches of several rows while a reader follows. With positions from a sequence they would become
/// visible out of order, and a reader that goes by the highest one would lose those that come late; the head's row,
/// locked to the commit, is what makes the order that readers see the order of the positions.
#[tokio::test]
async fn a_reader_that_follows_several_writers_loses_nothing() {
    const WRITERS: i64 = 4;
    const BATCHES: i64 = 60;
    const ROWS: i64 = 7;
    let database = TestDatabase::new().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let log = database.log();
        writers.spawn(async move {
            for number in 0..BATCHES {
                let stream = format!("w{writer}");
                let events = (0..ROWS).map(|row| event(&stream, number * ROWS + row)).collect();
                assert!(matches!(log.append(&batch(None, events)).await, Ok(Appended::At(_))));
            }
        });
    }
    let log = database.log();
    let mut position = 0;
    while position < WRITERS * BATCHES * ROWS {
        for read in log.read(position, 50).await.expect("events") {
            assert_eq!(read.position, position + 1, "a gap");
            position = read.position;
        }
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer that went well");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be_away_and_answers_again_afterwards() {
    let database = TestServer::shared().await.database().await;
    let log = database.log();
    log.append(&batch(Some(0), vec![event("a", 0)])).await.expect("an append");
    database.end_connections().await;
    // The first use finds the connection dead, and the next one makes a new one.
    let lost = batch(Some(1), vec![event("a", 1)]);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(log.append(&lost).await);
    }
    assert!(matches!(answers[0], Err(wallex::log::LogError::Away(_))), "{answers:?}");
    assert_eq!(log.head().await.expect("a head"), 2);
}

/// PostgreSQL ends a transaction that lies idle, so that a halted writer does not halt the others; that writer finds the
/// store away, not wrong.
#[tokio::test]
async fn a_writer_that_was_halted_while_it_held_the_head_finds_the_store_away() {
    use wallex::postgres::{is_transient, sqlx};
    let database = TestDatabase::new().await;
    let mut connection = database.database.pool().acquire().await.expect("a connection");
    sqlx::raw_sql("SET idle_in_transaction_session_timeout = '20ms'; BEGIN")
        .execute(&mut *connection)
        .await
        .expect("begun");
    let begun = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    while database.number(begun).await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = sqlx::query("SELECT 1").execute(&mut *connection).await.expect_err("the session has ended");
    assert!(is_transient(&error), "{error}");
}
