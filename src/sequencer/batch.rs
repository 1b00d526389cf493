//! One batch: its commands decided one after another, each seeing what the ones before it did. Pure but for ids, which
//! are made here.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::log::{Batch, KeyRecord, KeyScope, Metadata, NewEvent, Position, StreamKey};
use crate::sequencer::{Answer, CommandError, Job, Request, idempotency};
use crate::wallet::{self, Command, Corrupt, Ends, Rejection, Wallet, WalletEvent, WalletId};

/// A wallet in memory.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) wallet: Wallet,
    /// The store's name for its stream; `None` while the wallet is new in this very batch.
    pub(super) stream_key: Option<StreamKey>,
}

/// What is to be told to a caller once the batch is durable.
pub(super) enum Verdict {
    /// This.
    Answer(Result<Answer, CommandError>),
    /// The answer of the earlier command that this record stands for.
    Replay(KeyRecord),
}

impl Verdict {
    /// Whether the command was refused though it may have been done before: its key tells, if the log is asked.
    pub(super) fn may_stand_for_an_earlier_one(&self, job: &Job) -> bool {
        job.request.idempotency_key.is_some() && matches!(self, Verdict::Answer(Err(CommandError::Rejected(_))))
    }
}

/// The decisions of one batch, not yet durable.
pub(super) struct Deciding {
    pub(super) batch: Batch,
    /// Every wallet that the batch touches, as its decisions so far leave it. A name without an entry has no wallet.
    pub(super) wallets: HashMap<WalletId, Held>,
    /// Answers of this batch by key: the same key may well come twice at once.
    answered: HashMap<KeyScope, ([u8; 32], Answer)>,
    head: Position,
}

impl Deciding {
    pub(super) fn new(head: Position, recorded_at: DateTime<Utc>, wallets: HashMap<WalletId, Held>) -> Self {
        let batch = Batch { expected_head: Some(head), recorded_at, ..Batch::default() };
        Deciding { batch, wallets, answered: HashMap::new(), head }
    }

    /// Decides one request; `known` is what the log knows of its key.
    pub(super) fn decide(&mut self, request: &Request, known: Option<&KeyRecord>) -> Verdict {
        let scope = idempotency::scope(request);
        let fingerprint = scope.as_ref().map(|_| idempotency::fingerprint(&request.command));
        if let (Some(record), Some(fingerprint)) = (known, fingerprint) {
            return if record.fingerprint == fingerprint {
                Verdict::Replay(record.clone())
            } else {
                Verdict::Answer(Err(CommandError::KeyReused))
            };
        }
        if let (Some(scope), Some(fingerprint)) = (&scope, fingerprint)
            && let Some((earlier, answer)) = self.answered.get(scope)
        {
            return Verdict::Answer(if *earlier == fingerprint {
                Ok(Answer { replayed: true, ..answer.clone() })
            } else {
                Err(CommandError::KeyReused)
            });
        }
        let first = self.batch.events.len();
        let answer = match self.decide_new(request) {
            Ok(answer) => answer,
            Err(error) => return Verdict::Answer(Err(error)),
        };
        if let (Some(scope), Some(fingerprint)) = (scope, fingerprint) {
            self.batch.keys.push(KeyRecord {
                scope: scope.clone(),
                fingerprint,
                position: self.head + 1 + first as Position,
                event_count: (self.batch.events.len() - first) as i32,
            });
            self.answered.insert(scope, (fingerprint, answer.clone()));
        }
        Verdict::Answer(Ok(answer))
    }

    fn decide_new(&mut self, request: &Request) -> Result<Answer, CommandError> {
        let state = |id: &WalletId| self.wallets.get(id).map(|held| &held.wallet);
        let decided: Vec<(WalletId, WalletEvent)>;
        let mut transfer_id = None;
        match &request.command {
            Command::Create { wallet_id, owner_id, currency, initial_balance } => {
                decided = wallet::open(state(wallet_id), wallet_id, owner_id, *currency, *initial_balance)?
                    .into_iter()
                    .map(|event| (wallet_id.clone(), event))
                    .collect();
            }
            Command::Credit { wallet_id, amount, description } => {
                let event = wallet::credit(state(wallet_id), wallet_id, amount, description.as_ref())?;
                decided = vec![(wallet_id.clone(), event)];
            }
            Command::Debit { wallet_id, amount, description } => {
                let event = wallet::debit(state(wallet_id), wallet_id, amount, description.as_ref())?;
                decided = vec![(wallet_id.clone(), event)];
            }
            Command::Transfer { wallet_id, to_wallet_id, amount, description } => {
                let id = Uuid::now_v7();
                let ends =
                    Ends { from_id: wallet_id, from: state(wallet_id), to_id: to_wallet_id, to: state(to_wallet_id) };
                let (debit, credit) = wallet::transfer(ends, id, amount, description.as_ref())?;
                transfer_id = Some(id);
                decided = vec![(wallet_id.clone(), debit), (to_wallet_id.clone(), credit)];
            }
        }
        let metadata = Metadata {
            correlation_id: Arc::clone(&request.correlation_id),
            causation_id: Uuid::now_v7().to_string().into(),
        };
        let metadata: Arc<[u8]> = serde_json::to_vec(&metadata).expect("two texts always serialise").into();
        for (id, event) in decided {
            self.take_in(id, &event, &metadata).map_err(|corrupt| CommandError::Corrupt(corrupt.to_string()))?;
        }
        self.answer(&request.command, transfer_id)
    }

    /// Adds a decided event to the batch and to the state that the next command sees.
    fn take_in(&mut self, id: WalletId, event: &WalletEvent, metadata: &Arc<[u8]>) -> Result<(), Corrupt> {
        let at = self.batch.recorded_at;
        let held = match self.wallets.get_mut(&id) {
            Some(held) => {
                held.wallet.apply(event, at)?;
                held
            }
            None => {
                let wallet = Wallet::begin(id.clone(), event, at)?;
                self.wallets.entry(id.clone()).or_insert(Held { wallet, stream_key: None })
            }
        };
        self.batch.events.push(NewEvent {
            revision: held.wallet.version,
            stream_key: held.stream_key,
            stream: id,
            event_id: Uuid::now_v7(),
            event_type: event.event_type(),
            payload: event.to_payload(),
            metadata: Arc::clone(metadata),
        });
        Ok(())
    }

    fn answer(&self, command: &Command, transfer_id: Option<Uuid>) -> Result<Answer, CommandError> {
        let state = |id: &WalletId| {
            let held = self.wallets.get(id).ok_or_else(|| Rejection::WalletNotFound(id.clone()))?;
            Ok::<Wallet, Rejection>(held.wallet.clone())
        };
        let transfer = match (transfer_id, command.counterparty()) {
            (Some(id), Some(counterparty)) => Some((id, state(counterparty)?)),
            _ => None,
        };
        Ok(Answer { wallet: state(command.wallet_id())?, transfer, position: self.head_after(), replayed: false })
    }

    /// The head that the decisions stand on.
    pub(super) fn head(&self) -> Position {
        self.head
    }

    /// The head once the batch is durable.
    pub(super) fn head_after(&self) -> Position {
        self.head + self.batch.events.len() as Position
    }

    /// Puts in the names that the store gives to the wallets that are new, once the batch is durable.
    pub(super) fn name_new_streams(&mut self) {
        for (place, event) in self.batch.events.iter().enumerate() {
            if event.revision == 0
                && let Some(held) = self.wallets.get_mut(&event.stream)
            {
                held.stream_key = Some(StreamKey(self.head + 1 + place as Position));
            }
        }
    }
}
