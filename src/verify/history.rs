//! The second pass: each wallet's history by itself, folded again, with the read model and the snapshots beside it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;

use tokio::sync::mpsc;

use crate::log::{LoadedStream, Position, Revision, SNAPSHOT_FORMAT, Snapshot, StreamKey, restore};
use crate::money::named;
use crate::postgres::Database;
use crate::projection::READ_MODEL_PROJECTOR;
use crate::verify::proof::{Finding, at};
use crate::verify::{EventRow, SnapshotRow, StreamId, VerifyError, VerifyProgress, WalletRow};
use crate::wallet::{Wallet, WalletEvent, WalletId};

/// Streams in one page, and events in one page. About three pages are in memory at a time.
const STREAMS_PAGE: i64 = 1_000;
const EVENTS_PAGE: i64 = 4_000;

/// Up to which positions of the log the pass compares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The streams that began up to here are looked at.
    pub head: Position,
    /// The read model must have come this far; it may be further.
    pub read_model: Position,
    /// Balances are summed as of here.
    pub ledger: Position,
}

/// A stream with what is kept of it elsewhere.
struct Stream {
    id: StreamId,
    name: String,
    row: Option<WalletRow>,
    snapshot: Option<SnapshotRow>,
    /// Revisions that were discarded for the read model.
    discarded: HashSet<Revision>,
}

/// What is read, in this order: streams, then their events, then further streams.
enum Page {
    Streams(Vec<Stream>),
    Events(Vec<EventRow>),
}

/// What the second pass has found.
pub(super) struct Histories {
    /// Revisions without a gap, and events that follow from each other.
    pub histories: Finding,
    /// The read model's rows.
    pub read_model: Finding,
    /// The snapshots.
    pub snapshots: Finding,
    /// How many wallets there are.
    pub wallets: u64,
    /// How many snapshots were compared.
    pub snapshots_compared: u64,
    /// What all wallets hold as of [`Bounds::ledger`], in minor units by currency.
    pub balances: BTreeMap<&'static str, i128>,
    bounds: Bounds,
}

/// One stream on its way.
struct Fold {
    stream: Stream,
    wallet: Option<Wallet>,
    last_position: Position,
    /// Nothing can be said of a state after a contradiction.
    is_broken: bool,
    /// The wallet's version as of [`Bounds::read_model`].
    version_due: Option<Revision>,
    /// Its balance as of [`Bounds::ledger`].
    balance: Option<(&'static str, i64)>,
    row_was_met: bool,
    /// How the row differs from the state at its own version.
    row_difference: Option<(String, String)>,
    snapshot_was_met: bool,
}

impl Histories {
    /// Ready to begin.
    pub fn new(bounds: Bounds) -> Self {
        Histories {
            histories: Finding::new("histories"),
            read_model: Finding::new("read model"),
            snapshots: Finding::new("snapshots"),
            wallets: 0,
            snapshots_compared: 0,
            balances: BTreeMap::new(),
            bounds,
        }
    }

