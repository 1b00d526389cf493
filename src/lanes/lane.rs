//! One turn of one wallet's lane: learn what the stream holds, decide what is waiting, append it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chrono::{SubsecRound, Utc};
use uuid::Uuid;

use crate::lanes::Shared;
use crate::lanes::decide::{Deciding, Verdict};
use crate::lanes::known::{COPIED_KEYS_MAX, Known, unusable};
use crate::lanes::turn::Turn;
use crate::lanes::work::{CommandWork, Work};
use crate::lease::Lease;
use crate::log::{Appended, Batch, EventLog, KeyScope, LogError, Position, RecordedEvent, SNAPSHOT_FORMAT};
use crate::sequencer::{CommandError, RETRY_AFTER, Setback, backoff, scope};
use crate::wallet::{Command, Wallet, WalletId};

/// How many events of a stream's tail are read at once.
const TAIL_PAGE: usize = 1_000;
/// How often a store may refuse an append without showing why before that counts as an outage.
const UNEXPLAINED_MAX: u32 = 1;

/// What a turn leaves behind.
pub(super) struct Ended {
    pub(super) id: WalletId,
    pub(super) known: Option<Known>,
    pub(super) lease: Option<Lease>,
}

/// Takes work on a wallet to its answers.
pub(super) async fn run<L: EventLog>(
    shared: Arc<Shared<L>>,
    id: WalletId,
    known: Option<Known>,
    turn: Turn,
    works: Vec<Work>,
) -> Ended {
    let mut lane = Lane { shared, known, id, turn, receivers: HashMap::new(), is_fresh: false, unexplained: 0 };
    // What the store refuses for good is tried again one by one: one command that can never be done shall not take others with
    // it.
    let mut groups = VecDeque::from([works]);
    while let Some(group) = groups.pop_front() {
        for (place, alone) in lane.together(group).await.into_iter().enumerate() {
            groups.insert(place, vec![alone]);
        }
    }
    Ended { id: lane.id, known: lane.known, lease: lane.turn.end() }
}

pub(super) struct Lane<L> {
    pub(super) shared: Arc<Shared<L>>,
    pub(super) id: WalletId,
    pub(super) known: Option<Known>,
    turn: Turn,
    receivers: HashMap<WalletId, Wallet>,
    /// Whether the stream's end was seen in this turn, and nothing after what is known.
    is_fresh: bool,
    unexplained: u32,
}

