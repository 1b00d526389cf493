//! What an event must have posted, worked out here a second time: the projection's own code proves nothing about itself.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::kafka::EventRecord;
use crate::money::named;
use crate::verify::PostingRow;
use crate::wallet::WalletEvent;

/// A difference: what should be there, and what is.
type Difference = (String, String);

/// Holds the postings at an event's position against the event. They come in the order of their legs.
pub(super) fn compare(record: &EventRecord, postings: &[PostingRow]) -> Result<(), Difference> {
    let Some((amount, kind)) = movement(&record.event) else {
        return match postings.first() {
            None => Ok(()),
            Some(posting) => Err(("no posting for WalletCreated".to_owned(), described(posting))),
        };
    };
    let [own, counter] = postings else {
        let legs = postings.iter().map(described).collect::<Vec<_>>().join("; ");
        let found = if legs.is_empty() { "no posting".to_owned() } else { format!("only {legs}") };
        return Err((format!("two postings of {}", named(amount, record.event.currency().code())), found));
    };
    let code = record.event.currency().code();
    let transfer = record.event.transfer();
    let counter_account = if transfer.is_some() { "clearing" } else { "external" };
    // Names are compared in their parts, so that nothing is put together where all is well.
    if own.leg != 0 || own.account.strip_prefix("wallet/") != Some(record.wallet_id.as_str()) {
        return differs("account", format!("wallet/{}", record.wallet_id), &own.account);
    }
    if counter.leg != 1 || counter.account.split_once('/') != Some((counter_account, code)) {
        return differs("counter-account", format!("{counter_account}/{code}"), &counter.account);
    }
    for posting in [own, counter] {
        if posting.currency != code {
            return differs("currency", code, &posting.currency);
        }
        if posting.created_at != record.recorded_at {
            return differs("time", record.recorded_at, posting.created_at);
        }
    }
    if own.amount != amount {
        return differs("amount", named(amount, code), named(own.amount, code));
    }
    if counter.amount != -amount {
        return differs("counter-posting", named(-amount, code), named(counter.amount, code));
    }
    let balance = record.event.balance().minor();
    if own.balance_after != Some(balance) {
        return differs(
            "balance",
            named(balance, code),
            own.balance_after.map_or("none".to_owned(), |it| named(it, code)),
        );
    }
    if own.transaction_type.as_deref() != Some(kind) {
        return differs("type", kind, own.transaction_type.as_deref().unwrap_or("none"));
    }
    if own.event_id != Some(record.event_id) {
        return differs("event id", record.event_id, own.event_id.map_or("none".to_owned(), |id| id.to_string()));
    }
    // What is no transfer refers to itself.
    let reference = transfer.map_or(record.event_id, |transfer| transfer.id);
    if own.reference_id != Some(reference) {
        return differs("reference", reference, own.reference_id.map_or("none".to_owned(), |id| id.to_string()));
    }
    if own.metadata.as_deref() != Some(record.metadata.as_slice()) {
        let found = String::from_utf8_lossy(own.metadata.as_deref().unwrap_or_default());
        return differs("metadata", String::from_utf8_lossy(&record.metadata), found);
    }
    let counterparty = transfer.map(|transfer| transfer.counterparty.as_str());
    if own.related_wallet_id.as_deref() != counterparty {
        let (expected, found) = (counterparty.unwrap_or("none"), own.related_wallet_id.as_deref().unwrap_or("none"));
        return differs("related wallet", expected, found);
    }
    let description = record.event.description().map(|description| description.as_str());
    if own.description.as_deref() != description {
        let (expected, found) = (description.unwrap_or("none"), own.description.as_deref().unwrap_or("none"));
        return differs("description", expected, found);
    }
    Ok(())
}

/// The signed amount that an event moves, in minor units, and what the ledger calls it; `None` if it moves none.
fn movement(event: &WalletEvent) -> Option<(i64, &'static str)> {
    match event {
        WalletEvent::WalletCreated { .. } => None,
        WalletEvent::WalletCredited { amount, transfer, .. } => {
            Some((amount.minor(), if transfer.is_some() { "TRANSFER_IN" } else { "CREDIT" }))
        }
        WalletEvent::WalletDebited { amount, transfer, .. } => {
            Some((-amount.minor(), if transfer.is_some() { "TRANSFER_OUT" } else { "DEBIT" }))
        }
    }
}

fn differs(what: &str, expected: impl Display, found: impl Display) -> Result<(), Difference> {
    Err((format!("{what} {expected}"), format!("{what} {found}")))
}

/// A posting in a few words.
pub(super) fn described(posting: &PostingRow) -> String {
    format!("{} on {}", named(posting.amount, &posting.currency), posting.account)
}

/// What the ledger's accounts come to in one currency, in minor units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balances {
    /// All wallets' accounts.
    pub wallets: i128,
    /// Money on its way between the legs of a transfer.
    pub clearing: i128,
    /// Everything.
    pub all: i128,
}

/// Sums by currency.
pub(super) type Ledger = BTreeMap<String, Balances>;

/// Adds a posting.
pub(super) fn add(ledger: &mut Ledger, posting: &PostingRow) {
    let balances = match ledger.get_mut(&posting.currency) {
        Some(balances) => balances,
        None => ledger.entry(posting.currency.clone()).or_default(),
    };
    let amount = i128::from(posting.amount);
    balances.all += amount;
    if posting.account.starts_with("wallet/") {
        balances.wallets += amount;
    } else if posting.account.starts_with("clearing/") {
        balances.clearing += amount;
    }
}

/// Adds what an event would have posted that was discarded: the wallet's side, and a transfer's way through clearing. Both sides
/// are missing, so that all accounts together still come to what they come to.
pub(super) fn add_discarded(ledger: &mut Ledger, record: &EventRecord) {
    if let Some((amount, _)) = movement(&record.event) {
        let balances = ledger.entry(record.event.currency().code().to_owned()).or_default();
        balances.wallets += i128::from(amount);
        if record.event.transfer().is_some() {
            balances.clearing -= i128::from(amount);
        }
    }
}