    /// Reads all streams.
    pub async fn scan(
        &mut self,
        database: &Database,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<(), VerifyError> {
        let (sender, mut pages) = mpsc::channel(1);
        // Its end is the channel's end; it gives up when nobody takes its pages any more.
        let loader = tokio::spawn(load(database.clone(), self.bounds.head, sender));
        let mut waiting: VecDeque<Stream> = VecDeque::new();
        let mut current: Option<Fold> = None;
        let (mut done, total) = (0, self.bounds.head as u64);
        while let Some(page) = pages.recv().await {
            match page? {
                Page::Streams(streams) => waiting.extend(streams),
                Page::Events(events) => {
                    done += events.len() as u64;
                    for event in events {
                        self.event(event, &mut current, &mut waiting);
                    }
                }
            }
            // Under traffic there may by now be more than there were.
            progress(VerifyProgress { stage: "histories, read model", done: done.min(total), total });
        }
        loader.await.map_err(|error| VerifyError::Refused(format!("reading the histories failed: {error}")))?;
        self.finish(current.take());
        for stream in waiting {
            self.finish(Some(Fold::new(stream)));
        }
        Ok(())
    }

    fn event(&mut self, event: EventRow, current: &mut Option<Fold>, waiting: &mut VecDeque<Stream>) {
        if current.as_ref().is_none_or(|fold| fold.stream.id != event.stream_id) {
            self.finish(current.take());
            while let Some(stream) = waiting.pop_front_if(|stream| stream.id <= event.stream_id) {
                let fold = Fold::new(stream);
                if fold.stream.id == event.stream_id {
                    *current = Some(fold);
                } else {
                    self.finish(Some(fold));
                }
            }
        }
        match current {
            Some(fold) => self.fold(fold, event),
            None => {
                let place = format!("position {}", event.position);
                self.histories.differs(place, "a stream that has a name", format!("stream {}", event.stream_id));
            }
        }
    }

    fn fold(&mut self, fold: &mut Fold, row: EventRow) {
        if row.position <= self.bounds.read_model {
            fold.version_due = Some(row.revision);
        }
        if fold.is_broken {
            return;
        }
        if let Err((expected, found)) = fold.follow(&row) {
            fold.is_broken = true;
            self.histories.differs(at(&fold.stream.name, row.position), expected, found);
            return;
        }
        let Some(wallet) = &fold.wallet else { return };
        if row.position <= self.bounds.ledger {
            fold.balance = Some((wallet.currency.code(), wallet.balance.minor()));
        }
        if let Some(row) = fold.stream.row.as_ref().filter(|row| row.version == wallet.version) {
            fold.row_was_met = true;
            fold.row_difference = row_difference(row, wallet, fold.last_position);
        }
        if let Some(snapshot) = fold.stream.snapshot.as_ref().filter(|snapshot| snapshot.revision == wallet.version) {
            fold.snapshot_was_met = true;
            self.snapshots_compared += 1;
            if let Some((expected, found)) = snapshot_difference(snapshot, wallet) {
                let place = format!("{}, revision {}", at(&wallet.id, row.position), snapshot.revision);
                self.snapshots.differs(place, expected, found);
            }
        }
    }

    /// A stream is through: what was to be met on its way and was not?
    fn finish(&mut self, fold: Option<Fold>) {
        let Some(fold) = fold else { return };
        let Stream { id, name, row, snapshot, discarded } = &fold.stream;
        self.wallets += 1;
        if fold.last_position == 0 && !fold.is_broken {
            self.histories.differs(at(name, *id), "the wallet's first event", "no events");
        }
        if let Some((currency, balance)) = fold.balance {
            *self.balances.entry(currency).or_default() += i128::from(balance);
        }
        let last = fold.wallet.as_ref().map_or(-1, |wallet| wallet.version);
        match (row, fold.version_due) {
            // A wallet whose creation was discarded never comes to the read model.
            (None, Some(_)) if discarded.contains(&0) => {}
            (None, Some(_)) => self.read_model.differs(at(name, *id), "a row", "none"),
            // A row stays where it was until the next event that was not discarded.
            (Some(row), Some(due)) if (row.version + 1..=due).any(|revision| !discarded.contains(&revision)) => {
                let expected = format!("version {due} or later");
                self.read_model.differs(at(name, row.position), expected, format!("version {}", row.version));
            }
            (Some(row), _) if !fold.row_was_met && !fold.is_broken => {
                let expected = format!("version {last} at most, the log's last");
                self.read_model.differs(at(name, row.position), expected, format!("version {}", row.version));
            }
            (Some(row), _) => {
                if let Some((expected, found)) = &fold.row_difference {
                    self.read_model.differs(at(name, row.position), expected, found);
                }
            }
            (None, None) => {}
        }
        if let Some(snapshot) = snapshot
            && !fold.snapshot_was_met
            && !fold.is_broken
        {
            let expected = format!("revision {last} at most, the log's last");
            let found = format!("a snapshot at revision {}", snapshot.revision);
            self.snapshots.differs(format!("wallet {name}"), expected, found);
        }
    }
}

impl Fold {
    fn new(stream: Stream) -> Self {
        Fold {
            stream,
            wallet: None,
            last_position: 0,
            is_broken: false,
            version_due: None,
            balance: None,
            row_was_met: false,
            row_difference: None,
            snapshot_was_met: false,
        }
    }

