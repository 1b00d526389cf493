//! One turn of one wallet's lane: learn what the stream holds, decide what is waiting, append it, answer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chrono::{SubsecRound, Utc};
use uuid::Uuid;

use crate::crash_point::CrashPoint;
use crate::lanes::Shared;
use crate::lanes::decide::{Copied, Deciding, Place, Verdict, leg_of, return_id};
use crate::lanes::known::{Known, unusable};
use crate::lanes::metadata::CommandMetadata;
use crate::lanes::turn::Turn;
use crate::lanes::work::{Caller, CommandWork, Leg, Outcome, Work, reply};
use crate::lease::Lease;
use crate::log::{Appended, Batch, EventLog, KeyScope, LogError, Position, RecordedEvent, Revision, SNAPSHOT_FORMAT};
use crate::money::Amount;
use crate::sequencer::{Answer, CommandError, RETRY_AFTER, Setback, backoff, scope};
use crate::wallet::{Command, Rejection, Wallet, WalletEvent, WalletId};

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
    let mut lane = Lane {
        shared,
        known,
        id,
        turn,
        copied: Copied::default(),
        receivers: HashMap::new(),
        is_fresh: false,
        unexplained: 0,
    };
    // What the store refuses for good is tried again one by one: one command that can never be done shall not take others with
    // it.
    let mut groups = VecDeque::from([works]);
    while let Some(group) = groups.pop_front() {
        for (place, alone) in lane.together(group).await.into_iter().enumerate() {
            groups.insert(place, vec![alone]);
        }
    }
    let known = lane.known.filter(|known| !known.is_too_much());
    Ended { id: lane.id, known, lease: lane.turn.end() }
}

