//! The port to a log, kept by KurrentDB as far as it can.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use eventstore::{
    AppendToStreamOptions, Client, Error, EventData, ExpectedRevision, ReadAllOptions, ReadStream, ReadStreamOptions,
    RecordedEvent as Stored, StreamPosition,
};

use crate::kurrentdb::connection::{Connection, DENIED, SILENCE, Trouble, last_of_all};
use crate::kurrentdb::earlier::Folded;
use crate::kurrentdb::{KurrentConfig, LogPlace, event};
use crate::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, RecordedEvent,
    Revision, Snapshot, StreamKey,
};
use crate::recently::Recently;
use crate::wallet::WalletId;

/// How long an append or a read may go without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an append is sent again at once because the call that it went through has ended: most often for a conflict of
/// another append.
const CALLS_MAX: u32 = 8;
/// For how long a stream at which an append was refused is appended to by calls of its own.
const CONTENDED_FOR: Duration = Duration::from_millis(250);
/// How many such streams are known at once.
const CONTENDED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
/// How many events of a stream are read in one call.
pub(super) const STREAM_PAGE: usize = 1_000;

/// The log in KurrentDB. Clones share a connection; nothing is sent before the first call.
#[derive(Clone)]
pub struct KurrentLog {
    connection: Arc<Connection>,
    pub(super) stream_prefix: Arc<str>,
    masked: Arc<str>,
    pub(super) folded: Folded,
    /// Why it is not to be used at present, if it is not.
    distrusted: Arc<Mutex<Option<Arc<str>>>>,
    /// Streams to which others append as well.
    contended: Arc<Recently<String>>,
}

impl std::fmt::Debug for KurrentLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "KurrentLog({})", self.stream_prefix)
    }
}

impl KurrentLog {
    /// The log at this address.
    pub fn new(config: KurrentConfig) -> Self {
        let KurrentConfig { settings, stream_prefix, masked, .. } = config;
        let connection = Arc::new(Connection::new(settings));
        KurrentLog {
            connection,
            stream_prefix,
            masked,
            folded: Folded::default(),
            distrusted: Arc::default(),
            contended: Arc::new(Recently::new(CONTENDED_FOR, CONTENDED_MAX)),
        }
    }

    /// Where it is, with the password masked, to show.
    pub fn masked(&self) -> &str {
        &self.masked
    }

    /// What the wallets' streams are called before the wallet's id.
    pub fn stream_prefix(&self) -> &Arc<str> {
        &self.stream_prefix
    }

    /// From now on this one and its clones count as away to whoever appends or reads a stream, for this reason; with `None` they no
    /// longer do. The log as a whole can be read all the same. Whether that is new.
    pub(crate) fn distrust(&self, reason: Option<&str>) -> bool {
        let mut distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = distrusted.as_deref() != reason;
        *distrusted = reason.map(Arc::from);
        is_new
    }

