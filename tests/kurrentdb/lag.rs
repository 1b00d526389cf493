//! How far the copy is behind, and what is in transit: in the library's report and in the shell's.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use wallex::embedded::EmbeddedBroker;
use wallex::kafka::{EVENTS_TOPIC, KafkaConfig};
use wallex::lag::{INGEST_COUNT_MAX, IngestLag, LagProbe, LagReport, State, StoreState, progress};
use wallex::verify::{VerifyOptions, verify_copy};
use wallex::wallet::Command;

use crate::process::run;
use crate::transfers::leave_in_transit;
use crate::world::{PATIENCE, World, id, opening, patiently};

impl World {
    /// A world whose events are in the store, as the first start says it.
    pub async fn at_home_in_the_store() -> Self {
        let world = World::new().await;
        world.database.run("INSERT INTO event_home (home) VALUES ('event store')").await;
        world
    }

    /// One that waits for a busy machine.
    fn probe(&self) -> LagProbe {
        let probe = LagProbe::new(self.database.database.clone(), None).with_event_store(Some(self.log()));
        probe.with_patience(PATIENCE)
    }

    /// The report, once the store has answered where it was asked: on a busy machine it may well be away for a while.
    pub async fn report(&self) -> LagReport {
        let probe = self.probe();
        patiently(async || {
            let report = probe.report().await.map_err(|error| error.to_string())?;
            match &report.ingest {
                Some(IngestLag { store: StoreState { connected: false, error }, .. }) => Err(format!("{error:?}")),
                _ => Ok(report),
            }
        })
        .await
    }

    pub async fn ingest_lag(&self) -> IngestLag {
        self.report().await.ingest.expect("an ingest")
    }

