//! Checkpoints of projections, and what the log says of the events that are about to be applied.

use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use crate::log::Position;

/// How far a projection is in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) partition: i32,
    /// Every event of this partition up to here is in the projection's tables.
    pub(crate) position: Position,
    /// Where to go on reading in Kafka, a hint.
    pub(crate) next_offset: Option<i64>,
    /// The position of the record before `next_offset`.
    pub(crate) record_position: Option<Position>,
}

/// A checkpoint on its way from the position that it is believed to have.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointMove {
    pub(crate) from: Position,
    pub(crate) to: Checkpoint,
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
    let statement = "SELECT partition, position, next_offset, record_position FROM projection_checkpoints
                      WHERE projection = $1 AND partition = ANY($2) ORDER BY partition";
    let rows = sqlx::query(statement).bind(projection).bind(partitions).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            Ok(Checkpoint {
                partition: row.try_get(0)?,
                position: row.try_get(1)?,
                next_offset: row.try_get(2)?,
                record_position: row.try_get(3)?,
            })
        })
        .collect()
}

/// Moves checkpoints, each from the position that it is believed to have. `false` where one was elsewhere: then somebody
/// else has this partition now, and the transaction must be rolled back.
pub(crate) async fn move_checkpoints(
    transaction: &mut PgConnection,
    projection: &str,
    moves: &[CheckpointMove],
) -> Result<bool, sqlx::Error> {
    let statement = "UPDATE projection_checkpoints c
                        SET position = m.position, next_offset = m.next_offset, record_position = m.record_position,
                            moved_at = now()
                       FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
                            AS m(partition, believed, position, next_offset, record_position)
                      WHERE c.projection = $1 AND c.partition = m.partition AND c.position = m.believed";
    let moved = sqlx::query(statement)
        .bind(projection)
        .bind(moves.iter().map(|to| to.to.partition).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.from).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.to.position).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.to.next_offset).collect::<Vec<_>>())
        .bind(moves.iter().map(|to| to.to.record_position).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
    Ok(moved.rows_affected() == moves.len() as u64)
}

/// The ids of the events at these positions.
pub(crate) async fn event_ids(
    transaction: &mut PgConnection,
    positions: &[Position],
) -> Result<Vec<(Position, Uuid)>, sqlx::Error> {
    sqlx::query_as("SELECT position, event_id FROM events WHERE position = ANY($1)")
        .bind(positions)
        .fetch_all(transaction)
        .await
}

/// How far the relay has published.
pub(crate) async fn published(pool: &PgPool) -> Result<Position, sqlx::Error> {
    sqlx::query_scalar("SELECT position FROM relay_checkpoint").fetch_one(pool).await
}