    fn check_trusted(&self) -> Result<(), LogError> {
        match &*self.distrusted.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(LogError::Away(reason.to_string())),
            None => Ok(()),
        }
    }

    /// Whether the server denies access to the user of the connection string. One that does not answer has not said so.
    pub(crate) async fn denies_access(&self) -> bool {
        let Ok(client) = self.connection.client().await else { return false };
        let read = timely(async { client.it.read_all(&last_of_all()).await?.next().await });
        matches!(read.await, Err(Error::AccessDenied))
    }

    pub(super) fn stream_name(&self, id: &WalletId) -> String {
        format!("{}{id}", self.stream_prefix)
    }

    /// Reads one page and hands out its events one by one. Whether there is such a stream.
    pub(super) async fn read_page(
        &self,
        page: &Page,
        mut found: impl FnMut(&Stored) -> Result<(), LogError> + Send,
    ) -> Result<bool, LogError> {
        let client = self.connection.client().await?;
        let mut read = async || {
            let mut events = timely(page.begin(&client.it)).await?;
            while let Some(resolved) = timely(events.next()).await? {
                if let Err(error) = found(resolved.get_original_event()) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        };
        // The outer error is the server's, the inner one the finder's.
        let failure: Error = match read().await {
            Ok(read) => {
                self.connection.succeeded();
                return read.map(|()| true);
            }
            Err(failure) => failure,
        };
        match Trouble::of(&failure) {
            Trouble::NoStream => Ok(false),
            Trouble::Refused(reason) => Err(LogError::Refused(reason)),
            Trouble::Denied => Err(LogError::Away(DENIED.to_owned())),
            Trouble::CallEnded | Trouble::Conflict => Err(LogError::Corrupt(format!("a read was answered: {failure}"))),
            Trouble::Moved(reason) => {
                self.connection.moved(client.number).await;
                Err(LogError::Away(reason))
            }
            Trouble::Silent(reason) => {
                self.connection.fell_silent(client.number).await;
                Err(LogError::Away(reason))
            }
            Trouble::Away(reason) => {
                self.connection.failed(client.number).await;
                Err(LogError::Away(reason))
            }
        }
    }

    async fn read_stream_page(
        &self,
        stream: &WalletId,
        options: ReadStreamOptions,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let mut events = Vec::new();
        self.read_page(&self.page_of(stream, options), |stored| {
            events.push(event::from_stored(stored, stream.clone())?);
            Ok(())
        })
        .await?;
        Ok(events)
    }

    pub(super) fn page_of(&self, stream: &WalletId, options: ReadStreamOptions) -> Page {
        Page::Stream(self.stream_name(stream), options.requires_leader(true))
    }

    /// Sends an append: the number of the client or call that it went through, and the commit position that it was answered with.
    ///
    /// All appends share one long call, but for those to a stream where one was refused a moment ago.
    async fn send(
        &self,
        name: &str,
        expected: ExpectedRevision,
        events: Vec<EventData>,
    ) -> Result<(u64, eventstore::Result<Option<u64>>), LogError> {
        if self.contended.has_seen(name) {
            let client = self.connection.client().await?;
            let options = AppendToStreamOptions::default().expected_revision(expected).requires_leader(true);
            let written = timely(client.it.append_to_stream(name, &options, events)).await;
            return Ok((client.number, written.map(|written| Some(written.position.commit))));
        }
        let appends = self.connection.appends().await?;
        let written = timely(appends.it.append_to_stream(name, expected, events)).await;
        Ok((appends.number, written.map(|written| written.current_position().map(|at| at.commit))))
    }

    /// Up to `limit` events of a stream from a revision on, as they are stored.
    pub(super) async fn stored(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let mut events: Vec<RecordedEvent> = Vec::new();
        while events.len() < limit {
            let next = events.last().map_or(from, |last| last.revision + 1);
            let revision = u64::try_from(next).unwrap_or(0);
            let options = ReadStreamOptions::default().forwards().position(StreamPosition::Position(revision));
            let page = self.read_stream_page(stream, options.max_count(STREAM_PAGE.min(limit - events.len()))).await?;
            if page.is_empty() {
                break;
            }
            events.extend(page);
        }
        Ok(events)
    }
}

/// What is read in one call.
pub(super) enum Page {
    All(ReadAllOptions),
    Stream(String, ReadStreamOptions),
}

impl Page {
    async fn begin(&self, client: &Client) -> eventstore::Result<ReadStream> {
        match self {
            Page::All(options) => client.read_all(options).await,
            Page::Stream(name, options) => client.read_stream(name.as_str(), options).await,
        }
    }
}

async fn timely<T>(call: impl Future<Output = eventstore::Result<T>>) -> eventstore::Result<T> {
    let silent = |_| Error::ServerError(format!("{SILENCE} {ANSWER_TIMEOUT:?}"));
    tokio::time::timeout(ANSWER_TIMEOUT, call).await.map_err(silent)?
}

/// The stream that a batch is for, if it is one that this store can append.
fn only_stream(batch: &Batch) -> Result<(&WalletId, ExpectedRevision), LogError> {
    if batch.expected_head.is_some() {
        return Err(LogError::Unsupported("append on the condition of the whole log's head"));
    }
    if !batch.keys.is_empty() {
        return Err(LogError::Unsupported("keep idempotency keys beside events; they travel in the metadata"));
    }
    let first = batch.events.first().ok_or(LogError::Unsupported("append nothing"))?;
    if batch.events.iter().any(|event| event.stream != first.stream) {
        return Err(LogError::Unsupported("append to several streams at once"));
    }
    let expected = match u64::try_from(first.revision) {
        Ok(0) | Err(_) => ExpectedRevision::NoStream,
        Ok(revision) => ExpectedRevision::Exact(revision - 1),
    };
    Ok((&first.stream, expected))
}

