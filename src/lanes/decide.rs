//! The decisions of one append to one stream, each seeing what the ones before it did. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::kurrentdb::event_id;
use crate::lanes::known::Known;
use crate::lanes::metadata::{CommandMetadata, KeyUse};
use crate::lanes::work::{CommandWork, Leg};
use crate::log::{Batch, KeyScope, Metadata, NewEvent, Position, Revision};
use crate::money::Amount;
use crate::sequencer::{CommandError, fingerprint, scope};
use crate::wallet::{self, Command, Ends, Rejection, Transfer, Wallet, WalletEvent, WalletId};

/// What is to be done about a piece of work once the append is durable.
pub(super) enum Verdict {
    /// Tell the caller: the wallet as the command left it, or why not.
    Answer(Result<Wallet, CommandError>),
    /// The paying leg of a transfer, with the payer as it left him: the receiving leg follows.
    Debited { payer: Box<Wallet>, leg: Box<Leg> },
    /// The key was used for the same command before; its last event is there.
    Replay(Place),
    /// The key or the leg is in this very append already: to be looked at again after it.
    Later,
    /// The leg: the receiver as it left him.
    Received(Box<Wallet>),
    /// The leg is in the stream already.
    ReceivedBefore(Place),
    /// The receiver cannot hold it, took it and sent it back in one: these legs bring it home.
    SentBack { rejection: Rejection, legs: Vec<Leg> },
    /// A return that the payer cannot hold at present.
    NoRoom,
}

/// Where an earlier event is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// In the stream.
    Revision(Revision),
    /// In the copy: the last event's position.
    Copied(Position),
}

/// What one append can be decided by.
pub(super) struct Deciding<'a> {
    id: &'a WalletId,
    known: &'a Known,
    /// Receivers of transfers as they began; one that is not here does not exist.
    receivers: &'a HashMap<WalletId, Wallet>,
    wallet: Option<Wallet>,
    /// Keys and receiving legs of this append.
    keys: HashSet<KeyScope>,
    legs: HashSet<Uuid>,
    pub(super) batch: Batch,
}

impl<'a> Deciding<'a> {
    pub(super) fn new(
        id: &'a WalletId,
        known: &'a Known,
        receivers: &'a HashMap<WalletId, Wallet>,
        now: DateTime<Utc>,
    ) -> Self {
        let recorded_at = known.wallet.as_ref().map_or(now, |wallet| wallet.updated_at.max(now));
        let batch = Batch { recorded_at, ..Batch::default() };
        Deciding {
            id,
            known,
            receivers,
            wallet: known.wallet.clone(),
            keys: HashSet::new(),
            legs: HashSet::new(),
            batch,
        }
    }

    pub(super) fn command(&mut self, work: &CommandWork) -> Verdict {
        let request = &work.job.request;
        let key = scope(request).map(|scope| (scope, fingerprint(&request.command)));
        if let Some((scope, fingerprint)) = &key {
            match self.known.key(scope) {
                Some(earlier) if earlier.fingerprint == *fingerprint => return Verdict::Replay(earlier.last_event),
                Some(_) => return Verdict::Answer(Err(CommandError::KeyReused)),
                None if self.keys.contains(scope) => return Verdict::Later,
                None => {}
            }
        }
        let events = match self.events_of(work) {
            Ok(events) => events,
            Err(rejection) => return Verdict::Answer(Err(rejection.into())),
        };
        let shared = Metadata {
            correlation_id: Arc::clone(&request.correlation_id),
            causation_id: Arc::clone(&work.causation_id),
        };
        let plain = CommandMetadata { shared: shared.clone(), idempotency: None }.to_bytes();
        let first = match &key {
            Some((scope, fingerprint)) => {
                let key = KeyUse::new(scope.command_kind, &scope.key, fingerprint, events.len() as i32);
                CommandMetadata { shared, idempotency: Some(key) }.to_bytes()
            }
            None => Arc::clone(&plain),
        };
        let metadata = std::iter::once(first).chain(std::iter::repeat(Arc::clone(&plain)));
        let before = (self.batch.events.len(), self.wallet.clone());
        for (event, metadata) in events.iter().zip(metadata) {
            if let Err(error) = self.take_in(&work.causation_id, event, metadata) {
                return self.undone(before.0, before.1, error);
            }
        }
        self.keys.extend(key.map(|(scope, _)| scope));
        let (Some(wallet), Some(last)) = (self.wallet.clone(), events.last()) else {
            return Verdict::Answer(Err(Rejection::WalletNotFound(self.id.clone()).into()));
        };
        match leg_of(self.id, last, plain) {
            Some(leg) => {
                let leg = Leg { decided_after: Some(work.taken_at), ..leg };
                Verdict::Debited { payer: Box::new(wallet), leg: Box::new(leg) }
            }
            None => Verdict::Answer(Ok(wallet)),
        }
    }

    fn events_of(&self, work: &CommandWork) -> Result<Vec<WalletEvent>, Rejection> {
        let state = self.wallet.as_ref();
        match &work.job.request.command {
            Command::Create { wallet_id, owner_id, currency, initial_balance } => {
                wallet::open(state, wallet_id, owner_id, *currency, *initial_balance)
            }
            Command::Credit { wallet_id, amount, description } => {
                Ok(vec![wallet::credit(state, wallet_id, amount, description.as_ref())?])
            }
            Command::Debit { wallet_id, amount, description } => {
                Ok(vec![wallet::debit(state, wallet_id, amount, description.as_ref())?])
            }
            Command::Transfer { wallet_id, to_wallet_id, amount, description } => {
                // The receiver as it began: that it is there, and its currency, never change. What it holds is its own
                // lane's to say.
                let to = self.receivers.get(to_wallet_id);
                let ends = Ends { from_id: wallet_id, from: state, to_id: to_wallet_id, to };
                let (debit, _) = wallet::transfer(ends, work.transfer_id, amount, description.as_ref())?;
                Ok(vec![debit])
            }
        }
    }