impl<L: EventLog> Lane<L> {
    /// Takes work to its answers together, however long the store is away; what comes back is to be tried one by one.
    async fn together(&mut self, mut works: Vec<Work>) -> Vec<Work> {
        let mut waits = backoff();
        while !works.is_empty() {
            match self.attempt(&mut works).await {
                Ok(()) => waits = backoff(),
                Err(Setback::Unknown(reason)) => {
                    tracing::error!(reason, wallet = %self.id, "the outcome of an append stays unknown");
                    self.forget();
                    fail_all(&mut works, &CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER });
                }
                Err(Setback::Away(reason)) => {
                    if self.shared.stop.is_cancelled() {
                        let error = CommandError::Unavailable { maybe_done: false, retry_after: RETRY_AFTER };
                        fail_all(&mut works, &error);
                        break;
                    }
                    tracing::warn!(reason, wallet = %self.id, "the event store or its copy is away; commands wait");
                    tokio::time::sleep(waits.next().unwrap_or(RETRY_AFTER)).await;
                    // Nothing of these is under way: whoever has given up by now is not served. A leg is due all the same.
                    works.retain(|work| match work {
                        Work::Command(command) => !command.job.reply.is_closed(),
                        Work::Leg(_) => true,
                    });
                }
                Err(Setback::Hopeless(error)) => {
                    self.forget();
                    if works.len() > 1 {
                        return works;
                    }
                    tracing::error!(%error, wallet = %self.id, "a command could not be appended");
                    fail_all(&mut works, &error);
                }
            }
        }
        Vec::new()
    }

    fn forget(&mut self) {
        (self.known, self.is_fresh) = (None, false);
    }

    /// One attempt. What is left in `works` after `Ok` is to be decided again.
    async fn attempt(&mut self, works: &mut Vec<Work>) -> Result<(), Setback> {
        if self.known.is_none() {
            self.load().await?;
        }
        if self.turn.comes(&self.id).await && self.catch_up().await? {
            self.turn.met_another(&self.id);
        }
        // After the load: the copy then knows at least what the load has left to it.
        self.look_up(works).await?;
        self.meet_receivers(works).await?;
        let known = self.known.get_or_insert_default();
        let now = Utc::now().trunc_subsecs(6);
        let mut deciding = Deciding::new(&self.id, known, &self.receivers, now);
        let verdicts: Vec<Verdict> = works
            .iter()
            .map(|work| match work {
                Work::Command(command) => deciding.command(command),
                Work::Leg(leg) => deciding.leg(leg),
            })
            .collect();
        let batch = deciding.batch;
        let mut position = 0;
        if !batch.events.is_empty() {
            match self.make_durable(&batch).await? {
                Some(at) => position = at,
                None => return Ok(()),
            }
        } else if !self.is_fresh && self.catch_up().await? {
            // Refusals and replays were decided on what holds no more.
            return Ok(());
        }
        for (work, verdict) in std::mem::take(works).into_iter().zip(verdicts) {
            self.answer(work, verdict, position).await;
        }
        Ok(())
    }

    /// What the copy has, and then the store's events after it.
    async fn load(&mut self) -> Result<(), Setback> {
        let copied = self.shared.copy.load(std::slice::from_ref(&self.id), SNAPSHOT_FORMAT).await?;
        // After the stream, so that none is missing that the stream was found to have.
        let keys = match copied.first() {
            Some(_) => self.shared.copy.timely(self.shared.database.keys_of(&self.id, COPIED_KEYS_MAX + 1)).await?,
            None => Vec::new(),
        };
        let known = Known::of_copy(copied.first(), &keys).map_err(|error| unusable(&self.id, None, error))?;
        self.known = Some(known);
        self.catch_up().await?;
        Ok(())
    }

    /// Takes in everything that the stream has after what is known; whether that was anything.
    async fn catch_up(&mut self) -> Result<bool, Setback> {
        let mut is_new = false;
        loop {
            is_new |= !self.take_in_page().await?.is_empty();
            if self.is_fresh {
                return Ok(is_new);
            }
        }
    }

    /// Takes in what the stream has next after what is known.
    async fn take_in_page(&mut self) -> Result<Vec<RecordedEvent>, Setback> {
        let known = self.known.get_or_insert_default();
        let page = self.shared.log.read_stream(&self.id, known.revision() + 1, TAIL_PAGE).await?;
        for recorded in &page {
            known.take_in(recorded).map_err(|error| unusable(&self.id, Some(recorded.revision), error))?;
        }
        self.is_fresh = page.len() < TAIL_PAGE;
        Ok(page)
    }

    /// Asks the copy for the keys and transfers of this work that it may know and nobody else.
    async fn look_up(&mut self, works: &[Work]) -> Result<(), Setback> {
        let known = self.known.get_or_insert_default();
        let mut keys: Vec<KeyScope> = Vec::new();
        let mut legs: Vec<Uuid> = Vec::new();
        for work in works {
            match work {
                Work::Command(command) => {
                    keys.extend(scope(&command.job.request).filter(|scope| known.may_miss_key(scope)));
                }
                Work::Leg(leg) => legs.extend(known.may_miss_leg(leg).then_some(leg.transfer_id)),
            }
        }
        if !keys.is_empty() {
            known.learn(&self.shared.copy.find_keys(&keys).await?, &[]);
        }
        if !legs.is_empty() {
            let received = self.shared.database.received_transfers(&legs);
            known.learn(&[], &self.shared.copy.timely(received).await?);
        }
        Ok(())
    }

    /// Reads how the receivers of transfers began. One that is not there may be there the next time.
    async fn meet_receivers(&mut self, works: &[Work]) -> Result<(), Setback> {
        for work in works {
            let Work::Command(CommandWork { job, .. }) = work else { continue };
            let Command::Transfer { to_wallet_id: id, .. } = &job.request.command else { continue };
            if self.receivers.contains_key(id) {
                continue;
            }
            if let Some(wallet) = self.shared.beginning(id).await? {
                self.receivers.insert(id.clone(), wallet);
            }
        }
        Ok(())
    }

    /// Appends, sending the same again for as long as the outcome is unknown. `None`: nothing was written, and what is known now
    /// holds what was in the way.
    async fn make_durable(&mut self, batch: &Batch) -> Result<Option<Position>, Setback> {
        let mut waits = backoff();
        let mut outcome_unknown = false;
        loop {
            let reason = match self.shared.log.append(batch).await {
                Ok(Appended::At(position)) => {
                    self.appended(batch)?;
                    return Ok(Some(position));
                }
                Ok(Appended::Conflict) => return self.lost(batch).await,
                Err(LogError::Away(reason)) => reason,
                Err(other) if outcome_unknown => return Err(Setback::Unknown(other.to_string())),
                Err(other) => return Err(other.into()),
            };
            outcome_unknown = true;
            tracing::warn!(reason, wallet = %self.id, "an append's outcome is unknown; sending it again");
            if self.shared.stop.is_cancelled() {
                return Err(Setback::Unknown(reason));
            }
            tokio::time::sleep(waits.next().unwrap_or(RETRY_AFTER)).await;
        }
    }

    /// Our own append is there: it is known as if it had been read.
    fn appended(&mut self, batch: &Batch) -> Result<(), Setback> {
        let known = self.known.get_or_insert_default();
        for event in &batch.events {
            let recorded = RecordedEvent {
                position: 0,
                stream: event.stream.clone(),
                revision: event.revision,
                event_id: event.event_id,
                event_type: event.event_type.to_owned(),
                event_version: crate::wallet::EVENT_VERSION,
                recorded_at: batch.recorded_at,
                payload: event.payload.clone(),
                metadata: event.metadata.to_vec(),
            };
            if let Err(error) = known.take_in(&recorded) {
                // Durable all the same; only memory is wrong.
                tracing::error!(%error, wallet = %self.id, "an appended event does not fit what is known");
                self.forget();
                break;
            }
        }
        self.is_fresh = false;
        (self.shared.on_append)();
        Ok(())
    }

    /// The stream does not end where the decision saw it. It may be an earlier attempt of ours that is in the way.
    async fn lost(&mut self, batch: &Batch) -> Result<Option<Position>, Setback> {
        // What was decided begins right after what was known, and is less than a page.
        let there = self.take_in_page().await?;
        if there.is_empty() {
            self.unexplained += 1;
            if self.unexplained > UNEXPLAINED_MAX {
                // What is known may be of another store, which was behind the address for a moment.
                self.forget();
                return Err(Setback::Away(
                    "the store refuses an append and shows nothing that is in its way".to_owned(),
                ));
            }
        }
        let is_ours = there.len() >= batch.events.len()
            && there.iter().zip(&batch.events).all(|(there, ours)| there.event_id == ours.event_id);
        if is_ours {
            (self.shared.on_append)();
            return Ok(there.get(batch.events.len() - 1).map(|last| last.position));
        }
        self.turn.met_another(&self.id);
        Ok(None)
    }
}

fn fail_all(works: &mut Vec<Work>, error: &CommandError) {
    std::mem::take(works).into_iter().for_each(|work| work.fail(error.clone()));
}
