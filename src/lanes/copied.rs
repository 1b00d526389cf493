//! A store of single streams read together with its copy: what the copy has need not be read from the store again.

use chrono::{DateTime, Utc};

use crate::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, PostgresLog,
    RecordedEvent, Revision, Snapshot, StreamKey,
};
use crate::wallet::WalletId;

/// How many events of a stream's tail are read at once.
const TAIL_PAGE: usize = 1_000;

/// The store, with the copy for what lies further back: whole streams and their ends are made of both, so that no long history, and
/// none that the earlier system left, is read from the store again and again. Everything else is the store's own.
#[derive(Clone, Debug)]
pub struct CopiedLog<L> {
    log: L,
    copy: PostgresLog,
}

impl<L: EventLog> CopiedLog<L> {
    /// The two as one.
    pub fn new(log: L, copy: PostgresLog) -> Self {
        CopiedLog { log, copy }
    }

    /// The store without the copy.
    pub fn store(&self) -> &L {
        &self.log
    }
}

impl<L: EventLog> EventLog for CopiedLog<L> {
    fn atomicity(&self) -> Atomicity {
        self.log.atomicity()
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        self.log.append(batch).await
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        self.log.lock_head().await
    }

    async fn head(&self) -> Result<Position, LogError> {
        self.log.head().await
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.log.read(after, limit).await
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        self.log.read_stream(stream, from, limit).await
    }

    /// From the copy, and the store's events after it; so it is never older than the store. The positions of what comes from the
    /// copy are the copy's.
    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        let mut newest = self.copy.read_stream_end(stream, limit).await?;
        let Some(copied) = newest.last().map(|last| last.revision) else {
            return self.log.read_stream_end(stream, limit).await;
        };
        let after = self.log.read_stream(stream, copied + 1, limit).await?;
        if after.len() == limit {
            // The copy is far behind: there may be more.
            return self.log.read_stream_end(stream, limit).await;
        }
        newest.extend(after);
        Ok(newest.split_off(newest.len().saturating_sub(limit)))
    }

    /// From the copy, and the store's events after it; so it is never older than the store. The positions of what comes from
    /// the copy are the copy's.
    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        let mut copied = self.copy.load(streams, snapshot_format).await?;
        let mut loaded = Vec::with_capacity(streams.len());
        for stream in streams {
            let place = copied.iter().position(|copied| copied.stream == *stream);
            let mut found = place.map(|place| copied.swap_remove(place));
            loop {
                let last = found.as_ref().and_then(|found: &LoadedStream| {
                    let snapshot = found.snapshot.as_ref().map(|snapshot| snapshot.revision);
                    found.tail.last().map(|last| last.revision).or(snapshot)
                });
                let page = self.log.read_stream(stream, last.map_or(0, |last| last + 1), TAIL_PAGE).await?;
                let is_last = page.len() < TAIL_PAGE;
                match (&mut found, page.first()) {
                    (Some(found), _) => found.tail.extend(page),
                    (None, Some(first)) => {
                        let stream_key = StreamKey(first.position);
                        found = Some(LoadedStream { stream: stream.clone(), stream_key, snapshot: None, tail: page });
                    }
                    (None, None) => {}
                }
                if is_last {
                    break;
                }
            }
            loaded.extend(found);
        }
        Ok(loaded)
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        self.log.find_keys(keys).await
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        self.log.save_snapshots(snapshots).await
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        self.log.forget_keys(before, limit).await
    }
}
