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
//! A store that is not the one that the copy was made of (`recognition`) is not copied, and commands are refused until the right
//! one answers again; whoever stands by looks for that too. Streams that are called like a wallet's, and whose rest is no wallet id,
//! stay where they are: nobody can name such a wallet. They are counted in the same transaction, for `lag` to tell.
//!
//! Wallets with long histories get snapshots (`snapshots`).
//!
//! It is woken by whoever appends in this process ([`Bell`]) and looks by itself every 50 ms for what others append.

mod recognition;
mod snapshots;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::ingest::recognition::{log_place, store_place};
use crate::ingest::snapshots::Snapshots;
use crate::kurrentdb::{KurrentLog, Mark, Scanned};
use crate::lanes::CommandMetadata;
use crate::log::{KeyRecord, KeyScope, LogError, RecordedEvent};
use crate::postgres::{CopiedEvent, CopyError, Database, IngestSession, PageEnd, Reached, StorePlace, TransferLeg};
use crate::relay::Bell;
use crate::wallet::{Command, WalletEvent};

pub use recognition::AnotherStore;
pub(crate) use recognition::{Recognised, recognise};

/// How many events are read and copied at once.
const PAGE: usize = 1_000;
/// How long it waits for the bell before it looks by itself.
const POLL: Duration = Duration::from_millis(50);
/// How often one that stands by asks for the lock, and whether a store that is another one is the right one again.
const STANDBY: Duration = Duration::from_secs(1);

/// Why a stretch of copying ended. Each is tried again.
#[derive(Debug, Error)]
enum Interruption {
    #[error("the event store: {0}")]
    Store(#[from] LogError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Another(#[from] AnotherStore),
    #[error("the event store does not show the event any more that was read last")]
    OutOfPlace,
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
        let mut snapshots = Snapshots::new(self.database.clone());
        let mut waits = backoff();
        while !stop.is_cancelled() {
            let mut has_read = false;
            let ended = self.copy_while_ours(&stop, &mut snapshots, &mut has_read).await;
            if has_read {
                waits = backoff();
            }
            let wait = match ended {
                Ok(()) => STANDBY,
                Err(Interruption::Another(another)) => {
                    if self.log.distrust(Some(&another.to_string())) {
                        tracing::error!("{another}");
                    }
                    STANDBY
                }
                Err(interruption) => {
                    tracing::warn!(%interruption, "the ingest was interrupted; trying again");
                    waits.next().unwrap_or(STANDBY)
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        snapshots.finish().await;
    }

    /// Copies for as long as the lock is ours; returns soon where it is another's.
    async fn copy_while_ours(
        &self,
        stop: &CancellationToken,
        snapshots: &mut Snapshots,
        has_read: &mut bool,
    ) -> Result<(), Interruption> {
        let Some(mut session) = IngestSession::begin(&self.database).await? else {
            let reached = self.database.reached().await?;
            return self.recognised(reached.as_ref()).await.map(|_| ());
        };
        let copied = self.copy(&mut session, stop, snapshots, has_read).await;
        session.end().await;
        copied
    }

    async fn copy(
        &self,
        session: &mut IngestSession,
        stop: &CancellationToken,
        snapshots: &mut Snapshots,
        has_read: &mut bool,
    ) -> Result<(), Interruption> {
        let reached = session.reached().await?;
        let mut mark = self.recognised(reached.as_ref()).await?;
        let mut place = reached.map(|reached| reached.place);
        let mut page = self.page_after(mark).await?;
        *has_read = true;
        while !stop.is_cancelled() {
            snapshots.save();
            let Some(looked_to) = page.looked_to else {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = self.bell.wait(POLL) => {}
                }
                page = self.page_after(mark).await?;
                continue;
            };
            let end = self.end_of(&page, looked_to, place)?;
            let to = end.place;
            let events: Vec<CopiedEvent> = page.events.into_iter().map(|(_, event)| copied_event(event)).collect();
            let due = Snapshots::due(&events);
            // The next page is read while this one is written.
            let (copied, next) = tokio::join!(session.copy(place, end, events), self.page_after(Some(looked_to)));
            if copied? > 0 {
                (self.on_copied)();
            }
            snapshots.note(due);
            (place, mark) = (Some(to), Some(looked_to));
            page = next?;
        }
        Ok(())
    }

    /// After which event the copy goes on in the store, if that is the one that it was made of.
    async fn recognised(&self, reached: Option<&Reached>) -> Result<Option<Mark>, Interruption> {
        match recognise(&self.log, &self.database, reached).await? {
            Recognised::Another(another) => Err(another.into()),
            Recognised::Since(mark) => {
                if self.log.distrust(None) {
                    tracing::info!("the event store is again the one that was copied");
                }
                Ok(mark)
            }
        }
    }

    /// The next page, if it begins where the last one has ended.
    async fn page_after(&self, mark: Option<Mark>) -> Result<Scanned, Interruption> {
        let page = self.log.scan(mark.map(|mark| mark.place), PAGE).await?;
        match mark {
            Some(mark) if page.at_place != Some(mark.event_id) => Err(Interruption::OutOfPlace),
            _ => Ok(page),
        }
    }

    /// How far a page reaches, with the strays in it that were not counted before.
    fn end_of(&self, page: &Scanned, looked_to: Mark, from: Option<StorePlace>) -> Result<PageEnd, LogError> {
        let counted = from.map(log_place);
        let new = page.strays.iter().filter(|(place, _)| counted.is_none_or(|counted| *place > counted));
        let strays: Vec<String> = new.map(|(_, name)| name.clone()).collect();
        if let Some(name) = strays.first() {
            let events = strays.len();
            tracing::warn!(
                stream = name,
                events,
                "called like a wallet's stream, and the rest is no wallet id; it stays where it is"
            );
        }
        Ok(PageEnd {
            place: store_place(looked_to.place)?,
            event_id: looked_to.event_id,
            stream_prefix: self.log.stream_prefix().clone(),
            strays,
        })
    }
}

/// The event as the copy keeps it: the key goes to the table of keys, and stays out of the metadata that everybody gets. PostgreSQL's
/// texts cannot hold the character U+0000, and neither callers' keys nor types of ours have it: of others, such a key is none, and in
/// such a type another character stands for it, which is no type of ours either.
fn copied_event(mut event: RecordedEvent) -> CopiedEvent {
    let mut key = None;
    if let Some(metadata) = CommandMetadata::read(&event.metadata)
        && let Some(used) = &metadata.idempotency
    {
        if let (Some(command_kind), Some(fingerprint)) = (Command::kind_of(&used.kind), used.fingerprint())
            && !used.key.contains('\0')
        {
            let scope = KeyScope { wallet_id: event.stream.clone(), command_kind, key: used.key.as_str().into() };
            key = Some(KeyRecord { scope, fingerprint, position: 0, event_count: used.event_count });
        }
        event.metadata = CommandMetadata { idempotency: None, ..metadata }.to_bytes().to_vec();
    }
    if event.event_type.contains('\0') {
        event.event_type = event.event_type.replace('\0', "\u{fffd}");
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
