//! Runners, relayed events and readers go on while tables are made anew and swapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use wallex::kafka::EVENTS_PARTITIONS;
use wallex::postgres::{Database, sqlx};
use wallex::projection::rebuild::{Rebuildable, Rebuilt, drop_previous, rebuild};
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection, RunnerState};

use crate::settled;
use crate::world::{Running, Topic, World};

/// Reads on one connection, by statements that stay prepared, until told to end; how often it has read.
fn reader(database: &Database, statement: &'static str, end: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let (pool, end) = (database.pool().clone(), Arc::clone(end));
    tokio::spawn(async move {
        let mut connection = pool.acquire().await.expect("a connection");
        let (mut last, mut read) = (0_i64, 0);
        while !end.load(Ordering::Relaxed) {
            let found: i64 = sqlx::query_scalar(statement).fetch_one(&mut *connection).await.expect("an answer");
            assert!(found >= last, "{statement} went back from {last} to {found}");
            (last, read) = (found, read + 1);
        }
        read
    })
}

/// Counts how often a runner was held up.
fn held_up(running: &Running) -> Arc<AtomicU64> {
    let (mut state, count) = (running.state.clone(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while state.changed().await.is_ok() {
            if let RunnerState::HeldUp { reason } = &*state.borrow_and_update() {
                eprintln!("held up: {reason}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_and_readers_notice_nothing_of_a_swap() {
    let mut world = settled(61).await;
    let topic = Topic::new();
    let mut ledger = world.start(LedgerProjection::new(), &topic);
    let mut read_model = world.start(ReadModelProjection::new(), &topic);
    ledger.has_partitions(EVENTS_PARTITIONS as usize).await;
    read_model.has_partitions(EVENTS_PARTITIONS as usize).await;
    let held_up = [held_up(&ledger), held_up(&read_model)];
    let end = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [
        "SELECT count(*) FROM ledger_postings",
        "SELECT coalesce(max(position), 0) FROM ledger_postings WHERE leg = 0 AND account = 'wallet/wallet-1'",
        "SELECT sum(version)::bigint FROM read_model_wallets",
    ]
    .into_iter()
    .map(|statement| reader(&world.database.database, statement, &end))
    .collect();

    // Five swaps of each table, one after the other, while events come.
    let database = world.database.database.clone();
    let rebuilding = tokio::spawn(async move {
        let mut made: Vec<Rebuilt> = Vec::new();
        for _ in 0..5 {
            for which in [Rebuildable::Ledger, Rebuildable::ReadModel] {
                made.push(rebuild(&database, which, false, &mut |_| {}).await.expect("a rebuild"));
                assert!(drop_previous(&database, which, true).await.expect("an answer").is_some());
            }
        }
        made
    });
    while !rebuilding.is_finished() {
        let before = world.head();
        world.operate(60).await;
        world.relay(&topic, before, world.head()).await;
    }
    let made = rebuilding.await.expect("no panic");
    assert!(made.iter().all(|made| made.swapped && made.differing == 0), "{made:?}");
    let positions: Vec<i64> = made.iter().map(|made| made.position).collect();
    assert!(positions.first() < positions.last(), "events came meanwhile: {positions:?}");

    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    end.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await.expect("no error") > 10);
    }
    world.assert_ledger_and_read_model().await;
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, 0);
    assert_eq!(held_up.map(|count| count.load(Ordering::Relaxed)), [0, 0]);
    ledger.stop().await;
    read_model.stop().await;
}

async fn until_in_the_way(world: &World) {
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'ledger_postings'::regclass
                      AND mode = 'AccessExclusiveLock'";
    world.until("the swap waits", || async { world.database.number(waiting).await > 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_gives_way_to_a_reader_that_does_not_end_and_to_all_others() {
    let world = settled(62).await;
    let mut endless = world.database.database.pool().begin().await.expect("a transaction");
    sqlx::query("SELECT count(*) FROM ledger_postings").execute(&mut *endless).await.expect("rows");
    let database = world.database.database.clone();
    let running = tokio::spawn(async move { rebuild(&database, Rebuildable::Ledger, false, &mut |_| {}).await });
    for _ in 0..2 {
        until_in_the_way(&world).await;
        // Whoever comes now has to wait behind the swap, but not for the endless reader.
        let others = world.database.number("SELECT count(*) FROM ledger_postings");
        assert!(tokio::time::timeout(Duration::from_secs(20), others).await.expect("an answer in time") > 0);
        assert!(!running.is_finished());
    }
    endless.rollback().await.expect("an end");
    let made = running.await.expect("no panic").expect("a rebuild");
    assert_eq!((made.swapped, made.differing), (true, 0), "{made:?}");
    world.assert_ledger_and_read_model().await;
}
