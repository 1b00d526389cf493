//! The whole log, page by page; and whether it is still the one that it was.

use eventstore::{ReadAllOptions, ReadStreamOptions, RecordedEvent as Stored, StreamPosition};
use uuid::Uuid;

use crate::kurrentdb::log::Page;
use crate::kurrentdb::{KurrentLog, event};
use crate::log::{LogError, RecordedEvent, Revision};
use crate::wallet::WalletId;

/// How many are read to see one of them, so that it is shown also where a read ends half-way.
const LOOK_AROUND: usize = 2;

/// A place in the whole log. Both numbers are needed to go on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPlace {
    /// Where the event was committed.
    pub commit: u64,
    /// Where it was prepared; the same on every server that was looked at.
    pub prepare: u64,
}

/// A place in the whole log, with the event that lies there: another log, or this one put back to an earlier state, has another
/// event there or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The place.
    pub place: LogPlace,
    /// The event's id.
    pub event_id: Uuid,
}

impl Mark {
    fn of(stored: &Stored) -> Self {
        let place = LogPlace { commit: stored.position.commit, prepare: stored.position.prepare };
        Mark { place, event_id: stored.id }
    }
}

/// A page of the whole log.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// The wallets' events in it, in order.
    pub events: Vec<(LogPlace, RecordedEvent)>,
    /// Of each event whose stream is called like a wallet's and whose rest is no wallet id: its place, and that name.
    pub strays: Vec<(LogPlace, String)>,
    /// The last event of anybody's that was looked at; `None` where there was none.
    pub looked_to: Option<Mark>,
    /// The id of the event at the very place after which was asked; `None` where there is none, and where the page was asked for
    /// from the beginning.
    pub at_place: Option<Uuid>,
}

/// What was seen where an event should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// It.
    There(Mark),
    /// Another one.
    Another,
    /// The stream ends before it, or there is no such stream.
    Missing,
}

impl KurrentLog {
    /// Up to `limit` events of the whole log after a place, in order, as they are stored. It may be fewer though there are more:
    /// only an empty page is the end.
    ///
    /// # Errors
    /// [`LogError`] where the server is away or refuses.
    pub async fn scan(&self, after: Option<LogPlace>, limit: usize) -> Result<Scanned, LogError> {
        let position = match after {
            Some(LogPlace { commit, prepare }) => StreamPosition::Position(eventstore::Position { commit, prepare }),
            None => StreamPosition::Start,
        };
        // A page from a place begins with the event there.
        let limit = limit.saturating_add(usize::from(after.is_some()));
        let options = ReadAllOptions::default().forwards().position(position).max_count(limit).requires_leader(true);
        let mut page = Scanned::default();
        self.read_page(&Page::All(options), |stored| {
            let mark = Mark::of(stored);
            let place = mark.place;
            if after == Some(place) {
                page.at_place = Some(mark.event_id);
            }
            if after.is_some_and(|after| place <= after) {
                return Ok(());
            }
            page.looked_to = Some(mark);
            let Some(name) = stored.stream_id.strip_prefix(&*self.stream_prefix) else { return Ok(()) };
            match WalletId::new(name) {
                Ok(id) => page.events.push((place, event::from_stored(stored, id)?)),
                Err(_) => page.strays.push((place, stored.stream_id.clone())),
            }
            Ok(())
        })
        .await?;
        Ok(page)
    }

    /// Whether this event is in the stream at this revision. An answer is given only to what was shown: a read that ended before it
    /// showed anything is an error.
    ///
    /// # Errors
    /// [`LogError`] where the server is away, refuses or shows too little.
    pub(crate) async fn look_for(
        &self,
        stream: &WalletId,
        revision: Revision,
        event_id: Uuid,
    ) -> Result<Looked, LogError> {
        let from = StreamPosition::Position(u64::try_from(revision).unwrap_or(0));
        let forwards = ReadStreamOptions::default().forwards().position(from).max_count(LOOK_AROUND);
        let backwards = ReadStreamOptions::default().backwards().position(StreamPosition::End).max_count(LOOK_AROUND);
        let mut last = None;
        for options in [forwards, backwards] {
            let (mut there, mut newest) = (None, None);
            let exists = self
                .read_page(&self.page_of(stream, options), |stored| {
                    let found = i64::try_from(stored.revision).unwrap_or(i64::MAX);
                    newest = newest.max(Some(found));
                    there = there.or((found == revision).then(|| Mark::of(stored)));
                    Ok(())
                })
                .await?;
            match there {
                Some(mark) if mark.event_id == event_id => return Ok(Looked::There(mark)),
                Some(_) => return Ok(Looked::Another),
                None if !exists => return Ok(Looked::Missing),
                None => last = newest,
            }
        }
        match last {
            Some(last) if last < revision => Ok(Looked::Missing),
            _ => Err(LogError::Away(format!("a read of {} ended before it showed anything", self.stream_name(stream)))),
        }
    }
}
