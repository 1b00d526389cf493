//! Idempotency keys: what a key is compared by, the answer made again, and forgetting.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::log::{EventLog, KeyRecord, KeyScope, RecordedEvent};
use crate::sequencer::{Answer, CommandError, Request};
use crate::wallet::{Command, Wallet};

/// How long a key is kept at least.
const KEPT: TimeDelta = TimeDelta::hours(24);
/// How often old keys are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// How many keys are forgotten in one statement.
const FORGET_MAX: usize = 10_000;

/// The key of a request, if it has one.
pub(crate) fn scope(request: &Request) -> Option<KeyScope> {
    request.idempotency_key.as_ref().map(|key| KeyScope {
        wallet_id: request.command.wallet_id().clone(),
        command_kind: request.command.kind(),
        key: key.clone(),
    })
}

/// What a command is compared by: SHA-256 over its fields, each with its length so that no two commands run together.
pub(crate) fn fingerprint(command: &Command) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    field(command.kind());
    field(command.wallet_id().as_str());
    match command {
        Command::Create { owner_id, currency, initial_balance, .. } => {
            field(owner_id.as_str());
            field(currency.code());
            field(&initial_balance.minor().to_string());
        }
        Command::Credit { amount, description, .. } | Command::Debit { amount, description, .. } => {
            field(amount);
            // A missing description is not an empty one.
            field(if description.is_some() { "described" } else { "" });
            field(description.as_ref().map_or("", |text| text.as_str()));
        }
        Command::Transfer { to_wallet_id, amount, description, .. } => {
            field(to_wallet_id.as_str());
            field(amount);
            field(if description.is_some() { "described" } else { "" });
            field(description.as_ref().map_or("", |text| text.as_str()));
        }
    }
    hash.finalize().into()
}

/// Makes the answer of an earlier command again, from its events. `current` is each wallet as it is now: what never
/// changes about it is taken from there, and the rest from the event, which carries the balance as of itself.
pub(super) async fn replay<L: EventLog>(
    log: &L,
    record: &KeyRecord,
    wallet: &Wallet,
    counterparty: Option<&Wallet>,
) -> Result<Answer, CommandError> {
    let wrong =
        |what: &str| CommandError::Corrupt(format!("the events of idempotency key {:?}: {what}", record.scope.key));
    let events = log
        .read(record.position - 1, record.event_count as usize)
        .await
        .map_err(|_| CommandError::Unavailable { maybe_done: true, retry_after: super::RETRY_AFTER })?;
    let last_of = |wallet: &Wallet| -> Result<(Wallet, RecordedEvent), CommandError> {
        let recorded = events.iter().rfind(|event| event.stream == wallet.id).ok_or_else(|| wrong("missing"))?;
        let event = recorded.decode().map_err(|error| wrong(&error.to_string()))?;
        let then = Wallet {
            balance: event.balance(),
            version: recorded.revision,
            updated_at: recorded.recorded_at,
            ..wallet.clone()
        };
        Ok((then, recorded.clone()))
    };
    let (then, recorded) = last_of(wallet)?;
    let transfer = match counterparty {
        None => None,
        Some(counterparty) => {
            let event = recorded.decode().map_err(|error| wrong(&error.to_string()))?;
            let id = event.transfer().ok_or_else(|| wrong("no transfer"))?.id;
            Some((id, last_of(counterparty)?.0))
        }
    };
    let position = record.position + i64::from(record.event_count) - 1;
    Ok(Answer { wallet: then, transfer, position, replayed: true })
}

/// Forgets keys older than 24 hours, now and every ten minutes until stopped.
pub async fn forget_old_keys<L: EventLog>(log: L, stop: CancellationToken) {
    loop {
        match log.forget_keys(Utc::now() - KEPT, FORGET_MAX).await {
            // More may be left: go on, yielding to whoever else wants the database.
            Ok(forgotten) if forgotten as usize == FORGET_MAX => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "old idempotency keys could not be forgotten; trying again later"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FORGET_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wallet::{Description, WalletId};

    #[test]
    fn commands_that_differ_have_fingerprints_that_differ() {
        let id = |text: &str| WalletId::new(text).expect("an id");
        let described = |text: &str| Command::Credit {
            wallet_id: id("a"),
            amount: "1".to_owned(),
            description: Description::new(text).ok(),
        };
        let commands = [
            Command::credit(id("a"), "1"),
            Command::credit(id("a"), "11"),
            Command::credit(id("a1"), "1"),
            Command::debit(id("a"), "1"),
            Command::transfer(id("a"), id("b"), "1"),
            described(""),
            described("x"),
        ];
        let fingerprints: std::collections::HashSet<_> = commands.iter().map(fingerprint).collect();
        assert_eq!(fingerprints.len(), commands.len());
        assert_eq!(fingerprint(&commands[0]), fingerprint(&commands[0].clone()));
    }
}
