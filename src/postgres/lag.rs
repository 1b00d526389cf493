//! What the database knows of how far everything has come.

use sqlx::Row;

use crate::kafka::EVENTS_TOPIC;
use crate::lag::{LagError, Standing};
use crate::postgres::{Database, is_transient};

fn lag_error(error: sqlx::Error) -> LagError {
    if is_transient(&error) { LagError::Away(error.to_string()) } else { LagError::Refused(error.to_string()) }
}

impl Database {
    /// One moment: a single statement, so that all its numbers belong together.
    pub(crate) async fn standing(&self) -> Result<Standing, LagError> {
        let statement = "SELECT 'head' AS what, '' AS name, 0 AS place, position FROM log_head
                   UNION ALL SELECT 'published', '', 0, position FROM relay_checkpoint
                   UNION ALL SELECT 'tail', '', partition, position FROM relay_tails WHERE topic = $1
                   UNION ALL SELECT 'checkpoint', projection, partition, position FROM projection_checkpoints";
        let rows = sqlx::query(statement).bind(EVENTS_TOPIC).fetch_all(self.pool()).await.map_err(lag_error)?;
        let mut standing = Standing::default();
        for row in &rows {
            let what: String = row.try_get("what").map_err(lag_error)?;
            let place: i32 = row.try_get("place").map_err(lag_error)?;
            let position: i64 = row.try_get("position").map_err(lag_error)?;
            match what.as_str() {
                "head" => standing.head = position,
                "published" => standing.published = position,
                "tail" => _ = standing.tails.insert(place, position),
                _ => {
                    let projection: String = row.try_get("name").map_err(lag_error)?;
                    standing.checkpoints.insert((projection, place), position);
                }
            }
        }
        Ok(standing)
    }
}
