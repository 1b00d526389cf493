//! What passes is tried again for as long as it lasts, with the partitions and the membership kept; what does not pass parks its
//! wallet. One test a class, each produced by PostgreSQL itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use wallex::kafka::EVENTS_PARTITIONS;
use wallex::postgres::Database;
use wallex::postgres::sqlx::{self, Connection, PgConnection, Postgres, Transaction};
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection, RunnerState};

use crate::support::TestDatabase;
use crate::world::{Recorder, Running, Topic, World};

/// A table with one row, which a trigger touches for each row that a [`Recorder`] writes: what a test does to that row, it does to the
/// runner's transaction.
const TURNSTILE: [&str; 4] = [
    "CREATE TABLE turnstile (passed bigint NOT NULL)",
    "INSERT INTO turnstile VALUES (0)",
    "CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN UPDATE turnstile SET passed = passed + 1; RETURN NEW; END'",
    "CREATE TRIGGER pass BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION pass()",
];

/// A world with a setting of its own for all connections, and a turnstile.
async fn world_with(seed: u64, setting: &str) -> World {
    let mut database = TestDatabase::new().await;
    let name = database.url.rsplit('/').next().and_then(|rest| rest.split('?').next()).expect("a name").to_owned();
    database.run(&format!("ALTER DATABASE {name} SET {setting}")).await;
    database.database = Database::connect(&database.url, 5).await.expect("a connection");
    let mut world = World::on(database, seed).await;
    for statement in TURNSTILE {
        world.database.run(statement).await;
    }
    world.open((0..20).map(|number| format!("wallet-{number}"))).await;
    world.operate(100).await;
    world
}

/// Starts a runner that stops in each of its transactions, once the checkpoints are moved and before the rows are written.
fn start(world: &World, topic: &Topic) -> (Running, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    (world.start(Recorder::new("recorder").behind(&gate), topic), gate)
}

/// Waits until the runner's transaction has begun to write.
async fn is_in_a_transaction(world: &World) {
    let idle =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'
                   AND pid <> pg_backend_pid() AND query LIKE '%parked_records%'";
    world.until("the runner is in a transaction", || async { world.database.number(idle).await > 0 }).await;
}

async fn is_held_up_by(running: &mut Running, words: &str) {
    running.until(|state| matches!(state, RunnerState::HeldUp { reason } if reason.contains(words))).await;
}

/// All is through, each event once, and nothing parked.
async fn assert_nothing_was_given_up(world: &World, mut running: Running) {
    world.through("recorder", world.head()).await;
    running.has_partitions(EVENTS_PARTITIONS as usize).await;
    world.assert_each_once("recorder").await;
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, 0);
    assert_eq!(world.database.number("SELECT passed FROM turnstile").await, world.head());
    running.stop().await;
}

async fn begin(connection: &mut PgConnection) -> Transaction<'_, Postgres> {
    connection.begin().await.expect("a transaction")
}

