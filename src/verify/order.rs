//! The first pass: the log in the order of its positions, with the ledger and the topic beside it.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use lru::LruCache;
use tokio::sync::mpsc;

use crate::kafka::EventRecord;
use crate::log::{Position, RecordedEvent};
use crate::postgres::Database;
use crate::projection::LEDGER_PROJECTOR;
use crate::verify::posting::{self, Ledger};
use crate::verify::proof::{Finding, at};
use crate::verify::topic::TopicScan;
use crate::verify::{EventRow, PostingRow, StreamId, VerifyError, VerifyProgress};
use crate::wallet::WalletId;

/// Positions in one page. About three pages are in memory at a time.
const PAGE: Position = 4_000;

/// Names of streams that are remembered.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");

/// A stretch of positions with all that lies there.
struct Page {
    first: Position,
    last: Position,
    /// Events and what their streams are called; `None` where a stream has no name that can be one.
    events: Vec<(EventRow, Option<WalletId>)>,
    postings: Vec<PostingRow>,
    /// Positions that were discarded for the ledger.
    discarded: HashSet<Position>,
}

/// What the first pass has found.
pub(super) struct Order {
    /// Positions without a gap, events that can be read.
    pub log: Finding,
    /// Postings as the events call for.
    pub ledger: Finding,
    /// What the accounts come to.
    pub sums: Ledger,
    /// How many postings were compared.
    pub postings: u64,
    /// How many events have no postings because they were discarded. [`Order::sums`] has their amounts in it.
    pub discarded: u64,
    ledger_through: Position,
}

impl Order {
    /// Ready to begin; the ledger is compared up to `ledger_through` only.
    pub fn new(ledger_through: Position) -> Self {
        Order {
            log: Finding::new("log"),
            ledger: Finding::new("ledger"),
            sums: Ledger::new(),
            postings: 0,
            discarded: 0,
            ledger_through,
        }
    }

