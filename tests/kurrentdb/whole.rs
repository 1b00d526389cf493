//! A whole wallex over the event store: from the command to the ledger, and the proof.

use std::time::Duration;

use wallex::kurrentdb::KurrentConfig;
use wallex::postgres::EventHome;
use wallex::sequencer::CommandError;
use wallex::verify::Proof;
use wallex::wallet::Command;
use wallex::{Config, Wallex};

use crate::transfers::{leave_in_transit, until_nothing_is_in_transit};
use crate::world::{World, id, opening, with_key};

const PATIENCE: Duration = Duration::from_secs(120);

pub fn config(world: &World, directory: &tempfile::TempDir, with_store: bool) -> Config {
    let store = KurrentConfig::new(&world.store.connection_string()).expect("a connection string");
    Config {
        data_dir: Some(directory.path().to_owned()),
        database_url: Some(world.database.url.clone()),
        event_store: with_store.then_some(store),
        ..Config::default()
    }
}

fn found<'a>(proof: &'a Proof, name: &str) -> &'a str {
    let check = proof.checks.iter().find(|check| check.name == name).expect("a check");
    &check.actual
}

fn double_entry(proof: &Proof) -> &str {
    found(proof, "double entry")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_downstream_is_as_without_an_event_store_and_proven() {
    let mut world = World::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    let wallex = Wallex::open(config(&world, &directory, true)).await.expect("a wallex");
    for wallet in 0..5 {
        wallex.execute(opening(&format!("w{wallet}"), 1_000)).await.expect("a wallet");
    }
    let mut last = 0;
    for turn in 0..40_u32 {
        let (from, to) = (id(&format!("w{}", turn % 5)), id(&format!("w{}", (turn + 2) % 5)));
        let request = with_key(Command::transfer(from.clone(), to, "0.10"), &format!("k{turn}"));
        let answer = wallex.request(request.clone()).await.expect("an answer");
        last = last.max(answer.position);
        // Never older than an answer already given, though the copy may be.
        let read = wallex.wallet(&from).await.expect("a read").expect("a wallet");
        assert!(read.wallet.version >= answer.wallet.version);
        assert!(wallex.request(request).await.expect("the same answer").replayed);
        if turn == 20 {
            world.store.kill();
            world.store.start_again();
        }
    }
    wallex.projected(last, PATIENCE).await.expect("ledger and read model in time");
    let proof = wallex.verify().await.expect("a proof");
    assert!(proof.ok, "{proof:?}");
    assert_eq!(world.database.number("SELECT count(*) FROM ledger_postings WHERE leg = 0").await, 5 + 80);
    assert!(double_entry(&proof).ends_with("0.00 USD"), "{proof:?}");

    assert_eq!(found(&proof, "copy"), "all of it");
    world.store.keep("wallet-no such id", "WalletCredited", r#"{"amount":100}"#, "{}");
    let proof = wallex.verify().await.expect("a proof");
    let copied = found(&proof, "copy");
    assert!(proof.ok && copied.contains("and are none: 1, the first in"), "{copied}");
    assert!(copied.ends_with(r#""wallet-no such id""#), "{copied}");

    // Money on its way is not missing: it is counted, and after a while it is there.
    leave_in_transit(&world, "w1", "w2", 123).await;
    let end = world.store.log().last().expect("events").position as i64;
    wallex.projected(end, PATIENCE).await.expect("ledger and read model in time");
    let proof = wallex.verify().await.expect("a proof");
    assert!(proof.ok, "{proof:?}");
    // The server takes it up after three seconds; on a slow machine that may be before the proof.
    let shown = double_entry(&proof);
    assert!(shown.ends_with("; 1.23 USD in transit") || shown.ends_with("0.00 USD"), "{shown}");
    until_nothing_is_in_transit(&world).await;
    let proof = wallex.verify().await.expect("a proof");
    assert!(proof.ok && double_entry(&proof).ends_with("0.00 USD"), "{proof:?}");
    wallex.close().await;

    // What it stands for is refused where it would be left out.
    let refused = Wallex::open(config(&world, &directory, false)).await.err().expect("a refusal").to_string();
    assert!(refused.contains("Name that event store with --event-store"), "{refused}");
    let again = Wallex::open(config(&world, &directory, true)).await.expect("a wallex");
    let rejected = again.execute(opening("w0", 0)).await;
    assert!(matches!(rejected, Err(CommandError::Rejected(_))), "it knows what was there");
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_holds_its_events_itself_takes_no_event_store() {
    let world = World::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    let wallex = Wallex::open(config(&world, &directory, false)).await.expect("a wallex");
    wallex.execute(opening("w0", 1_000)).await.expect("a wallet");
    wallex.close().await;
    let refused = Wallex::open(config(&world, &directory, true)).await.err().expect("a refusal").to_string();
    assert!(refused.contains("the events of this database are in the database itself"), "{refused}");
    assert!(world.store.log().is_empty());
}

/// Nothing is written, so that only the claim itself can tell.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_first_starts_at_once_one_settles_where_the_events_are() {
    for _ in 0..5 {
        let world = World::new().await;
        let rooms = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        let (with, without) =
            tokio::join!(Wallex::open(config(&world, &rooms[0], true)), Wallex::open(config(&world, &rooms[1], false)));
        assert_ne!(with.is_ok(), without.is_ok(), "one home");
        let home = world.database.database.event_home().await.expect("an answer").expect("a home");
        let expected = if with.is_ok() { EventHome::EventStore } else { EventHome::Database };
        assert_eq!(home, expected);
        for opened in [with, without].into_iter().flatten() {
            opened.close().await;
        }
    }
}
