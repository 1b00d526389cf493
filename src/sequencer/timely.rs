//! A log whose every answer comes in time: a call that hangs must not hold up everything.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, RecordedEvent,
    Revision, Snapshot,
};
use crate::wallet::WalletId;

/// A log that counts as away where it does not answer in time.
#[derive(Clone, Debug)]
pub(crate) struct Timely<L> {
    log: L,
    limit: Duration,
}

impl<L> Timely<L> {
    pub(crate) fn new(log: L, limit: Duration) -> Self {
        Timely { log, limit }
    }

    /// The same limit for what is asked beside the log, where the log is.
    pub(crate) async fn timely<T>(&self, call: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(LogError::Away(format!("no answer within {:?}", self.limit))),
        }
    }
}

impl<L: EventLog> EventLog for Timely<L> {
    fn atomicity(&self) -> Atomicity {
        self.log.atomicity()
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        self.timely(self.log.append(batch)).await
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        self.timely(self.log.lock_head()).await
    }

    async fn head(&self) -> Result<Position, LogError> {
        self.timely(self.log.head()).await
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.timely(self.log.read(after, limit)).await
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        self.timely(self.log.read_stream(stream, from, limit)).await
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.timely(self.log.read_stream_end(stream, limit)).await
    }

    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        self.timely(self.log.load(streams, snapshot_format)).await
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        self.timely(self.log.find_keys(keys)).await
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        self.timely(self.log.save_snapshots(snapshots)).await
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        self.timely(self.log.forget_keys(before, limit)).await
    }
}
