//! Notifications, by a consumer group of their own: `cargo run --example notifications`
//!
//! A message to a customer cannot be part of a database transaction, so it is done in two steps:
//!
//! 1. A projection writes a row for each message that is due. The row and the checkpoint are one transaction: each event
//!    leaves exactly one row.
//! 2. A sender takes rows, sends, and marks them. If it dies between sending and marking, it sends again, so a message goes
//!    out *at least* once. The position goes with it: a receiver who keeps the positions that it has had drops the second.
//!
//! A Kafka client in any other language does without step 1 and subscribes to `wallet-events` under a group id of its own.
//! It gets each record at least once, in order per wallet, and deduplicates by the header `position`: an event has one
//! position for ever, and within a partition positions only grow, so one number a partition is enough to remember.

use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use wallex::postgres::{Database, PgConnection, sqlx};
use wallex::{
    Amount, ApplyError, Command, Config, Currency, EventRecord, OwnerId, Projection, WalletEvent, WalletId, Wallex,
};

/// The most that the sender takes at once.
const SEND_BATCH_MAX: i64 = 100;

struct Notifications;

impl Projection for Notifications {
    fn name(&self) -> &str {
        "notifications"
    }

    async fn prepare(&mut self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let table = "CREATE TABLE IF NOT EXISTS outgoing_notifications (
                         position bigint PRIMARY KEY, -- of the event, and the key to deduplicate by
                         wallet_id text NOT NULL,
                         message text NOT NULL,
                         due_since timestamptz NOT NULL,
                         sent_at timestamptz)";
        sqlx::query(table).execute(&mut *transaction).await?;
        let index = "CREATE INDEX IF NOT EXISTS outgoing_notifications_due
                         ON outgoing_notifications (position) WHERE sent_at IS NULL";
        sqlx::query(index).execute(transaction).await?;
        Ok(())
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        for record in events {
            let Some(message) = message(&record.event) else { continue };
            sqlx::query(
                "INSERT INTO outgoing_notifications (position, wallet_id, message, due_since) VALUES ($1, $2, $3, $4)",
            )
            .bind(record.position)
            .bind(record.wallet_id.as_str())
            .bind(message)
            .bind(record.recorded_at)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(())
    }
}

/// What to tell the owner; the event carries the balance after it, so nothing has to be looked up.
fn message(event: &WalletEvent) -> Option<String> {
    let (currency, balance) = (event.currency(), event.balance().to_text(event.currency()));
    let amount = event.amount()?.to_text(currency);
    let verb = if matches!(event, WalletEvent::WalletCredited { .. }) { "received" } else { "paid" };
    let whom = event.transfer().map(|transfer| match verb {
        "received" => format!(" from {}", transfer.counterparty),
        _ => format!(" to {}", transfer.counterparty),
    });
    Some(format!("you {verb} {amount} {currency}{}; your balance is {balance}", whom.unwrap_or_default()))
}

/// Sends what is due, oldest first, and marks it; answers with how many. The rows are locked meanwhile, so any number of
/// senders can work at once.
async fn send_due(database: &Database) -> Result<usize, Box<dyn Error>> {
    let mut transaction = database.pool().begin().await?;
    let due: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT position, wallet_id, message FROM outgoing_notifications
          WHERE sent_at IS NULL ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(SEND_BATCH_MAX)
    .fetch_all(&mut *transaction)
    .await?;
    for (position, wallet_id, message) in &due {
        // Here a mail or a push would go out, with the position as its idempotency key.
        println!("#{position} to the owner of {wallet_id}: {message}");
        sqlx::query("UPDATE outgoing_notifications SET sent_at = now() WHERE position = $1")
            .bind(position)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(due.len())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir()?;
    let mut wallex = Wallex::open(Config::embedded(folder.path())).await?;
    wallex.run_projection(Notifications);

    let (alice, bob) = (WalletId::new("alice")?, WalletId::new("bob")?);
    let opening = Amount::parse("100", Currency::USD)?;
    wallex.execute(Command::create(alice.clone(), OwnerId::new("owner-1")?, Currency::USD, opening)).await?;
    wallex.execute(Command::create(bob.clone(), OwnerId::new("owner-2")?, Currency::USD, Amount::ZERO)).await?;
    let answer = wallex.execute(Command::transfer(alice, bob, "12.34")).await?;
    wallex.projected(answer.position, Duration::from_secs(30)).await?;

    while send_due(wallex.database()).await? > 0 {}
    wallex.close().await;
    Ok(())
}
