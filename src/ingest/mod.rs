//! The ingest: copies the log of an event store of its own (KurrentDB) into the one in PostgreSQL, in order. From there relay,
//! outbox and projections are what they are without it.
//!
//! It reads the whole log page by page from the last place that it stored, and writes each page, the keys and transfers in it and
//! the place that it reaches in one transaction. So a page that is read twice, after a crash or because the store delivered it
//! twice, changes nothing: the place does not fit any more, and events that the copy has are passed over. An event whose
//! predecessor the copy does not have stops it, loudly: nothing is ever left out.
//!
//! One ingest copies, held by a lock of its database session; others stand by. One that was halted and has lost the lock has
//! lost the session with it, so it cannot write.
//!
//! What the earlier system left comes over in our terms ([`upcast`](crate::wallet::upcast)), each event by the one before it, which
//! the copy has. What cannot be made exact comes over as it is, under version 0: no projection reads that, so the wallet is parked,
//! and why is said there.
//!
//! It is woken by whoever appends in this process ([`Bell`]) and looks by itself every 50 ms for what others append.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::kurrentdb::{KurrentLog, LogPlace};
use crate::lanes::{CommandMetadata, command_kind};
use crate::log::{KeyRecord, KeyScope, LogError, RecordedEvent};
use crate::postgres::{CopiedEvent, CopyError, Database, IngestSession, StorePlace, TransferLeg};
use crate::relay::Bell;
use crate::wallet::WalletEvent;

/// How many events are read and copied at once.
const PAGE: usize = 1_000;
/// How long it waits for the bell before it looks by itself.
const POLL: Duration = Duration::from_millis(50);
/// How often one that stands by asks for the lock.
const STANDBY: Duration = Duration::from_secs(1);

/// Why a stretch of copying ended. Each is tried again.
#[derive(Debug, Error)]
enum Interruption {
    #[error("the event store: {0}")]
    Store(#[from] LogError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// Copies the store's log.
pub struct Ingest {
    log: KurrentLog,
    database: Database,
    bell: Bell,
    on_copied: Box<dyn Fn() + Send + Sync>,
}

impl Ingest {
    /// An ingest; [`Ingest::run`] starts it. The bell is rung by whoever appends to the store; `on_copied` is called after each
    /// page that had something new.
    pub fn new(log: KurrentLog, database: Database, bell: Bell, on_copied: impl Fn() + Send + Sync + 'static) -> Self {
        Ingest { log, database, bell, on_copied: Box::new(on_copied) }
    }

    /// Runs until stopped. Whatever is away meanwhile, store or database, is waited for.
    pub async fn run(self, stop: CancellationToken) {
        let mut waits = backoff();
        while !stop.is_cancelled() {
            let mut has_read = false;
            let ended = self.copy_while_ours(&stop, &mut has_read).await;
            if has_read {
                waits = backoff();
            }
            let wait = match ended {
                Ok(()) => STANDBY,
                Err(interruption) => {
                    tracing::warn!(%interruption, "the ingest was interrupted; trying again");
                    waits.next().unwrap_or(STANDBY)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Copies for as long as the lock is ours; returns at once where it is another's.
    async fn copy_while_ours(&self, stop: &CancellationToken, has_read: &mut bool) -> Result<(), Interruption> {
        let Some(mut session) = IngestSession::begin(&self.database).await? else { return Ok(()) };
        let copied = self.copy(&mut session, stop, has_read).await;
        session.end().await;
        copied
    }

    async fn copy(
        &self,
        session: &mut IngestSession,
        stop: &CancellationToken,
        has_read: &mut bool,
    ) -> Result<(), Interruption> {
        let mut place = session.checkpoint().await?;
        let mut page = self.log.scan(place.map(store_place), PAGE).await?;
        *has_read = true;
        while !stop.is_cancelled() {
            let Some(looked_to) = page.looked_to else {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = self.bell.wait(POLL) => {}
                }
                page = self.log.scan(place.map(store_place), PAGE).await?;
                continue;
            };
            let to = copied_place(looked_to)?;
            let events = page.events.into_iter().map(|(_, event)| copied_event(event)).collect();
            // The next page is read while this one is written.
            let (copied, next) = tokio::join!(session.copy(place, to, events), self.log.scan(Some(looked_to), PAGE));
            if copied? > 0 {
                (self.on_copied)();
            }
            place = Some(to);
            page = next?;
        }
        Ok(())
    }
}

fn store_place(place: StorePlace) -> LogPlace {
    LogPlace { commit: place.commit.unsigned_abs(), prepare: place.prepare.unsigned_abs() }
}

fn copied_place(place: LogPlace) -> Result<StorePlace, LogError> {
    let small = |number: u64| {
        i64::try_from(number).map_err(|_| LogError::Corrupt(format!("an event lies at {number}, which is no position")))
    };
    Ok(StorePlace { commit: small(place.commit)?, prepare: small(place.prepare)? })
}

/// The event as the copy keeps it: the key goes to the table of keys, and stays out of the metadata that everybody gets.
fn copied_event(mut event: RecordedEvent) -> CopiedEvent {
    let mut key = None;
    if let Some(metadata) = CommandMetadata::read(&event.metadata)
        && let Some(used) = &metadata.idempotency
    {
        if let (Some(command_kind), Some(fingerprint)) = (command_kind(&used.kind), used.fingerprint()) {
            let scope = KeyScope { wallet_id: event.stream.clone(), command_kind, key: used.key.as_str().into() };
            key = Some(KeyRecord { scope, fingerprint, position: 0, event_count: used.event_count });
        }
        event.metadata = CommandMetadata { idempotency: None, ..metadata }.to_bytes().to_vec();
    }
    let leg = event.decode().ok().and_then(|decoded| {
        let transfer = decoded.transfer()?.id;
        match decoded {
            WalletEvent::WalletDebited { .. } => Some((transfer, TransferLeg::Paying)),
            WalletEvent::WalletCredited { .. } => Some((transfer, TransferLeg::Receiving)),
            WalletEvent::WalletCreated { .. } => None,
        }
    });
    CopiedEvent { event, key, leg }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}
