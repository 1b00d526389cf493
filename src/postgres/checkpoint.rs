//! Checkpoints of projections, and what they are held against: the log and the relay's checkpoint.

use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::log::{Position, Revision};

/// How far a projection is in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) partition: i32,
    /// Every event of this partition up to here is in the projection's tables.
    pub(crate) position: Position,
    /// Where to go on reading in Kafka, a hint.
    pub(crate) next_offset: Option<i64>,
}

/// A checkpoint on its way from the position that it is believed to have.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointMove {
    pub(crate) from: Position,
    pub(crate) to: Checkpoint,
}

/// What tells an event of the log from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoggedEvent {
    pub(crate) position: Position,
    pub(crate) revision: Revision,
    pub(crate) event_id: Uuid,
}

/// The checkpoints of these partitions; those that are not there yet are made, at position 0.
pub(crate) async fn load_checkpoints(
    pool: &PgPool,
    projection: &str,
    partitions: &[i32],
) -> Result<Vec<Checkpoint>, sqlx::Error> {
    sqlx::query(
        "INSERT INTO projection_checkpoints (projection, partition, position)
         SELECT $1, partition, 0 FROM unnest($2::int[]) AS partition ON CONFLICT DO NOTHING",
    )
    .bind(projection)
    .bind(partitions)
    .execute(pool)
    .await?;
    let statement = "SELECT partition, position, next_offset FROM projection_checkpoints
                      WHERE projection = $1 AND partition = ANY($2) ORDER BY partition";
    let rows = sqlx::query(statement).bind(projection).bind(partitions).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            Ok(Checkpoint { partition: row.try_get(0)?, position: row.try_get(1)?, next_offset: row.try_get(2)? })
        })
        .collect()
}

/// Lets only one runner of a projection at a time make its tables, until the transaction ends.
pub(crate) async fn lock_preparation(transaction: &mut PgConnection, projection: &str) -> Result<(), sqlx::Error> {
    let statement = "SELECT pg_advisory_xact_lock(hashtextextended('wallex projection ' || $1, 0))";
    sqlx::query(statement).bind(projection).execute(transaction).await?;
    Ok(())
}

/// Moves checkpoints, each from the position that it is believed to have. `false` where one was elsewhere: somebody else
/// has moved it, so what was to be written beside it must not be.
pub(crate) async fn move_checkpoints(
    connection: &mut PgConnection,
    projection: &str,
    moves: &[CheckpointMove],
) -> Result<bool, sqlx::Error> {
    let statement = "UPDATE projection_checkpoints c
                        SET position = m.position, next_offset = m.next_offset, moved_at = now(), paused_since = NULL
                       FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[])
                            AS m(partition, believed, position, next_offset)
                      WHERE c.projection = $1 AND c.partition = m.partition AND c.position = m.believed";
    let moved = sqlx::query(statement)
        .bind(projection)
        .bind(moves.iter().map(|to| to.to.partition).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.from).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.to.position).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.to.next_offset).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(moved.rows_affected() == moves.len() as u64)
}

/// The events that the log has at these positions.
pub(crate) async fn logged_events(pool: &PgPool, positions: &[Position]) -> Result<Vec<LoggedEvent>, sqlx::Error> {
    let statement = "SELECT position, revision, event_id FROM events WHERE position = ANY($1)";
    let rows = sqlx::query(statement).bind(positions).fetch_all(pool).await?;
    rows.iter()
        .map(|row| Ok(LoggedEvent { position: row.try_get(0)?, revision: row.try_get(1)?, event_id: row.try_get(2)? }))
        .collect()
}

/// The wallets that have events after one position and up to another, each with the position of its last one there.
pub(crate) async fn last_events_between(
    pool: &PgPool,
    after: Position,
    to: Position,
) -> Result<Vec<(String, Position)>, sqlx::Error> {
    let statement = "SELECT s.name, e.position
                       FROM (SELECT stream_id, max(position) AS position FROM events
                              WHERE position > $1 AND position <= $2 GROUP BY stream_id) AS e
                       JOIN streams s USING (stream_id)";
    sqlx::query_as(statement).bind(after).bind(to).fetch_all(pool).await
}

/// How far the relay has published.
pub(crate) async fn published(pool: &PgPool) -> Result<Position, sqlx::Error> {
    sqlx::query_scalar("SELECT position FROM relay_checkpoint").fetch_one(pool).await
}