impl EventLog for KurrentLog {
    fn atomicity(&self) -> Atomicity {
        Atomicity::Stream
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        self.check_trusted()?;
        let (stream, expected) = only_stream(batch)?;
        if batch.first_places().is_none() {
            return Ok(Appended::Conflict);
        }
        let to_data = |new| event::to_event_data(new, batch.recorded_at);
        let events: Vec<_> = batch.events.iter().map(to_data).collect::<Result<_, _>>()?;
        let name = self.stream_name(stream);
        let mut calls = 0;
        loop {
            let (number, written) = self.send(&name, expected, events.clone()).await?;
            let error = match written {
                Ok(commit) => {
                    self.connection.succeeded();
                    let position = commit.and_then(|commit| Position::try_from(commit).ok());
                    return position.map(Appended::At).ok_or_else(|| {
                        LogError::Corrupt(format!("an append to {name} was answered without a position"))
                    });
                }
                Err(error) => error,
            };
            calls += 1;
            match Trouble::of(&error) {
                Trouble::Conflict => {
                    self.contended.saw(name);
                    self.connection.call_ended(number).await;
                    return Ok(Appended::Conflict);
                }
                Trouble::CallEnded if calls < CALLS_MAX => self.connection.call_ended(number).await,
                Trouble::Refused(reason) => {
                    self.connection.call_ended(number).await;
                    return Err(LogError::Refused(reason));
                }
                Trouble::Denied => {
                    self.connection.call_ended(number).await;
                    return Err(LogError::Away(DENIED.to_owned()));
                }
                Trouble::CallEnded | Trouble::NoStream => {
                    self.connection.failed(number).await;
                    return Err(LogError::Away(error.to_string()));
                }
                Trouble::Moved(_) if calls < CALLS_MAX => self.connection.moved(number).await,
                Trouble::Silent(reason) => {
                    self.connection.fell_silent(number).await;
                    return Err(LogError::Away(reason));
                }
                Trouble::Moved(reason) | Trouble::Away(reason) => {
                    self.connection.failed(number).await;
                    return Err(LogError::Away(reason));
                }
            }
        }
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        Err(LogError::Unsupported("lock the log's head"))
    }

    /// The last position of anybody's event.
    async fn head(&self) -> Result<Position, LogError> {
        let mut commit = 0;
        self.read_page(&Page::All(last_of_all()), |stored| {
            commit = stored.position.commit;
            Ok(())
        })
        .await?;
        Position::try_from(commit).map_err(|_| LogError::Corrupt("the log ends at an impossible place".to_owned()))
    }

    /// Positions here have gaps: they are the server's.
    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        let commit = u64::try_from(after).unwrap_or(0);
        let mut place = (commit > 0).then_some(LogPlace { commit, prepare: commit });
        let mut events = Vec::new();
        while events.len() < limit {
            let page = self.scan(place, limit).await?;
            let Some(looked_to) = page.looked_to else { break };
            place = Some(looked_to.place);
            events.extend(page.events.into_iter().map(|(_, event)| event));
        }
        events.truncate(limit);
        self.in_our_terms(&mut events).await?;
        Ok(events)
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        self.check_trusted()?;
        let mut events = self.stored(stream, from, limit).await?;
        self.stretch_in_our_terms(&mut events).await?;
        Ok(events)
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.check_trusted()?;
        let options = ReadStreamOptions::default().backwards().position(StreamPosition::End).max_count(limit);
        let mut events = self.read_stream_page(stream, options).await?;
        events.reverse();
        self.in_our_terms(&mut events).await?;
        Ok(events)
    }

    /// Whole streams: this store keeps no snapshots.
    async fn load(&self, streams: &[WalletId], _snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        let mut loaded = Vec::with_capacity(streams.len());
        for stream in streams {
            let tail = self.read_stream(stream, 0, usize::MAX).await?;
            if let Some(first) = tail.first() {
                let stream_key = StreamKey(first.position);
                loaded.push(LoadedStream { stream: stream.clone(), stream_key, snapshot: None, tail });
            }
        }
        Ok(loaded)
    }

    async fn find_keys(&self, _keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        Err(LogError::Unsupported("look up idempotency keys"))
    }

    async fn save_snapshots(&self, _snapshots: &[Snapshot]) -> Result<(), LogError> {
        Err(LogError::Unsupported("keep snapshots"))
    }

    async fn forget_keys(&self, _before: DateTime<Utc>, _limit: usize) -> Result<u64, LogError> {
        Err(LogError::Unsupported("forget idempotency keys"))
    }
}