    /// `wallex` on the world's database.
    pub fn shell(&self, arguments: &[&str]) -> Output {
        let nowhere = tempfile::tempdir().expect("a directory");
        let nowhere = nowhere.path().to_str().expect("UTF-8");
        run(&[arguments, &["--database-url", &self.database.url, "--data-dir", nowhere, "--log", "error"]].concat())
    }
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_copy_lacks_is_counted_until_it_has_it() {
    let world = World::at_home_in_the_store().await;
    let empty = world.ingest_lag().await;
    assert_eq!((empty.state, empty.events, empty.behind_ms), (Some(State::Idle), Some(0), None));
    assert_eq!((empty.copied, empty.unmoved_ms, empty.more), (None, None, false));
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    for _ in 0..3 {
        writer.ok(Command::credit(id("a"), "1.00")).await;
    }
    let behind = world.report().await;
    let ingest = behind.ingest.expect("an ingest");
    assert_eq!((ingest.state, ingest.events, ingest.more), (Some(State::Moving), Some(5), false));
    assert!(ingest.behind_ms.is_some_and(|age| (0..60_000).contains(&age)));
    assert!(ingest.is_above(4) && !ingest.is_above(5));
    assert_eq!(behind.total.behind_ms, ingest.behind_ms, "nothing else is behind yet");
    world.copy().await;
    let copied = world.ingest_lag().await;
    assert_eq!((copied.state, copied.events, copied.behind_ms), (Some(State::Idle), Some(0), None));
    let end = world.store.log().last().expect("events").position as i64;
    assert!(copied.copied == Some(end) && copied.unmoved_ms.is_some());
    let now = progress(&world.database.database).await.expect("the progress");
    assert_eq!((now.head, now.event_store.expect("a store").copied), (5, Some(end)));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_waits_for_the_copy_and_says_where_it_does_not_come() {
    let mut world = World::at_home_in_the_store().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    let store = world.log();
    let database = world.database.database.clone();
    let check = async || {
        let options = VerifyOptions { wait_max: Duration::ZERO };
        let proof = verify_copy(&database, Some(&store), None, &options, &mut |_| {}).await.expect("a verification");
        assert!(proof.ok <= proof.checks[0].ok);
        proof.checks[0].clone()
    };
    let answered = async || {
        let check = check().await;
        if check.actual.starts_with("esdb://") { Err(check.actual) } else { Ok(check) }
    };
    let lacking = patiently(answered).await;
    assert_eq!(
        (lacking.name.as_str(), lacking.ok, lacking.actual.as_str()),
        ("copy", false, "after 0 s: copied up to 0")
    );
    world.copy().await;
    assert!(patiently(answered).await.ok);
    world.store.kill();
    let away = check().await;
    assert!(!away.ok && away.actual.starts_with("esdb://"), "{away:?}");
    // In the database there is nothing to be copied.
    world.database.run("UPDATE event_home SET home = 'database'").await;
    assert_ne!(check().await.name, "copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_way_is_counted_as_far_as_that_is_quick() {
    let world = World::at_home_in_the_store().await;
    world.store.fill(INGEST_COUNT_MAX + 500, 10);
    let ingest = world.ingest_lag().await;
    assert!(ingest.more && ingest.is_above(i64::MAX));
    assert_eq!(ingest.events, Some(INGEST_COUNT_MAX as i64));
    // These events are of January, and nothing has ever been copied.
    assert_eq!(ingest.state, Some(State::Stuck));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_or_was_not_named_is_said_to_be_so() {
    let mut world = World::at_home_in_the_store().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    world.copy().await;
    let unnamed = LagProbe::new(world.database.database.clone(), None).report().await.expect("a report");
    let ingest = unnamed.ingest.expect("an ingest");
    assert_eq!((ingest.state, ingest.events, ingest.store.connected), (None, None, false));
    assert!(ingest.store.error.as_deref().is_some_and(|error| error.contains("--event-store")));
    assert!(ingest.is_above(i64::MAX) && ingest.copied.is_some());
    let told = world.shell(&["lag"]);
    assert!(told.status.success());
    assert!(String::from_utf8_lossy(&told.stdout).contains("not known"));
    assert!(String::from_utf8_lossy(&told.stderr).contains("WALLEX_EVENT_STORE"));
    let named = world.shell(&["lag", "-o", "json", "--event-store", &world.store.connection_string()]);
    assert_eq!(json(&named)["ingest"]["events"], 0);

    let probe = world.probe();
    assert_eq!(world.ingest_lag().await.state, Some(State::Idle));
    world.store.kill();
    let away = probe.report().await.expect("a report");
    let ingest = away.ingest.expect("an ingest");
    assert_eq!((ingest.state, away.total.state), (Some(State::StoreAway), State::StoreAway));
    assert!(away.total.needs_help && !ingest.store.connected && ingest.store.error.is_some());
    assert_eq!((ingest.events, ingest.behind_ms), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn money_in_transit_is_shown_with_its_age_until_it_has_arrived() {
    let world = World::at_home_in_the_store().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    writer.kill();
    world.copy().await;
    assert_eq!(world.ingest_lag().await.in_transit.transfers, 0);
    let none = world.shell(&["transfers", "--pending"]);
    assert!(none.status.success() && String::from_utf8_lossy(&none.stdout).contains("No money is in transit"));
    leave_in_transit(&world, "a", "b", 123).await;
    leave_in_transit(&world, "a", "b", 1).await;
    world.copy().await;
    let in_transit = world.ingest_lag().await.in_transit;
    assert_eq!(in_transit.transfers, 2);
    assert!(in_transit.oldest_age_ms.is_some_and(|age| age >= 0));
    let table = world.shell(&["lag"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("in transit: the money of 2 transfers"));

    let pending = json(&world.shell(&["transfers", "--pending", "-o", "json"]));
    let pending = pending.as_array().expect("an array");
    let shown: Vec<_> = pending
        .iter()
        .map(|it| {
            (it["fromWalletId"].as_str(), it["toWalletId"].as_str(), it["amount"].as_str(), it["currency"].as_str())
        })
        .collect();
    let expected = |amount| (Some("a"), Some("b"), Some(amount), Some("USD"));
    assert_eq!(shown, [expected("1.23"), expected("0.01")]);
    assert!(pending.iter().all(|it| it["ageMs"].is_i64() && it["since"].is_string() && it["transferId"].is_string()));
    let table = world.shell(&["transfers", "--pending"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("1.23 USD") && table.contains(pending[0]["transferId"].as_str().expect("text")), "{table}");
    assert_eq!(
        json(&world.shell(&["transfers", "--pending", "--limit", "1", "-o", "json"])).as_array().map(Vec::len),
        Some(1)
    );

    let finisher = world.writer();
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    crate::transfers::until_nothing_is_in_transit(&world).await;
    assert_eq!(json(&world.shell(&["transfers", "--pending", "-o", "json"])), serde_json::json!([]));
    let in_transit = world.ingest_lag().await.in_transit;
    assert_eq!((in_transit.transfers, in_transit.oldest_age_ms), (0, None));
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    finisher.stop().await;
}

/// Whatever else there is to report is well: the broker answers, and events are from the future and so never late.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_stays_in_transit_calls_for_help_until_it_has_arrived() {
    let world = World::at_home_in_the_store().await;
    let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, 10)]).expect("a broker");
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    writer.kill();
    leave_in_transit(&world, "a", "b", 123).await;
    world.copy().await;
    world.database.run("UPDATE events SET recorded_at = now() + interval '1 hour'").await;
    let kafka = KafkaConfig::new(broker.bootstrap_servers());
    let probe = LagProbe::new(world.database.database.clone(), Some(kafka)).with_event_store(Some(world.log()));
    let probe = probe.with_patience(PATIENCE);
    let store = world.store.connection_string();
    let max = ["--max", "1000", "--kafka-brokers", broker.bootstrap_servers(), "--event-store", &store];
    let report = async || {
        let report = probe.report().await.expect("a report");
        let told = world.shell(&[&["lag"][..], &max].concat());
        (report, told.status.code(), String::from_utf8_lossy(&told.stdout).into_owned())
    };
    let (young, code, _) = report().await;
    let in_transit = young.ingest.expect("an ingest").in_transit;
    assert_eq!((in_transit.transfers, in_transit.overdue), (1, 0));
    assert_eq!((young.total.needs_help, code), (false, Some(0)), "{:?}", young.total);

    world.database.run("UPDATE stream_transfers SET seen_at = seen_at - interval '61 seconds'").await;
    let (old, code, told) = report().await;
    let ingest = old.ingest.expect("an ingest");
    assert_eq!((ingest.state, ingest.in_transit.overdue), (Some(State::TransferOverdue), 1));
    assert_eq!((old.total.state, old.total.needs_help), (State::TransferOverdue, true));
    // Far fewer than 1,000 wait.
    assert!(code == Some(1) && ingest.is_above(i64::MAX));
    assert!(told.contains("transfer overdue") && told.contains("1 of them overdue"), "{told}");
    // Also where nobody knows what the copy lacks.
    let unnamed = LagProbe::new(world.database.database.clone(), None).report().await.expect("a report");
    assert_eq!(unnamed.ingest.expect("an ingest").state, Some(State::TransferOverdue));

    let finisher = world.writer();
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    crate::transfers::until_nothing_is_in_transit(&world).await;
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
    finisher.stop().await;
    world.database.run("UPDATE events SET recorded_at = now() + interval '1 hour'").await;
    let (well, code, told) = report().await;
    assert_eq!((well.total.needs_help, code), (false, Some(0)), "{:?} {told}", well.total);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_events_are_in_the_database_there_is_no_ingest_and_nothing_in_transit() {
    let world = World::new().await;
    let unwritten = world.shell(&["transfers", "--pending"]);
    assert!(unwritten.status.success() && String::from_utf8_lossy(&unwritten.stderr).contains("none can be"));
    world.database.run("INSERT INTO event_home (home) VALUES ('database')").await;
    assert_eq!(world.report().await.ingest, None);
    let pending = world.shell(&["transfers", "--pending", "-o", "json"]);
    assert_eq!(json(&pending), serde_json::json!([]));
    assert!(String::from_utf8_lossy(&pending.stderr).contains("in the database itself"));
    // What is not asked for is not guessed.
    assert_eq!(world.shell(&["transfers"]).status.code(), Some(2));
}
