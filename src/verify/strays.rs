//! What neither pass would meet: rows that speak of what the log does not have, and records put aside.

use crate::postgres::Database;
use crate::verify::history::Histories;
use crate::verify::order::Order;
use crate::verify::proof::{Finding, at};
use crate::verify::{Check, DiscardedRow, VerifyError};

/// The checks that are complete in themselves.
pub(super) struct Strays {
    /// Nothing is parked.
    pub parked: Check,
    /// What was discarded, to be known; it is no difference.
    pub discarded: Check,
    /// The outbox is the part of the log that is not published.
    pub outbox: Check,
    /// Keys stand for commands that are in the log.
    pub keys: Check,
    /// No checkpoint is beyond the log.
    pub checkpoints: Check,
}

/// Looks for them. Those that belong to a pass are added to what it found.
pub(super) async fn find(
    database: &Database,
    order: &mut Order,
    histories: &mut Histories,
) -> Result<Strays, VerifyError> {
    if let Some((account, position)) = database.posting_stray().await? {
        let place = format!("position {position}");
        order.ledger.differs(place, "no posting outside the log", format!("a posting on {account}"));
    }
    if let Some((wallet_id, position)) = database.read_model_stray().await? {
        histories.read_model.differs(at(&wallet_id, position), "no row without events", "a row");
    }
    if let Some(stream_id) = database.snapshot_stray().await? {
        let place = format!("stream {stream_id}");
        histories.snapshots.differs(place, "no snapshot without events", "a snapshot");
    }
    Ok(Strays {
        parked: parked(database).await?,
        discarded: discarded(database).await?,
        outbox: outbox(database, order).await?,
        keys: keys(database).await?,
        checkpoints: checkpoints(database).await?,
    })
}

async fn parked(database: &Database) -> Result<Check, VerifyError> {
    let mut finding = Finding::new("nothing parked");
    if let Some(row) = database.parked_row().await? {
        let wallet = row.wallet_id.as_deref().unwrap_or("(none)");
        let place = match row.position {
            Some(position) => at(wallet, position),
            None => format!("wallet {wallet}"),
        };
        let found = format!(
            "{} records of {} wallets; the first by {}: {}",
            row.records,
            row.wallets,
            row.projection,
            row.error.lines().next().unwrap_or_default()
        );
        finding.differs(place, "no records put aside", found);
    }
    Ok(finding.check("no records put aside", "none"))
}

async fn discarded(database: &Database) -> Result<Check, VerifyError> {
    let rows = database.discarded_counts().await?;
    let words = rows.iter().map(|DiscardedRow { projection, events, wallets, strangers }| {
        let events = (*events > 0).then(|| format!("{events} events of {wallets} wallets"));
        let strangers = (*strangers > 0).then(|| format!("{strangers} records of no wallet"));
        let what: Vec<String> = events.into_iter().chain(strangers).collect();
        format!("{projection}: {}", what.join(" and "))
    });
    let found = words.collect::<Vec<_>>().join("; ");
    let found = if found.is_empty() { "nothing".to_owned() } else { found };
    Ok(Finding::new("discarded").check("only what operators have discarded; `wallex dlq history` says why", found))
}

async fn outbox(database: &Database, order: &mut Order) -> Result<Check, VerifyError> {
    let row = database.outbox_row().await?;
    if row.last_event != row.head {
        let place = format!("position {}", row.head);
        order.log.differs(place, "the head to be the last event", format!("an event at {}", row.last_event));
    }
    let mut finding = Finding::new("outbox");
    let (expected, actual) = (row.head - row.published, row.pending);
    if expected != actual {
        let place = format!("published up to {} of {}", row.published, row.head);
        finding.differs(place, format!("{expected} events waiting"), format!("{actual} events waiting"));
    }
    Ok(finding.check("what is waiting is what is not published", format!("{actual} events waiting")))
}

async fn keys(database: &Database) -> Result<Check, VerifyError> {
    let mut finding = Finding::new("idempotency keys");
    let count = database.key_count().await?;
    if let Some(key) = database.key_stray().await? {
        let place = format!("{} (key {:?} of a {})", at(&key.wallet_id, key.position), key.key, key.command_kind);
        let found = match key.event_wallet_id {
            None => "no event there".to_owned(),
            Some(other) if other != key.wallet_id => format!("an event of wallet {other}"),
            Some(_) => format!("{} events, which the log does not have there", key.event_count),
        };
        finding.differs(place, "events of the command", found);
        finding.add_uncounted(key.alike - 1);
    }
    Ok(finding.check("each stands for events of its wallet", format!("{count} keys")))
}

async fn checkpoints(database: &Database) -> Result<Check, VerifyError> {
    let mut finding = Finding::new("checkpoints");
    for stray in database.checkpoint_strays().await? {
        finding.differs(stray.what, "a position within the log", format!("position {}", stray.position));
    }
    Ok(finding.check("none is beyond the log", "none is"))
}
