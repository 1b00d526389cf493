//! How far the copy is behind the event store, where the events are in one.
//!
//! What lies beyond the copy only the store can say. Whoever cannot ask it, because none was named or it is away, says that
//! instead of a number. What is in transit between a transfer's legs the database knows alone.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::ingest::{AnotherStore, Recognised, recognise};
use crate::kurrentdb::{KurrentLog, LogPlace};
use crate::lag::probe::{age_ms, milliseconds};
use crate::lag::state::{Waiting, state_of};
use crate::lag::{Standing, State};
use crate::log::{LogError, Position};
use crate::postgres::{Database, Reached};

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
    /// What was met in the store that is called like a wallet's and is none. It stays there, and nobody is held up by it.
    pub strays: Strays,
}

/// Streams that are called like a wallet's, such as `wallet-no id`, though the rest of their name is no wallet id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Strays {
    /// How many events lie in them, as far as the copy has come.
    pub events: i64,
    /// The first such stream's name, cut to 200 characters; `None` where there is none.
    pub first: Option<String>,
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
    /// How many of them the copy has known of for longer than [`OVERDUE_AFTER`](crate::lag::OVERDUE_AFTER).
    pub overdue: i64,
}

/// How far the copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// The place in the store that it has come to.
    pub commit: i64,
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
    /// It is not the one that was copied.
    Another(AnotherStore),
}

/// What of it the database knows alone.
pub(super) struct Known {
    pub in_transit: InTransit,
    pub strays: Strays,
}

/// What the store has beyond the copy.
#[derive(Default)]
pub(super) struct Beyond {
    events: i64,
    more: bool,
    oldest: Option<DateTime<Utc>>,
}

/// Asks the store, for as long as that.
pub(super) async fn ask(
    store: Option<&KurrentLog>,
    database: &Database,
    reached: Option<&Reached>,
    patience: Duration,
) -> Asked {
    let Some(store) = store else { return Asked::Unnamed };
    let deadline = Instant::now() + patience;
    let too_late = || LogError::Away(format!("no answer within {patience:?}"));
    let recognised = timeout_at(deadline, recognise(store, database, reached)).await;
    let since = match recognised.unwrap_or_else(|_| Err(too_late())) {
        Ok(Recognised::Another(another)) => return Asked::Another(another),
        Ok(Recognised::Since(mark)) => mark.map(|mark| mark.place),
        Err(error) => return Asked::Failed(error),
    };
    match beyond(store, since, deadline).await {
        Ok(Some(beyond)) => Asked::Answered(beyond),
        Ok(None) => Asked::Failed(too_late()),
        Err(error) => Asked::Failed(error),
    }
}

/// `None` where the store took too long even over the first page.
async fn beyond(
    store: &KurrentLog,
    mut place: Option<LogPlace>,
    deadline: Instant,
) -> Result<Option<Beyond>, LogError> {
    let mut beyond = Beyond::default();
    for number in 0..PAGES_MAX {
        let page = match timeout_at(deadline, store.scan(place, PAGE)).await {
            Ok(page) => page?,
            Err(_) if number == 0 => return Ok(None),
            // What was counted in that time is known.
            Err(_) => break,
        };
        let Some(looked_to) = page.looked_to else { return Ok(Some(beyond)) };
        place = Some(looked_to.place);
        beyond.events += page.events.len() as i64;
        beyond.oldest = beyond.oldest.or(page.events.first().map(|(_, event)| event.recorded_at));
    }
    beyond.more = true;
    Ok(Some(beyond))
}

/// The report, of everything that was found out.
pub(super) fn ingest_lag(standing: &Standing, asked: Asked, known: Known, now: DateTime<Utc>) -> IngestLag {
    let Known { in_transit, strays } = known;
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
        strays,
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
        Asked::Another(another) => {
            lag.store = StoreState { connected: true, error: Some(another.to_string()) };
            lag.state = Some(State::AnotherStore);
        }
    }
    // That much is known also where nobody was asked.
    lag.state = lag.state.max((in_transit.overdue > 0).then_some(State::TransferOverdue));
    lag
}

impl IngestLag {
    /// Whether the copy lacks more events than that, or nobody knows; or whether any transfer is overdue, since money that stands still
    /// is no matter of how much waits.
    pub fn is_above(&self, max: i64) -> bool {
        self.more || self.events.is_none_or(|events| events > max) || self.in_transit.overdue > 0
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
