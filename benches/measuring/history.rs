//! A long log, made by the domain itself and appended in batches far bigger than any that callers make.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;
use wallex::log::{Appended, Batch, EventLog, NewEvent, PostgresLog};
use wallex::money::{Amount, Currency};
use wallex::wallet::{Ends, OwnerId, Wallet, WalletEvent, WalletId, credit, debit, open, transfer};

/// Events in one append.
const BATCH: usize = 5_000;
/// What each wallet begins with, in minor units: enough for any number of debits of one unit.
const OPENING_MINOR: i64 = 100_000_000_000;
const METADATA: &[u8] =
    br#"{"correlationId":"01a20d22-4eb5-7023-a021-1451e1826517","causationId":"01a20d22-4eb5-7023-a021-14543207cda0"}"#;

pub fn wallet_name(number: usize) -> String {
    format!("wallet-{number:05}")
}

/// Fills an empty log with so many events, or one more: the wallets' openings, then credits, debits and transfers, one as often as
/// the other. The position of the last.
pub async fn fill(log: &PostgresLog, wallets: usize, events: usize) -> i64 {
    let mut history = History { log, head: 0, pending: Vec::new(), metadata: METADATA.into() };
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let owner = OwnerId::new("owner").expect("an owner");
    let opening = Amount::from_minor(OPENING_MINOR).expect("not negative");
    let ids: Vec<WalletId> =
        (0..wallets).map(|number| WalletId::new(wallet_name(number)).expect("a wallet id")).collect();
    let mut states: Vec<Wallet> = Vec::with_capacity(wallets);
    for id in &ids {
        let mut opened = open(None, id, &owner, Currency::USD, opening).expect("a new wallet").into_iter();
        let first = opened.next().expect("an opening");
        states.push(Wallet::begin(id.clone(), &first, DateTime::UNIX_EPOCH).expect("a first event"));
        history.push(id, 0, &first);
        for event in opened {
            history.happened(states.last_mut().expect("it was opened"), &event);
        }
        history.append_full().await;
    }
    while history.len() < events {
        let (one, other) = (random.random_range(0..wallets), random.random_range(0..wallets));
        match random.random_range(0..3) {
            0 => {
                let event = credit(Some(&states[one]), &ids[one], "1", None).expect("a credit");
                history.happened(&mut states[one], &event);
            }
            1 => {
                let event = debit(Some(&states[one]), &ids[one], "1", None).expect("a debit");
                history.happened(&mut states[one], &event);
            }
            _ if one == other => {}
            _ => {
                let (from, to) = (Some(&states[one]), Some(&states[other]));
                let ends = Ends { from_id: &ids[one], from, to_id: &ids[other], to };
                let (out, into) = transfer(ends, Uuid::now_v7(), "1", None).expect("a transfer");
                history.happened(&mut states[one], &out);
                history.happened(&mut states[other], &into);
            }
        }
        history.append_full().await;
    }
    history.append().await;
    history.head
}

struct History<'a> {
    log: &'a PostgresLog,
    head: i64,
    pending: Vec<NewEvent>,
    metadata: Arc<[u8]>,
}

impl History<'_> {
    fn len(&self) -> usize {
        self.head as usize + self.pending.len()
    }

    fn happened(&mut self, wallet: &mut Wallet, event: &WalletEvent) {
        wallet.apply(event, DateTime::UNIX_EPOCH).expect("an event that follows");
        let (id, version) = (wallet.id.clone(), wallet.version);
        self.push(&id, version, event);
    }

    fn push(&mut self, id: &WalletId, revision: i64, event: &WalletEvent) {
        self.pending.push(NewEvent {
            stream: id.clone(),
            stream_key: None,
            revision,
            event_id: Uuid::now_v7(),
            event_type: event.event_type(),
            payload: event.to_payload(),
            metadata: Arc::clone(&self.metadata),
        });
    }

    async fn append_full(&mut self) {
        if self.pending.len() >= BATCH {
            self.append().await;
        }
    }

    async fn append(&mut self) {
        let recorded_at = DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).expect("a time");
        let events = std::mem::take(&mut self.pending);
        let batch = Batch { expected_head: Some(self.head), recorded_at, events, ..Batch::default() };
        match self.log.append(&batch).await.expect("an append") {
            Appended::At(position) => self.head = position,
            Appended::Conflict => panic!("nobody else writes to this log"),
        }
    }
}
