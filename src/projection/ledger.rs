//! The ledger: double entry. Each event that moves money is one entry of two postings that sum to zero.

use crate::kafka::EventRecord;
use crate::money::Currency;
use crate::postgres::{LedgerEntry, PgConnection, insert_ledger_entries};
use crate::projection::{ApplyError, Projection};
use crate::wallet::{WalletEvent, WalletId};

/// The ledger's name and consumer group.
pub const LEDGER_PROJECTOR: &str = "ledger-projector";

/// Keeps `ledger_postings`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LedgerProjection {}

impl LedgerProjection {
    /// The ledger.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Projection for LedgerProjection {
    fn name(&self) -> &str {
        LEDGER_PROJECTOR
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let entries: Vec<LedgerEntry> = events.iter().filter_map(entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        Ok(insert_ledger_entries(transaction, &entries).await?)
    }
}

/// The account of a wallet.
pub fn wallet_account(wallet_id: &WalletId) -> String {
    format!("wallet/{wallet_id}")
}

/// The account that stands for the world outside of all wallets.
pub fn external_account(currency: Currency) -> String {
    format!("external/{currency}")
}

/// The account that money passes through between the two legs of a transfer.
pub fn clearing_account(currency: Currency) -> String {
    format!("clearing/{currency}")
}

/// The entry that an event makes; none if it moves no money.
pub fn entry(record: &EventRecord) -> Option<LedgerEntry> {
    let event = &record.event;
    let amount = event.amount()?.minor();
    let (amount, transaction_type) = match (event, event.transfer()) {
        (WalletEvent::WalletDebited { .. }, None) => (-amount, "DEBIT"),
        (WalletEvent::WalletDebited { .. }, Some(_)) => (-amount, "TRANSFER_OUT"),
        (_, None) => (amount, "CREDIT"),
        (_, Some(_)) => (amount, "TRANSFER_IN"),
    };
    let currency = event.currency();
    Some(LedgerEntry {
        position: record.position,
        account: wallet_account(&record.wallet_id),
        counter_account: match event.transfer() {
            None => external_account(currency),
            Some(_) => clearing_account(currency),
        },
        currency: currency.code(),
        amount,
        balance_after: event.balance().minor(),
        event_id: record.event_id,
        transaction_type,
        description: event.description().map(ToString::to_string),
        reference_id: event.transfer().map_or(record.event_id, |transfer| transfer.id),
        related_wallet_id: event.transfer().map(|transfer| transfer.counterparty.to_string()),
        metadata: record.metadata.clone(),
        created_at: record.recorded_at,
    })
}
