//! How far the copy is behind the event store, where the events are in one.
//!
//! What lies beyond the copy only the store can say. Whoever cannot ask it, because none was named or it is away, says that
//! instead of a number. What is in transit between a transfer's legs the database knows alone.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::kurrentdb::{KurrentLog, LogPlace};
use crate::lag::probe::{age_ms, milliseconds};
use crate::lag::state::{Waiting, state_of};
use crate::lag::{Standing, State};
use crate::log::{LogError, Position};

/// How many of the store's events are read at once.
const PAGE: usize = 1_000;

/// How many pages are read: what lies beyond them is not counted.
const PAGES_MAX: usize = 10;

/// How many of the store's events, whoever's, are looked at to count those that the copy lacks.
pub const INGEST_COUNT_MAX: usize = PAGE * PAGES_MAX;

/// The copy of an event store's log, and what it does not have yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestLag {
    /// How it stands; `None` where that is not known, because no event store was named to ask.
    pub state: Option<State>,
    /// Whether the event store answered.
    pub store: StoreState,
    /// How many events the copy lacks, of the next [`INGEST_COUNT_MAX`] in the store; `None` where that is not known.
    pub events: Option<i64>,
    /// Whether the store goes on after those that were counted.
    pub more: bool,
    /// Age of the oldest event that the copy lacks, in milliseconds; `None` where none is known.
    pub behind_ms: Option<i64>,
    /// The last place in the store, of anybody's event, up to which the copy has everything; `None` before the first.
    pub copied: Option<i64>,
    /// How long ago that moved, in milliseconds; `None` before the first.
    pub unmoved_ms: Option<i64>,
    /// What is between the legs of transfers.
    pub in_transit: InTransit,
}

/// Whether the event store answered just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreState {
    /// Whether it answered.
    pub connected: bool,
    /// What was wrong, where something was.
    pub error: Option<String>,
}

/// Transfers whose paying leg the copy has, and whose receiving leg it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InTransit {
    /// How many.
    pub transfers: i64,
    /// How long ago the oldest was decided, in milliseconds; `None` where there is none.
    pub oldest_age_ms: Option<i64>,
}

/// How far the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// The place in the store that it has come to.
    pub commit: i64,
    /// The same, for whoever goes on from there.
    pub prepare: i64,
    /// How long ago that changed.
    pub unmoved: Duration,
}

/// What the store said.
pub(super) enum Asked {
    /// Nobody was there to be asked.
    Unnamed,
    /// What it has beyond the copy.
    Answered(Beyond),
    /// It did not answer, or not what can be copied.
    Failed(LogError),
}

/// What the store has beyond the copy.
#[derive(Default)]
pub(super) struct Beyond {
    events: i64,
    more: bool,
    oldest: Option<DateTime<Utc>>,
}

/// Asks the store, for as long as that.
pub(super) async fn ask(store: Option<&KurrentLog>, standing: &Standing, patience: Duration) -> Asked {
    let Some(store) = store else { return Asked::Unnamed };
    match beyond(store, standing.copied, patience).await {
        Ok(beyond) => Asked::Answered(beyond),
        Err(error) => Asked::Failed(error),
    }
}

async fn beyond(store: &KurrentLog, copied: Option<Copied>, patience: Duration) -> Result<Beyond, LogError> {
    let deadline = Instant::now() + patience;
    let place = |it: Copied| LogPlace { commit: it.commit.unsigned_abs(), prepare: it.prepare.unsigned_abs() };
    let mut place = copied.map(place);
    let mut beyond = Beyond::default();
    for number in 0..PAGES_MAX {
        let page = match timeout_at(deadline, store.scan(place, PAGE)).await {
            Ok(page) => page?,
            Err(_) if number == 0 => return Err(LogError::Away(format!("no answer within {patience:?}"))),
            // What was counted in that time is known.
            Err(_) => break,
        };
        let Some(looked_to) = page.looked_to else { return Ok(beyond) };
        place = Some(looked_to);
        beyond.events += page.events.len() as i64;
        beyond.oldest = beyond.oldest.or(page.events.first().map(|(_, event)| event.recorded_at));
    }
    beyond.more = true;
    Ok(beyond)
}

/// The report, of everything that was found out.
pub(super) fn ingest_lag(standing: &Standing, asked: Asked, in_transit: InTransit, now: DateTime<Utc>) -> IngestLag {
    let unmoved = standing.copied.map(|copied| copied.unmoved);
    let mut lag = IngestLag {
        state: None,
        store: StoreState { connected: false, error: None },
        events: None,
        more: false,
        behind_ms: None,
        copied: standing.copied.map(|copied| copied.commit),
        unmoved_ms: unmoved.map(milliseconds),
        in_transit,
    };
    match asked {
        Asked::Unnamed => {
            let unnamed = "the events are in an event store that was not named here, so nobody knows what the copy lacks; \
                           name it with --event-store or WALLEX_EVENT_STORE";
            lag.store.error = Some(unnamed.to_owned());
        }
        Asked::Answered(Beyond { events, more, oldest }) => {
            lag.store.connected = true;
            (lag.events, lag.more) = (Some(events), more);
            lag.behind_ms = oldest.map(|oldest| age_ms(oldest, now));
            let waiting =
                lag.behind_ms.map(|age| Waiting { oldest: Duration::from_millis(age.unsigned_abs()), unmoved });
            lag.state = Some(state_of(waiting));
        }
        Asked::Failed(error) => {
            // One that answers what nobody can copy is there; the ingest comes no further either.
            lag.store.connected = !matches!(error, LogError::Away(_));
            lag.state = Some(if lag.store.connected { State::Stuck } else { State::StoreAway });
            lag.store.error = Some(error.to_string());
        }
    }
    lag
}

impl IngestLag {
    /// Whether the copy lacks more events than that, or nobody knows.
    pub fn is_above(&self, max: i64) -> bool {
        self.more || self.events.is_none_or(|events| events > max)
    }
}

/// How far the copy has come, in the event store's own positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreProgress {
    /// Position of the last event in the store, whoever's; `None` where it was not asked or did not answer.
    pub head: Option<Position>,
    /// The copy has everything up to here; `None` before the first.
    pub copied: Option<Position>,
}
