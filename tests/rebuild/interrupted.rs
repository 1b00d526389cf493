//! A rebuild that is killed, a second one, one that has to wait.

use std::process::{Child, Stdio};

use wallex::postgres::sqlx;
use wallex::postgres::sqlx::{PgConnection, Postgres, Transaction};
use wallex::projection::rebuild::{Rebuildable, rebuild};

use crate::process::wallex;
use crate::world::World;
use crate::{project, project_json, settled, stderr, table_number};

/// Holds the ledger's checkpoints, so that a rebuild stops before its last step.
async fn hold(world: &World) -> Transaction<'static, Postgres> {
    let mut holder = world.database.database.pool().begin().await.expect("a transaction");
    sqlx::query("SELECT FROM projection_checkpoints WHERE projection = 'ledger-projector' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .expect("locks");
    holder
}

async fn is_waiting(world: &World) {
    // Its own is the only other statement that locks checkpoints one by one.
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                      AND query LIKE '%projection_checkpoints%FOR UPDATE%'";
    world.until("the rebuild waits", || async { world.database.number(waiting).await > 0 }).await;
}

fn start(world: &World, place: &std::path::Path) -> Child {
    let place = place.to_str().expect("UTF-8");
    let on = ["--database-url", &world.database.url, "--data-dir", place, "--log", "error"];
    let child = wallex(&[&["project", "ledger", "--rebuild"], &on[..]].concat()).stdout(Stdio::null()).spawn();
    child.expect("wallex runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_killed_is_begun_again_and_two_are_not_at_work_at_once() {
    let world = settled(51).await;
    let live = table_number(&world, "ledger_postings").await;
    let holder = hold(&world).await;
    let place = tempfile::tempdir().expect("a directory");
    let mut first = start(&world, place.path());
    is_waiting(&world).await;
    assert!(world.database.number("SELECT count(*) FROM wallex_rebuild.ledger_postings").await > 0);

    let second = project(&world, &["ledger", "--rebuild"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(stderr(&second).contains("another rebuild of ledger-projector is at work"), "{}", stderr(&second));
    assert_eq!(project(&world, &["ledger", "--drop-previous"]).status.code(), Some(2));
    let other = project(&world, &["read-model", "--rebuild"]);
    assert!(other.status.success(), "another projection's is nobody's business: {}", stderr(&other));

    first.kill().expect("a kill");
    first.wait().expect("its end");
    holder.rollback().await.expect("a rollback");
    assert_eq!(table_number(&world, "ledger_postings").await, live);
    assert!(world.database.number("SELECT count(*) FROM wallex_rebuild.ledger_postings").await > 0);
    let (code, made) = project_json(&world, &["ledger", "--rebuild"]);
    assert_eq!((code, &made["beganAgain"], &made["swapped"]), (Some(0), &true.into(), &true.into()), "{made}");
    world.assert_ledger_and_read_model().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_while_a_rebuild_runs_is_in_the_new_table_too() {
    let world = settled(52).await;
    // As if the last events of a wallet had been parked: they are not in the ledger, and kept.
    let last = "SELECT e.position FROM events e JOIN streams s USING (stream_id) WHERE s.name = 'wallet-7' ORDER BY 1 DESC LIMIT 3";
    world
        .database
        .run(&format!("CREATE TABLE replayed AS SELECT * FROM ledger_postings WHERE position IN ({last})"))
        .await;
    assert_eq!(
        world.database.run("DELETE FROM ledger_postings WHERE position IN (SELECT position FROM replayed)").await,
        6
    );
    world
        .database
        .run(
            "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, record_headers, error_class, error,
                                         attempts, first_failed_at, last_failed_at)
             SELECT DISTINCT 'ledger-projector', 'wallet-7', position, 'wallet-events', 0, '[]'::jsonb, 'APPLY', 'on purpose', 1,
                    now(), now() FROM replayed",
        )
        .await;
    let mut holder = hold(&world).await;
    let database = world.database.database.clone();
    let running = tokio::spawn(async move { rebuild(&database, Rebuildable::Ledger, false, &mut |_| {}).await });
    is_waiting(&world).await;
    // The oldest two are replayed, the third stays.
    let replay = async |connection: &mut PgConnection, statement: &'static str| {
        sqlx::query(statement).execute(connection).await.expect("a replay").rows_affected()
    };
    let first_two =
        "INSERT INTO ledger_postings SELECT * FROM replayed WHERE position < (SELECT max(position) FROM replayed)";
    assert_eq!(replay(&mut holder, first_two).await, 4);
    replay(&mut holder, "DELETE FROM parked_records WHERE position < (SELECT max(position) FROM replayed)").await;
    holder.commit().await.expect("a commit");
    let made = running.await.expect("no panic").expect("a rebuild");
    assert_eq!((made.swapped, made.differing, made.parked), (true, 0, 1), "{made:?}");
    let missing = "SELECT count(*) FROM replayed r WHERE NOT EXISTS (SELECT FROM ledger_postings l WHERE l.position = r.position)";
    assert_eq!(world.database.number(missing).await, 2);
}