struct Lane<L> {
    shared: Arc<Shared<L>>,
    id: WalletId,
    known: Option<Known>,
    turn: Turn,
    copied: Copied,
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
        (self.known, self.copied, self.is_fresh) = (None, Copied::default(), false);
    }

    /// One attempt. What is left in `works` after `Ok` is to be decided again.
    async fn attempt(&mut self, works: &mut Vec<Work>) -> Result<(), Setback> {
        if self.known.is_none() {
            self.load().await?;
        }
        if self.turn.comes(&self.id).await && self.catch_up().await? > 0 {
            self.turn.met_another(&self.id);
        }
        // After the load: the copy then knows at least what the load has left to it.
        self.look_up(works).await?;
        self.meet_receivers(works).await?;
        let known = self.known.get_or_insert_default();
        let now = Utc::now().trunc_subsecs(6);
        let mut deciding = Deciding::new(&self.id, known, &self.copied, &self.receivers, now);
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
        } else if !self.is_fresh && self.catch_up().await? > 0 {
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
        self.copied = Copied::default();
        let copied = self.shared.copy.load(std::slice::from_ref(&self.id), SNAPSHOT_FORMAT).await?;
        let known = Known::of_copy(copied.first()).map_err(|error| unusable(&self.id, None, error))?;
        self.known = Some(known);
        self.catch_up().await?;
        Ok(())
    }

    /// Takes in what the stream has after what is known; how many events that was.
    async fn catch_up(&mut self) -> Result<usize, Setback> {
        let mut taken_in = 0;
        loop {
            let known = self.known.get_or_insert_default();
            let page = self.shared.log.read_stream(&self.id, known.revision() + 1, TAIL_PAGE).await?;
            for recorded in &page {
                known.take_in(recorded).map_err(|error| unusable(&self.id, Some(recorded.revision), error))?;
            }
            taken_in += page.len();
            if page.len() < TAIL_PAGE {
                self.is_fresh = true;
                return Ok(taken_in);
            }
        }
    }

    /// Asks the copy for keys and transfers that the known part of the stream does not have.
    async fn look_up(&mut self, works: &[Work]) -> Result<(), Setback> {
        let known = self.known.get_or_insert_default();
        let mut keys: Vec<KeyScope> = Vec::new();
        let mut legs: Vec<Uuid> = Vec::new();
        for work in works {
            match work {
                Work::Command(command) => {
                    let scope = scope(&command.job.request);
                    keys.extend(
                        scope.filter(|scope| known.key(scope).is_none() && !self.copied.keys.contains_key(scope)),
                    );
                }
                Work::Leg(leg) if known.received(leg.transfer_id).is_none() => legs.push(leg.transfer_id),
                Work::Leg(_) => {}
            }
        }
        if !keys.is_empty() {
            let found = self.shared.copy.find_keys(&keys).await?;
            self.copied.keys.extend(found.into_iter().map(|record| (record.scope.clone(), record)));
        }
        if !legs.is_empty() {
            let found = tokio::time::timeout(
                self.shared.options.append_timeout,
                self.shared.database.received_transfers(&legs),
            );
            let found = found.await.map_err(|_| Setback::Away("the copy does not answer".to_owned()))??;
            self.copied.received.extend(found);
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
        let first = batch.events.first().map(|event| (event.revision, event.event_id));
        let there = match first {
            Some((revision, _)) => self.shared.log.read_stream(&self.id, revision, batch.events.len()).await?,
            None => Vec::new(),
        };
        let is_ours = there.len() == batch.events.len()
            && there.iter().zip(&batch.events).all(|(there, ours)| there.event_id == ours.event_id);
        if self.catch_up().await? == 0 {
            self.unexplained += 1;
            if self.unexplained > UNEXPLAINED_MAX {
                // What is known may be of another store, which was behind the address for a moment.
                self.forget();
                return Err(Setback::Away(
                    "the store refuses an append and shows nothing that is in its way".to_owned(),
                ));
            }
        }
        if is_ours {
            (self.shared.on_append)();
            return Ok(there.last().map(|last| last.position));
        }
        self.turn.met_another(&self.id);
        Ok(None)
    }

    async fn answer(&mut self, work: Work, verdict: Verdict, position: Position) {
        match (work, verdict) {
            (Work::Command(command), Verdict::Answer(answer)) => {
                let answer = answer.map(|wallet| Answer { wallet, transfer: None, position, replayed: false });
                reply(command.job, answer);
            }
            (Work::Command(command), Verdict::Debited { payer, leg }) => {
                CrashPoint::BetweenLegs.pass();
                let outcome = Outcome::Transferred {
                    transfer_id: leg.transfer_id,
                    from_wallet: *payer,
                    position,
                    replayed: false,
                };
                self.follow_up(Leg { caller: Some(Caller { job: command.job, outcome }), ..*leg });
            }
            (Work::Command(command), Verdict::Replay(place)) => self.replay(command, place).await,
            // What it came after is in the stream now.
            (work, Verdict::Later) => self.hand_on(self.id.clone(), work),
            (Work::Leg(leg), Verdict::Received(wallet)) => {
                if let Some(caller) = leg.caller {
                    caller.answer(*wallet, position);
                }
            }
            (Work::Leg(leg), Verdict::ReceivedBefore(place)) => self.received_before(leg, place).await,
            (Work::Leg(leg), Verdict::SentBack { rejection, mut legs }) => {
                if let (Some(caller), Some(last)) = (leg.caller, legs.last_mut()) {
                    last.caller = Some(Caller { job: caller.job, outcome: Outcome::Returned(rejection) });
                }
                legs.into_iter().for_each(|leg| self.follow_up(leg));
            }
            (Work::Leg(leg), Verdict::NoRoom) => {
                tracing::warn!(transfer = %leg.transfer_id, wallet = %self.id, "a return finds no room; it waits until there is");
                Work::Leg(leg).fail(CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER });
            }
            (Work::Leg(leg), Verdict::Answer(answer)) => {
                let error = answer.err().map_or(String::new(), |error| error.to_string());
                tracing::error!(error, transfer = %leg.transfer_id, "a transfer's receiving leg cannot be appended");
                Work::Leg(leg).fail(CommandError::Corrupt(error));
            }
            // The other one's verdicts.
            (work, _) => {
                work.fail(CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER });
            }
        }
    }

    fn follow_up(&self, leg: Leg) {
        self.hand_on(leg.to.clone(), Work::Leg(leg));
    }

    fn hand_on(&self, id: WalletId, work: Work) {
        if let Err(mpsc_closed) = self.shared.follow_up.send((id, work)) {
            // The lanes have ended; another server takes up what is left.
            mpsc_closed.0.1.fail(CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER });
        }
    }

    /// Makes the answer of an earlier command again, from its last event.
    async fn replay(&mut self, work: CommandWork, place: Place) {
        let (recorded, wallet) = match self.as_of(place).await {
            Ok(found) => found,
            Err(error) => return reply(work.job, Err(error)),
        };
        let position = recorded.position;
        let event = recorded.decode().ok();
        let metadata = CommandMetadata::read(&recorded.metadata)
            .map(|metadata| CommandMetadata { idempotency: None, ..metadata }.to_bytes());
        let leg = event.zip(metadata).and_then(|(event, metadata)| leg_of(&self.id, &event, metadata));
        match leg {
            Some(leg) => {
                let outcome = Outcome::Transferred {
                    transfer_id: leg.transfer_id,
                    from_wallet: wallet,
                    position,
                    replayed: true,
                };
                self.follow_up(Leg { caller: Some(Caller { job: work.job, outcome }), ..leg });
            }
            None => reply(work.job, Ok(Answer { wallet, transfer: None, position, replayed: true })),
        }
    }

    /// The leg is there already: whoever waits for it is told what became of it then.
    async fn received_before(&mut self, leg: Leg, place: Place) {
        let Some(caller) = leg.caller else { return };
        let (recorded, wallet) = match self.as_of(place).await {
            Ok(found) => found,
            Err(_) => return caller.put_off(),
        };
        match self.was_sent_back(leg.transfer_id, &recorded).await {
            Ok(false) => caller.answer(wallet, recorded.position),
            Ok(true) => {
                let currency = wallet.currency;
                let max = Amount::MAX.to_text(currency);
                let rejection = Rejection::BalanceTooLarge { wallet_id: self.id.clone(), max, currency };
                reply(caller.job, Err(CommandError::Rejected(rejection)));
            }
            Err(_) => caller.put_off(),
        }
    }

    /// Whether the receiver sent it back in the same append: then the event before it is the first part of that.
    async fn was_sent_back(&self, transfer: Uuid, leg: &RecordedEvent) -> Result<bool, LogError> {
        if leg.revision == 0 {
            return Ok(false);
        }
        let before = self.shared.log.read_stream(&self.id, leg.revision - 1, 1).await?;
        let returned = return_id(transfer, 1);
        Ok(before.first().and_then(|before| before.decode().ok()).is_some_and(|event| {
            matches!(&event, WalletEvent::WalletDebited { transfer: Some(transfer), .. } if transfer.id == returned)
        }))
    }

    /// An earlier event, as the store has it, and the wallet as it left it: what never changes about a wallet is taken from now,
    /// and the rest from the event.
    async fn as_of(&self, place: Place) -> Result<(RecordedEvent, Wallet), CommandError> {
        let away = |_: LogError| CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER };
        let missing = || CommandError::Corrupt(format!("an earlier event of wallet {} is missing", self.id));
        let revision: Revision = match place {
            Place::Revision(revision) => revision,
            Place::Copied(position) => {
                let copied = self.shared.copy.read(position - 1, 1).await.map_err(away)?;
                copied.first().filter(|copied| copied.stream == self.id).ok_or_else(missing)?.revision
            }
        };
        let read = self.shared.log.read_stream(&self.id, revision, 1).await.map_err(away)?;
        let recorded = read.into_iter().next().ok_or_else(missing)?;
        let event = recorded.decode().map_err(|error| CommandError::Corrupt(error.to_string()))?;
        let wallet = self.known.as_ref().and_then(|known| known.wallet.clone()).ok_or_else(missing)?;
        let (version, updated_at) = (recorded.revision, recorded.recorded_at);
        Ok((recorded, Wallet { balance: event.balance(), version, updated_at, ..wallet }))
    }
}

fn fail_all(works: &mut Vec<Work>, error: &CommandError) {
    std::mem::take(works).into_iter().for_each(|work| work.fail(error.clone()));
}