    /// Reads positions 1 to `head`. The topic's part comes back, if there is one.
    pub async fn scan(
        &mut self,
        database: &Database,
        head: Position,
        mut topic: Option<TopicScan>,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<Option<TopicScan>, VerifyError> {
        let (sender, mut pages) = mpsc::channel(1);
        // Its end is the channel's end; it gives up when nobody takes its pages any more.
        tokio::spawn(load(database.clone(), head, sender));
        let mut done = 0;
        while let Some(page) = pages.recv().await {
            let page = page?;
            let mut events = Vec::with_capacity(page.events.len());
            let mut postings = page.postings.into_iter().peekable();
            let mut rows = page.events.into_iter().peekable();
            for position in page.first..=page.last {
                let row = rows.next_if(|(row, _)| row.position == position);
                let mut here = Vec::with_capacity(2);
                while let Some(posting) = postings.next_if(|posting| posting.position == position) {
                    here.push(posting);
                }
                let is_discarded = here.is_empty() && page.discarded.contains(&position);
                events.extend(self.at(position, row, &here, is_discarded));
            }
            done = page.last;
            if let Some(scan) = topic.take() {
                topic = Some(compare_topic(scan, events).await?);
            }
            progress(VerifyProgress { stage: "log, ledger, topic", done: done as u64, total: head as u64 });
        }
        // The loader cannot have ended early without an error, unless it died.
        if done < head {
            return Err(VerifyError::Refused("reading the log ended early".to_owned()));
        }
        Ok(topic)
    }

    /// Looks at one position. The event comes back, if it is one.
    fn at(
        &mut self,
        position: Position,
        row: Option<(EventRow, Option<WalletId>)>,
        postings: &[PostingRow],
        is_discarded: bool,
    ) -> Option<RecordedEvent> {
        let compares = position <= self.ledger_through;
        if compares {
            self.postings += postings.len() as u64;
            postings.iter().for_each(|posting| posting::add(&mut self.sums, posting));
        }
        let Some((row, name)) = row else {
            self.log.differs(format!("position {position}"), "an event", "nothing");
            if let (true, Some(stray)) = (compares, postings.first()) {
                let place = format!("position {position}");
                self.ledger.differs(place, "no posting without an event", posting::described(stray));
            }
            return None;
        };
        let Some(wallet_id) = name else {
            let place = format!("position {position}");
            self.log.differs(place, "a stream with a wallet's name", format!("stream {}", row.stream_id));
            return None;
        };
        let recorded = recorded(row, wallet_id);
        match EventRecord::try_from(&recorded) {
            Err(error) => {
                self.log.differs(at(&recorded.stream, position), "an event that can be read", error);
            }
            Ok(record) if compares && is_discarded => {
                self.discarded += 1;
                posting::add_discarded(&mut self.sums, &record);
            }
            Ok(record) if compares => {
                if let Err((expected, found)) = posting::compare(&record, postings) {
                    self.ledger.differs(at(&recorded.stream, position), expected, found);
                }
            }
            Ok(_) => {}
        }
        Some(recorded)
    }
}

/// The topic is read with blocking calls, so off the runtime's threads.
async fn compare_topic(mut scan: TopicScan, events: Vec<RecordedEvent>) -> Result<TopicScan, VerifyError> {
    let compared = tokio::task::spawn_blocking(move || {
        scan.compare(&events);
        scan
    });
    compared.await.map_err(|error| VerifyError::Refused(format!("reading the topic failed: {error}")))
}

fn recorded(row: EventRow, stream: WalletId) -> RecordedEvent {
    RecordedEvent {
        position: row.position,
        stream,
        revision: row.revision,
        event_id: row.event_id,
        event_type: row.event_type,
        // A version below zero is as unknown as one beyond ours.
        event_version: u32::try_from(row.event_version).unwrap_or(u32::MAX),
        recorded_at: row.recorded_at,
        payload: row.payload,
        metadata: row.metadata,
    }
}

/// Reads ahead: one page waits, one is being read, while one is compared.
async fn load(database: Database, head: Position, pages: mpsc::Sender<Result<Page, VerifyError>>) {
    let mut names = LruCache::new(NAMES_MAX);
    let mut first = 1;
    while first <= head {
        let last = head.min(first + PAGE - 1);
        let page = load_page(&database, first, last, &mut names).await;
        let failed = page.is_err();
        if pages.send(page).await.is_err() || failed {
            return;
        }
        first = last + 1;
    }
}

async fn load_page(
    database: &Database,
    first: Position,
    last: Position,
    names: &mut LruCache<StreamId, WalletId>,
) -> Result<Page, VerifyError> {
    // A task of their own, so that the two are also taken apart at the same time.
    let postings = tokio::spawn({
        let database = database.clone();
        async move { database.posting_rows(first, last).await }
    });
    let rows = database.event_rows(first, last).await?;
    let mut unknown: Vec<StreamId> =
        rows.iter().map(|row| row.stream_id).filter(|stream| !names.contains(stream)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    // The names of this page's own streams are held apart: the cache may drop one before the page is through.
    let mut fresh = Vec::with_capacity(unknown.len());
    if !unknown.is_empty() {
        for (stream, name) in database.stream_names(&unknown).await? {
            if let Ok(name) = WalletId::new(name) {
                fresh.push((stream, name));
            }
        }
        fresh.sort_unstable_by_key(|(stream, _)| *stream);
    }
    let name_of = |names: &mut LruCache<StreamId, WalletId>, stream: StreamId| {
        let found = fresh.binary_search_by_key(&stream, |(stream, _)| *stream).ok().map(|place| fresh[place].1.clone());
        found.or_else(|| names.get(&stream).cloned())
    };
    let events: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let name = name_of(names, row.stream_id);
            (row, name)
        })
        .collect();
    for (stream, name) in fresh {
        names.put(stream, name);
    }
    let postings =
        postings.await.map_err(|error| VerifyError::Refused(format!("reading the ledger failed: {error}")))??;
    // After the postings: what they lack because it was discarded meanwhile is known here.
    let discarded = database.discarded_positions(LEDGER_PROJECTOR, first, last).await?.into_iter().collect();
    Ok(Page { first, last, events, postings, discarded })
}
