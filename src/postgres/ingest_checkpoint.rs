//! How far the copy of an event store's log reaches, and by what that store is known again.

use std::sync::Arc;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::lag::Strays;
use crate::log::{LogError, Revision};
use crate::postgres::log::{log_error, wallet_id};
use crate::postgres::{CopyError, Database};
use crate::wallet::WalletId;

/// Characters of a stray stream's name that are kept.
const STRAY_CHARACTERS_MAX: usize = 200;

/// A place in the event store's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StorePlace {
    pub(crate) commit: i64,
    pub(crate) prepare: i64,
}

/// How far the copy reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) place: StorePlace,
    /// The event there; `None` where it was not kept.
    pub(crate) event_id: Option<Uuid>,
    /// What the streams were called that were copied, before the wallet's id.
    pub(crate) stream_prefix: String,
    /// What was met on the way.
    pub(crate) strays: Strays,
}

/// Where a page ends.
#[derive(Clone, Debug)]
pub(crate) struct PageEnd {
    pub(crate) place: StorePlace,
    /// The event there, whoever's.
    pub(crate) event_id: Uuid,
    /// What the streams are called that are copied.
    pub(crate) stream_prefix: Arc<str>,
    /// The names of streams in it, one for each event, that are called like a wallet's and are none.
    pub(crate) strays: Vec<String>,
}

/// The copy's newest event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewestCopied {
    pub(crate) stream: WalletId,
    pub(crate) revision: Revision,
    pub(crate) event_id: Uuid,
}

pub(super) async fn reached(connection: &mut PgConnection) -> Result<Option<Reached>, sqlx::Error> {
    let statement = "SELECT commit_position, prepare_position, event_id, stream_prefix, stray_events, first_stray
                       FROM ingest_checkpoint";
    let Some(row) = sqlx::query(statement).fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(Reached {
        place: StorePlace { commit: row.try_get("commit_position")?, prepare: row.try_get("prepare_position")? },
        event_id: row.try_get("event_id")?,
        stream_prefix: row.try_get("stream_prefix")?,
        strays: Strays { events: row.try_get("stray_events")?, first: row.try_get("first_stray")? },
    }))
}

pub(super) async fn move_checkpoint(
    transaction: &mut PgConnection,
    from: Option<StorePlace>,
    to: &PageEnd,
) -> Result<(), CopyError> {
    let strays = to.strays.len() as i64;
    let first_stray = to.strays.first().map(|name| shown(name));
    let moved = match from {
        None => {
            let statement =
                "INSERT INTO ingest_checkpoint (commit_position, prepare_position, moved_at, event_id, stray_events,
                                                            first_stray, stream_prefix)
                             VALUES ($1, $2, now(), $3, $4, $5, $6) ON CONFLICT DO NOTHING";
            sqlx::query(statement)
                .bind(to.place.commit)
                .bind(to.place.prepare)
                .bind(to.event_id)
                .bind(strays)
                .bind(first_stray)
                .bind(&*to.stream_prefix)
                .execute(transaction)
                .await?
        }
        Some(from) => {
            let statement = "UPDATE ingest_checkpoint
                                SET commit_position = $1, prepare_position = $2, moved_at = now(), event_id = $3,
                                    stray_events = stray_events + $4, first_stray = coalesce(first_stray, $5)
                              WHERE commit_position = $6 AND prepare_position = $7";
            sqlx::query(statement)
                .bind(to.place.commit)
                .bind(to.place.prepare)
                .bind(to.event_id)
                .bind(strays)
                .bind(first_stray)
                .bind(from.commit)
                .bind(from.prepare)
                .execute(transaction)
                .await?
        }
    };
    if moved.rows_affected() == 1 { Ok(()) } else { Err(CopyError::Fenced) }
}

/// A foreign name as it is kept: not too long, and without what PostgreSQL's texts cannot hold.
fn shown(name: &str) -> String {
    name.chars()
        .take(STRAY_CHARACTERS_MAX)
        .map(|character| if character == '\0' { '\u{fffd}' } else { character })
        .collect()
}

impl Database {
    /// How far the copy of an event store's log reaches, in that store's terms; `None` where nothing was copied.
    ///
    /// # Errors
    /// [`LogError`] where the database does not answer.
    pub async fn ingested(&self) -> Result<Option<(i64, i64)>, LogError> {
        Ok(self.reached().await?.map(|Reached { place, .. }| (place.commit, place.prepare)))
    }

    /// The same, with what the store is known by.
    pub(crate) async fn reached(&self) -> Result<Option<Reached>, LogError> {
        let mut connection = self.pool().acquire().await.map_err(log_error)?;
        reached(&mut connection).await.map_err(log_error)
    }

    /// The copy's newest event; `None` where it has none.
    pub(crate) async fn newest_copied(&self) -> Result<Option<NewestCopied>, LogError> {
        let statement = "SELECT s.name, e.revision, e.event_id FROM events e JOIN streams s USING (stream_id)
                          ORDER BY e.position DESC LIMIT 1";
        let newest: Option<(String, Revision, Uuid)> =
            sqlx::query_as(statement).fetch_optional(self.by_index()).await.map_err(log_error)?;
        newest
            .map(|(name, revision, event_id)| Ok(NewestCopied { stream: wallet_id(name)?, revision, event_id }))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_others_is_kept_within_bounds_whatever_it_is() {
        assert_eq!(shown("wallet-no such id"), "wallet-no such id");
        assert_eq!(shown("wallet-\0"), "wallet-\u{fffd}");
        assert_eq!(shown(&"é".repeat(1_000)).chars().count(), STRAY_CHARACTERS_MAX);
    }
}