    pub(super) fn leg(&mut self, leg: &Leg) -> Verdict {
        if let Some(place) = self.known.received(leg.transfer_id) {
            return Verdict::ReceivedBefore(place);
        }
        // Whoever waits for it and whoever has found it in transit may well come at the same time.
        if !self.legs.insert(leg.transfer_id) {
            return Verdict::Later;
        }
        let Some(wallet) = self.wallet.clone() else {
            let error = format!("transfer {} goes to wallet {}, which is not there", leg.transfer_id, leg.to);
            return Verdict::Answer(Err(CommandError::Corrupt(error)));
        };
        let received = wallet::receive(&wallet, leg.amount, leg.description.as_ref(), leg.transfer());
        let rejection = match received {
            Ok(event) => {
                return match self.take_in(&leg.command_text(), &event, Arc::clone(&leg.metadata)) {
                    Ok(wallet) => Verdict::Received(Box::new(wallet)),
                    Err(error) => Verdict::Answer(Err(error)),
                };
            }
            Err(rejection) => rejection,
        };
        if leg.is_a_return() {
            return Verdict::NoRoom;
        }
        let before = self.batch.events.len();
        match self.send_back(leg, &wallet) {
            Ok(legs) => Verdict::SentBack { rejection, legs },
            Err(error) => self.undone(before, Some(wallet), error),
        }
    }

    /// Takes what there is no room for, and sends it back, in one append: first as much as is there goes out, then the transfer
    /// comes in, then the rest goes out.
    fn send_back(&mut self, leg: &Leg, wallet: &Wallet) -> Result<Vec<Leg>, CommandError> {
        let first = leg.amount.min(wallet.balance);
        let rest = leg.amount.checked_sub(first).unwrap_or_default();
        let (emptied, mut legs) = self.return_part(leg, wallet, 1, first)?;
        let received = wallet::receive(&emptied, leg.amount, leg.description.as_ref(), leg.transfer());
        let full = self.take_in(&leg.command_text(), &received.map_err(impossible)?, Arc::clone(&leg.metadata))?;
        if !rest.is_zero() {
            legs.extend(self.return_part(leg, &full, 2, rest)?.1);
        }
        Ok(legs)
    }

    fn return_part(
        &mut self,
        leg: &Leg,
        wallet: &Wallet,
        part: i64,
        amount: Amount,
    ) -> Result<(Wallet, Vec<Leg>), CommandError> {
        let transfer = Transfer { id: return_id(leg.transfer_id, part), counterparty: leg.from.clone() };
        let event = wallet::send_back(wallet, amount, leg.transfer_id, transfer).map_err(impossible)?;
        let command = format!("{}/return-{part}", leg.transfer_id);
        let after = self.take_in(&command, &event, Arc::clone(&leg.metadata))?;
        Ok((after, leg_of(self.id, &event, Arc::clone(&leg.metadata)).into_iter().collect()))
    }

    /// What has failed half-way leaves nothing behind.
    fn undone(&mut self, events: usize, wallet: Option<Wallet>, error: CommandError) -> Verdict {
        self.batch.events.truncate(events);
        self.wallet = wallet;
        Verdict::Answer(Err(error))
    }

    fn take_in(&mut self, command: &str, event: &WalletEvent, metadata: Arc<[u8]>) -> Result<Wallet, CommandError> {
        let corrupt = |corrupt: wallet::Corrupt| CommandError::Corrupt(corrupt.to_string());
        let at = self.batch.recorded_at;
        let wallet = match self.wallet.take() {
            Some(mut wallet) => {
                wallet.apply(event, at).map_err(corrupt)?;
                wallet
            }
            None => Wallet::begin(self.id.clone(), event, at).map_err(corrupt)?,
        };
        self.batch.events.push(NewEvent {
            stream: self.id.clone(),
            stream_key: None,
            revision: wallet.version,
            event_id: event_id(command, self.id, wallet.version),
            event_type: event.event_type(),
            payload: event.to_payload(),
            metadata,
        });
        self.wallet = Some(wallet.clone());
        Ok(wallet)
    }
}

fn impossible(rejection: Rejection) -> CommandError {
    CommandError::Corrupt(format!("a transfer that is to be sent back: {rejection}"))
}

/// The id of what a receiver sends back: made from the transfer's.
pub(super) fn return_id(transfer_id: Uuid, part: i64) -> Uuid {
    let name = WalletId::new("return").expect("a plain word");
    event_id(&transfer_id.to_string(), &name, part)
}

/// The receiving leg that a paying one calls for; `None` where the event is none.
pub(super) fn leg_of(from: &WalletId, event: &WalletEvent, metadata: Arc<[u8]>) -> Option<Leg> {
    let WalletEvent::WalletDebited { amount, description, transfer: Some(transfer), .. } = event else {
        return None;
    };
    Some(Leg {
        transfer_id: transfer.id,
        from: from.clone(),
        to: transfer.counterparty.clone(),
        amount: *amount,
        description: description.clone(),
        metadata,
        decided_after: None,
        caller: None,
    })
}
