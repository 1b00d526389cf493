//! What the relay is doing, in words for an operator: what the active relay says of itself, and what the database knows better.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::postgres::Database;
use crate::postgres::relay::RELAY_LOCK;

/// A relay that has not been seen for longer than this is halted or gone, whatever it said last, in seconds.
const SILENCE_MAX_S: i64 = 10;

/// How many withheld wallets are listed at most, the longest withheld first.
const WITHHELD_MAX: i64 = 1_000;

/// What the relay is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RelayState {
    /// Whatever is in the log goes to the topic.
    Publishing,
    /// The topic lacks what was published before (it was made anew, is another cluster's, or was restored from the past), and gets
    /// it again as far as consumers lack it.
    Refilling,
    /// The broker does not take records at the moment. It goes on by itself.
    Waiting,
    /// Nothing is published until somebody does something about the reason.
    Blocked,
    /// No relay is active.
    Absent,
}

impl RelayState {
    /// All of them.
    pub const ALL: [RelayState; 5] =
        [RelayState::Publishing, RelayState::Refilling, RelayState::Waiting, RelayState::Blocked, RelayState::Absent];

    /// Its name, as the database and people have it.
    pub fn name(self) -> &'static str {
        match self {
            RelayState::Publishing => "publishing",
            RelayState::Refilling => "refilling",
            RelayState::Waiting => "waiting",
            RelayState::Blocked => "blocked",
            RelayState::Absent => "absent",
        }
    }
}

/// The relay as it stands now. [`Database::relay_status`] reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayStatus {
    /// What it is doing.
    pub state: RelayState,
    /// Why it is not publishing, in words; `None` where it is.
    pub reason: Option<String>,
    /// The process that is, or was last, the active relay; `None` where there never was one.
    pub holder: Option<String>,
    /// Since when it has been in this state.
    pub since: DateTime<Utc>,
    /// When it was last seen at work.
    pub seen_at: DateTime<Utc>,
}

/// A wallet whose events do not go to the topic: its first one there is larger than the topic takes.
/// [`Database::relay_withheld`] reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WithheldWallet {
    /// The wallet.
    pub wallet_id: String,
    /// Its first event that is not in the topic.
    pub position: i64,
    /// How many of its events are not, that one included.
    pub events: i64,
    /// How many bytes that first one takes as a record.
    pub record_bytes: i64,
    /// What is in its way, in words for an operator.
    pub reason: String,
    /// Since when.
    pub withheld_at: DateTime<Utc>,
}

impl Database {
    /// What the relay is doing now.
    ///
    /// # Errors
    /// What the database says.
    pub async fn relay_status(&self) -> Result<RelayStatus, sqlx::Error> {
        // A lock's key of eight bytes is shown in two halves.
        let statement =
            "SELECT state, reason, holder, since, seen_at, seen_at + $2 * interval '1 second' < now() AS is_silent,
                                EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                                         WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted
                                           AND l.objsubid = 1
                                           AND (l.classid::bigint << 32 | l.objid::bigint) = $1) AS is_held
                           FROM relay_status";
        let row = sqlx::query(statement).bind(RELAY_LOCK).bind(SILENCE_MAX_S).fetch_one(self.pool()).await?;
        let name: String = row.try_get("state")?;
        let said = RelayState::ALL.into_iter().find(|state| state.name() == name);
        let mut status = RelayStatus {
            state: said.ok_or_else(|| sqlx::Error::Decode(format!("no state of a relay: {name}").into()))?,
            reason: row.try_get("reason")?,
            holder: row.try_get("holder")?,
            since: row.try_get("since")?,
            seen_at: row.try_get("seen_at")?,
        };
        let (is_silent, is_held): (bool, bool) = (row.try_get("is_silent")?, row.try_get("is_held")?);
        if is_silent && status.state != RelayState::Absent {
            let seen_at: DateTime<Utc> = status.seen_at;
            status.since = seen_at;
            if is_held {
                status.state = RelayState::Waiting;
                status.reason = Some(
                    "the active relay is not heard of: its process is halted, or cut off from the database; another one \
                     takes over when its lease ends"
                        .to_owned(),
                );
            } else {
                status.state = RelayState::Absent;
                status.reason = Some("the last one ended without a word".to_owned());
            }
        }
        Ok(status)
    }

    /// The wallets whose events the relay withholds from the topic, the longest withheld first; at most 1,000.
    ///
    /// # Errors
    /// What the database says.
    pub async fn relay_withheld(&self) -> Result<Vec<WithheldWallet>, sqlx::Error> {
        let statement = "SELECT w.wallet_id, w.position, w.record_bytes, w.reason, w.withheld_at,
                                (SELECT count(*) FROM events e JOIN streams s USING (stream_id)
                                  WHERE s.name = w.wallet_id AND e.position BETWEEN w.position AND r.position) AS events
                           FROM relay_withheld w CROSS JOIN relay_checkpoint r
                          WHERE w.published_to IS NULL ORDER BY w.withheld_at, w.wallet_id LIMIT $1";
        let rows = sqlx::query(statement).bind(WITHHELD_MAX).fetch_all(self.pool()).await?;
        let read = |row: &PgRow| -> Result<WithheldWallet, sqlx::Error> {
            Ok(WithheldWallet {
                wallet_id: row.try_get("wallet_id")?,
                position: row.try_get("position")?,
                events: row.try_get("events")?,
                record_bytes: row.try_get("record_bytes")?,
                reason: row.try_get("reason")?,
                withheld_at: row.try_get("withheld_at")?,
            })
        };
        rows.iter().map(read).collect()
    }
}
