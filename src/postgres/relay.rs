//! The relay's lock, checkpoint and bell in the database.

use std::collections::BTreeMap;

use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection, PgPool};

use crate::kafka::EVENTS_TOPIC;
use crate::log::Position;
use crate::postgres::Database;
use crate::postgres::log::NOTIFY_CHANNEL;

/// The advisory lock that the active relay holds: "wallex", then the relay's number.
pub(super) const RELAY_LOCK: i64 = 0x7761_6c6c_6578_0001;

/// The last record that the broker acknowledged in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayTail {
    pub(crate) next_offset: i64,
    pub(crate) position: Position,
}

/// The active relay's own connection. Its lock and its checkpoint live and die with it, so a relay that has lost its lock
/// cannot move the checkpoint either.
pub(crate) struct RelaySession {
    connection: PgConnection,
}

impl RelaySession {
    /// Becomes the active relay; `None` while another one is.
    pub(crate) async fn begin(database: &Database) -> Result<Option<Self>, sqlx::Error> {
        let mut connection = PgConnection::connect_with(database.connect_options()).await?;
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(RELAY_LOCK).fetch_one(&mut connection).await?;
        Ok(is_ours.then_some(RelaySession { connection }))
    }

    /// How far everything has been published, and the last record in each partition.
    pub(crate) async fn checkpoint(&mut self) -> Result<(Position, BTreeMap<i32, RelayTail>), sqlx::Error> {
        let position =
            sqlx::query_scalar("SELECT position FROM relay_checkpoint").fetch_one(&mut self.connection).await?;
        let tails: Vec<(i32, i64, Position)> =
            sqlx::query_as("SELECT partition, next_offset, position FROM relay_tails WHERE topic = $1")
                .bind(EVENTS_TOPIC)
                .fetch_all(&mut self.connection)
                .await?;
        let tails = tails
            .into_iter()
            .map(|(partition, next_offset, position)| (partition, RelayTail { next_offset, position }))
            .collect();
        Ok((position, tails))
    }

    /// Moves the checkpoint, never backwards, and notes the last record of each partition that has a new one.
    pub(crate) async fn move_checkpoint(
        &mut self,
        position: Position,
        tails: &BTreeMap<i32, RelayTail>,
    ) -> Result<(), sqlx::Error> {
        let statement = "WITH tails AS (
                INSERT INTO relay_tails (topic, partition, next_offset, position)
                SELECT $2, * FROM unnest($3::int[], $4::bigint[], $5::bigint[])
                ON CONFLICT (topic, partition) DO UPDATE
                   SET next_offset = excluded.next_offset, position = excluded.position)
            UPDATE relay_checkpoint SET position = $1, moved_at = now() WHERE position < $1";
        sqlx::query(statement)
            .bind(position)
            .bind(EVENTS_TOPIC)
            .bind(tails.keys().copied().collect::<Vec<_>>())
            .bind(tails.values().map(|tail| tail.next_offset).collect::<Vec<_>>())
            .bind(tails.values().map(|tail| tail.position).collect::<Vec<_>>())
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Forgets the last records of these partitions: they were another topic's.
    pub(crate) async fn forget_tails(&mut self, partitions: &[i32]) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM relay_tails WHERE topic = $1 AND partition = ANY($2)")
            .bind(EVENTS_TOPIC)
            .bind(partitions)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Fails if the session, and the lock with it, is gone.
    pub(crate) async fn assert_held(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    /// Makes way for another relay.
    pub(crate) async fn end(self) {
        // Where the connection is gone already, so is the lock.
        let _ = self.connection.close().await;
    }
}

/// How far the slowest of these projections is in each partition; 0 where one has not begun.
pub(crate) async fn slowest_positions(
    pool: &PgPool,
    projections: &[&str],
    partitions: i32,
) -> Result<BTreeMap<i32, Position>, sqlx::Error> {
    let statement = "SELECT partition, min(coalesce(c.position, 0))
                       FROM generate_series(0, $2 - 1) AS partition
                       CROSS JOIN unnest($1::text[]) AS projection
                       LEFT JOIN projection_checkpoints c USING (projection, partition)
                      GROUP BY partition";
    let rows: Vec<(i32, Position)> =
        sqlx::query_as(statement).bind(projections).bind(partitions).fetch_all(pool).await?;
    Ok(rows.into_iter().collect())
}

/// Calls `heard` for each append of any process, until the connection fails.
pub(crate) async fn listen_for_appends(database: &Database, heard: impl Fn()) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(database.pool()).await?;
    listener.listen(NOTIFY_CHANNEL).await?;
    loop {
        listener.recv().await?;
        heard();
    }
}
