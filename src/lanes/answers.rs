//! What becomes of a lane's work once its append is durable: callers are answered, legs follow, and earlier answers are made again.

use uuid::Uuid;

use crate::crash_point::CrashPoint;
use crate::lanes::decide::{Place, Verdict, leg_of, return_id};
use crate::lanes::lane::Lane;
use crate::lanes::metadata::CommandMetadata;
use crate::lanes::work::{Caller, CommandWork, Leg, Outcome, Work, reply};
use crate::log::{EventLog, LogError, Position, RecordedEvent, Revision};
use crate::money::Amount;
use crate::sequencer::{Answer, CommandError, RETRY_AFTER};
use crate::wallet::{Rejection, Wallet, WalletEvent, WalletId};

impl<L: EventLog> Lane<L> {
    pub(super) async fn answer(&mut self, work: Work, verdict: Verdict, position: Position) {
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
