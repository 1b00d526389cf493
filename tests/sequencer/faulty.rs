//! A log with faults on order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;
use wallex::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, RecordedEvent,
    Revision, Snapshot,
};
use wallex::wallet::WalletId;

/// A log that does what it is told before it passes a call on.
#[derive(Clone)]
pub struct FaultyLog<L> {
    pub log: L,
    /// What the next appends meet with, in order; nothing once it is empty.
    faults: Arc<Mutex<Vec<Fault>>>,
    /// While closed (no permits), appends wait.
    pub gate: Arc<Semaphore>,
    pub appends: Arc<AtomicUsize>,
    pub loads: Arc<AtomicUsize>,
    /// How many of the next reads find the log away.
    pub reads_away: Arc<AtomicUsize>,
    /// The call that hangs the next time.
    pub hangs: Arc<Mutex<Option<&'static str>>>,
    /// What the next load answers with instead of what is there now.
    pub next_load: Arc<Mutex<Option<Vec<LoadedStream>>>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    AwayBeforeWriting,
    AwayAfterWriting,
    Refused,
}

impl<L: EventLog> FaultyLog<L> {
    pub fn new(log: L) -> Self {
        FaultyLog {
            log,
            faults: Arc::default(),
            gate: Arc::new(Semaphore::new(1)),
            appends: Arc::default(),
            loads: Arc::default(),
            reads_away: Arc::default(),
            hangs: Arc::default(),
            next_load: Arc::default(),
        }
    }

    async fn passes(&self, call: &str) {
        if self.hangs.lock().expect("no panic").take_if(|hangs| *hangs == call).is_some() {
            std::future::pending::<()>().await;
        }
    }

    pub fn meets(&self, faults: &[Fault]) {
        self.faults.lock().expect("no panic").extend(faults.iter().rev());
    }
}

impl<L: EventLog> EventLog for FaultyLog<L> {
    fn atomicity(&self) -> Atomicity {
        self.log.atomicity()
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        self.passes("append").await;
        let _open = self.gate.acquire().await.expect("an open gate");
        self.appends.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.lock().expect("no panic").pop();
        match fault {
            Some(Fault::AwayBeforeWriting) => Err(LogError::Away("cut before".to_owned())),
            Some(Fault::AwayAfterWriting) => {
                self.log.append(batch).await?;
                Err(LogError::Away("cut after".to_owned()))
            }
            Some(Fault::Refused) => Err(LogError::Refused("not to you".to_owned())),
            None => self.log.append(batch).await,
        }
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        self.passes("lock_head").await;
        self.log.lock_head().await
    }

    async fn head(&self) -> Result<Position, LogError> {
        self.passes("head").await;
        self.log.head().await
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.passes("read").await;
        let away = self.reads_away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match away {
            Ok(_) => Err(LogError::Away("cut while reading".to_owned())),
            Err(_) => self.log.read(after, limit).await,
        }
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        self.log.read_stream(stream, from, limit).await
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.log.read_stream_end(stream, limit).await
    }

    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        self.passes("load").await;
        self.loads.fetch_add(1, Ordering::SeqCst);
        if let Some(earlier) = self.next_load.lock().expect("no panic").take() {
            return Ok(earlier);
        }
        self.log.load(streams, snapshot_format).await
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        self.passes("find_keys").await;
        self.log.find_keys(keys).await
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        self.log.save_snapshots(snapshots).await
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        self.log.forget_keys(before, limit).await
    }
}