async fn run(transaction: &mut Transaction<'_, Postgres>, statement: &'static str) {
    sqlx::query(statement).execute(&mut **transaction).await.expect(statement);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_tried_again_and_parks_nobody() {
    let world = world_with(71, "deadlock_timeout = '100ms'").await;
    let topic = Topic::new();
    let (mut running, gate) = start(&world, &topic);
    world.relay(&topic, 0, world.head()).await;
    is_in_a_transaction(&world).await;
    // The test has the turnstile and wants a checkpoint that the runner has moved; then the runner wants the turnstile. It is the
    // last to wait, so it is the one that finds the circle.
    let mut other = PgConnection::connect(&world.database.url).await.expect("a connection");
    let mut other = begin(&mut other).await;
    run(&mut other, "UPDATE turnstile SET passed = passed").await;
    let wanting = async {
        run(&mut other, "SELECT FROM projection_checkpoints WHERE projection = 'recorder' FOR UPDATE").await;
        other.rollback().await.expect("a rollback");
    };
    let breaking = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                          AND query LIKE '%FOR UPDATE%' AND pid <> pg_backend_pid()";
        world.until("the test waits", || async { world.database.number(waiting).await > 0 }).await;
        // Longer than it takes the test's own connection to look for a circle, and to find none.
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.add_permits(1_000_000);
        is_held_up_by(&mut running, "deadlock detected").await;
    };
    tokio::join!(wanting, breaking);
    assert_nothing_was_given_up(&world, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_is_tried_again_and_parks_nobody() {
    let world = world_with(72, "default_transaction_isolation = 'repeatable read'").await;
    let topic = Topic::new();
    let (mut running, gate) = start(&world, &topic);
    world.relay(&topic, 0, world.head()).await;
    is_in_a_transaction(&world).await;
    // What the runner is going to change has changed since its transaction began.
    world.database.run("UPDATE turnstile SET passed = passed").await;
    gate.add_permits(1);
    is_held_up_by(&mut running, "could not serialize access").await;
    gate.add_permits(1_000_000);
    assert_nothing_was_given_up(&world, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_tried_again_for_as_long_as_it_lasts_and_the_membership_is_kept() {
    let world = world_with(73, "statement_timeout = '2s'").await;
    let topic = Topic::new();
    let (mut running, gate) = start(&world, &topic);
    gate.add_permits(1_000_000);
    running.has_partitions(EVENTS_PARTITIONS as usize).await;
    let mut other = PgConnection::connect(&world.database.url).await.expect("a connection");
    let mut other = begin(&mut other).await;
    run(&mut other, "UPDATE turnstile SET passed = passed").await;
    world.relay(&topic, 0, world.head()).await;
    is_held_up_by(&mut running, "statement timeout").await;
    let states = states(&running);
    // Twice as long as a session lasts: a member that is not polled or does not beat is out by then, and told so.
    tokio::time::sleep(Duration::from_millis(3_000)).await;
    let states: Vec<RunnerState> = std::mem::take(&mut *states.lock().expect("no panic"));
    assert!(states.iter().all(|state| matches!(state, RunnerState::HeldUp { .. })), "{states:?}");
    other.rollback().await.expect("a rollback");
    assert_nothing_was_given_up(&world, running).await;
}

/// What a runner does from now on.
fn states(running: &Running) -> Arc<Mutex<Vec<RunnerState>>> {
    let (mut state, states) = (running.state.clone(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&states);
    tokio::spawn(async move {
        while state.changed().await.is_ok() {
            kept.lock().expect("no panic").push(state.borrow_and_update().clone());
        }
    });
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_of_the_database_refuses_parks_its_wallet() {
    let world = world_with(74, "lock_timeout = 0").await;
    let poison = "SELECT max(e.position) FROM events e JOIN streams s USING (stream_id) WHERE s.name = 'wallet-3'";
    let poison = world.database.number(poison).await;
    let refuse = format!(
        "CREATE OR REPLACE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF NEW.position = {poison} THEN RAISE EXCEPTION ''not this one''; END IF; RETURN NEW; END'"
    );
    world.database.run(&refuse).await;
    let topic = Topic::new();
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once_but_from("recorder", "wallet-3", poison).await;
    let parked = "SELECT count(*) FROM parked_records WHERE wallet_id = 'wallet-3' AND error LIKE '%not this one%'";
    assert_eq!(world.database.number(parked).await, 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_no_index_takes_parks_its_wallet() {
    let mut world = World::new(75).await;
    world.open((0..10).map(|number| format!("wallet-{number}"))).await;
    // Nothing that compresses: an entry of an index has to fit into a third of a page.
    world
        .database
        .run(
            "CREATE FUNCTION lengthen() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN IF NEW.wallet_id = ''wallet-3'' THEN
                     INSERT INTO words SELECT string_agg(md5(random()::text), '''') FROM generate_series(1, 400);
                 END IF; RETURN NEW; END'",
        )
        .await;
    world.database.run("CREATE TABLE words (word text PRIMARY KEY)").await;
    world.database.run("CREATE TRIGGER lengthen BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION lengthen()").await;
    let topic = Topic::new();
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    let from = "SELECT min(e.position) FROM events e JOIN streams s USING (stream_id) WHERE s.name = 'wallet-3'";
    let from = world.database.number(from).await;
    world.assert_each_once_but_from("recorder", "wallet-3", from).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_version_and_a_broken_invariant_park_their_wallets_and_the_others_go_on() {
    let mut world = World::new(76).await;
    let topic = Topic::new();
    world.open((0..20).map(|number| format!("wallet-{number}"))).await;
    world.operate(200).await;
    world.relay(&topic, 0, world.head()).await;
    let read_model = world.start(ReadModelProjection::new(), &topic);
    let ledger = world.start(LedgerProjection::new(), &topic);
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    // A version of a later wallex; a row that is not what the next event follows; a posting that is there already.
    let before = world.head();
    let version = world.credit("wallet-1").await;
    world.database.run(&format!("UPDATE events SET event_version = 99 WHERE position = {version}")).await;
    world.database.run("UPDATE read_model_wallets SET balance = balance + 1 WHERE wallet_id = 'wallet-2'").await;
    let invariant = world.credit("wallet-2").await;
    let posting = world.credit("wallet-3").await;
    let there = format!(
        "INSERT INTO ledger_postings (position, leg, account, currency, amount, created_at)
         VALUES ({posting}, 1, 'external/USD', 'USD', -1, now())"
    );
    world.database.run(&there).await;
    world.operate(100).await;
    world.relay(&topic, before, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    let first = "SELECT projection, wallet_id, position, error_class FROM parked_records WHERE error_class <> 'BEHIND' ORDER BY 1, 2";
    let first: Vec<(String, String, i64, String)> =
        sqlx::query_as(first).fetch_all(world.database.database.pool()).await.expect("parked records");
    let of = |projection: &str, wallet: &str, position, class: &str| {
        (projection.to_owned(), wallet.to_owned(), position, class.to_owned())
    };
    assert_eq!(
        first,
        [
            of(LEDGER_PROJECTOR, "wallet-1", version, "DECODE"),
            of(LEDGER_PROJECTOR, "wallet-3", posting, "APPLY"),
            of(READ_MODEL_PROJECTOR, "wallet-1", version, "DECODE"),
            of(READ_MODEL_PROJECTOR, "wallet-2", invariant, "APPLY"),
        ]
    );
    let last = "SELECT count(*) FROM (SELECT s.name, max(e.position) AS position FROM events e JOIN streams s USING (stream_id)
                 GROUP BY 1) AS e JOIN read_model_wallets r ON r.wallet_id = e.name AND r.position = e.position";
    assert_eq!(world.database.number(last).await, 18, "all others are at their last event");
    read_model.stop().await;
    ledger.stop().await;
}