    /// Folds the next event in.
    fn follow(&mut self, row: &EventRow) -> Result<(), (String, String)> {
        let revision = self.wallet.as_ref().map_or(0, |wallet| wallet.version + 1);
        if row.revision != revision {
            return Err((format!("revision {revision}"), format!("revision {}", row.revision)));
        }
        if self.wallet.is_none() && row.position != self.stream.id {
            return Err((format!("a stream of number {}", row.position), format!("number {}", self.stream.id)));
        }
        if row.position <= self.last_position {
            let expected = format!("a position after revision {}'s {}", revision - 1, self.last_position);
            return Err((expected, format!("position {}", row.position)));
        }
        let version = u32::try_from(row.event_version).unwrap_or(u32::MAX);
        let event = WalletEvent::from_payload(&row.event_type, version, &row.payload)
            .map_err(|error| ("an event that can be read".to_owned(), error.to_string()))?;
        let contradiction = |corrupt: crate::wallet::Corrupt| {
            let expected = format!("an event that follows revision {}", revision - 1);
            (expected, format!("revision {}: {}", corrupt.revision, corrupt.reason))
        };
        match &mut self.wallet {
            Some(wallet) => wallet.apply(&event, row.recorded_at).map_err(contradiction)?,
            None => {
                let id = WalletId::new(self.stream.name.as_str())
                    .map_err(|error| ("a wallet's name".to_owned(), error.to_string()))?;
                self.wallet = Some(Wallet::begin(id, &event, row.recorded_at).map_err(contradiction)?);
            }
        }
        self.last_position = row.position;
        Ok(())
    }
}

/// How a row of the read model is not the wallet's state at its version.
fn row_difference(row: &WalletRow, wallet: &Wallet, position: Position) -> Option<(String, String)> {
    let code = wallet.currency.code();
    if row.balance != wallet.balance.minor() {
        return differ("balance", named(wallet.balance.minor(), code), named(row.balance, code));
    }
    if row.currency != code {
        return differ("currency", code, &row.currency);
    }
    if row.owner_id != wallet.owner_id.as_str() {
        return differ("owner", &wallet.owner_id, &row.owner_id);
    }
    if row.status != wallet.status.as_str() {
        return differ("status", wallet.status.as_str(), &row.status);
    }
    if row.position != position {
        return differ("position", position, row.position);
    }
    if (row.created_at, row.updated_at) != (wallet.created_at, wallet.updated_at) {
        return differ("updated", wallet.updated_at, row.updated_at);
    }
    None
}

/// How a snapshot is not the wallet's state at its revision. One of another encoding is no snapshot to anybody.
fn snapshot_difference(snapshot: &SnapshotRow, wallet: &Wallet) -> Option<(String, String)> {
    if snapshot.format != SNAPSHOT_FORMAT {
        return None;
    }
    let stream_key = StreamKey(snapshot.stream_id);
    let kept =
        Snapshot { stream_key, revision: snapshot.revision, format: snapshot.format, state: snapshot.state.clone() };
    let loaded = LoadedStream { stream: wallet.id.clone(), stream_key, snapshot: Some(kept), tail: Vec::new() };
    match restore(&loaded) {
        Ok(kept) if kept == *wallet => None,
        Ok(kept) => differ("state", state_text(wallet), state_text(&kept)),
        Err(error) => differ("state", state_text(wallet), error),
    }
}

fn state_text(wallet: &Wallet) -> String {
    let balance = named(wallet.balance.minor(), wallet.currency.code());
    format!("{balance} of {}, updated {}", wallet.owner_id, wallet.updated_at)
}

fn differ(what: &str, expected: impl Display, found: impl Display) -> Option<(String, String)> {
    Some((format!("{what} {expected}"), format!("{what} {found}")))
}

async fn load(database: Database, head: Position, pages: mpsc::Sender<Result<Page, VerifyError>>) {
    if let Err(error) = load_all(&database, head, &pages).await {
        // Where nobody listens any more nobody wants to know.
        let _ = pages.send(Err(error)).await;
    }
}

async fn load_all(
    database: &Database,
    head: Position,
    pages: &mpsc::Sender<Result<Page, VerifyError>>,
) -> Result<(), VerifyError> {
    let mut after = 0;
    loop {
        let named = database.streams_after(after, head, STREAMS_PAGE).await?;
        // The last page reaches to the head, so that events of streams without a name are met too.
        let last = if named.len() < STREAMS_PAGE as usize { head } else { named.last().map_or(head, |(id, _)| *id) };
        let streams = with_rows(database, named).await?;
        if pages.send(Ok(Page::Streams(streams))).await.is_err() {
            return Ok(());
        }
        // Read after the rows: what the rows know of is in the log up to here. And it ends, whatever traffic there is.
        let reach = database.log_head_position().await?;
        let mut cursor = (after, Revision::MAX);
        loop {
            let events = database.history_rows(cursor, last, reach, EVENTS_PAGE).await?;
            let Some(newest) = events.last() else { break };
            cursor = (newest.stream_id, newest.revision);
            let is_last = events.len() < EVENTS_PAGE as usize;
            if pages.send(Ok(Page::Events(events))).await.is_err() {
                return Ok(());
            }
            if is_last {
                break;
            }
        }
        if last >= head {
            return Ok(());
        }
        after = last;
    }
}

async fn with_rows(database: &Database, named: Vec<(StreamId, String)>) -> Result<Vec<Stream>, VerifyError> {
    let ids: Vec<StreamId> = named.iter().map(|(id, _)| *id).collect();
    let names: Vec<&str> = named.iter().map(|(_, name)| name.as_str()).collect();
    let (rows, snapshots) = tokio::try_join!(database.wallet_rows(&names), database.snapshot_rows(&ids))?;
    // After the rows: what they lack because it was discarded meanwhile is known here.
    let mut discarded: HashMap<String, HashSet<Revision>> = HashMap::new();
    for (wallet, revision) in database.discarded_revisions(READ_MODEL_PROJECTOR, &names).await? {
        discarded.entry(wallet).or_default().insert(revision);
    }
    let mut rows: HashMap<String, WalletRow> = rows.into_iter().map(|row| (row.wallet_id.clone(), row)).collect();
    let mut snapshots: HashMap<StreamId, SnapshotRow> =
        snapshots.into_iter().map(|snapshot| (snapshot.stream_id, snapshot)).collect();
    let stream = |(id, name): (StreamId, String)| {
        let (row, snapshot) = (rows.remove(&name), snapshots.remove(&id));
        let discarded = discarded.remove(&name).unwrap_or_default();
        Stream { id, name, row, snapshot, discarded }
    };
    Ok(named.into_iter().map(stream).collect())
}
