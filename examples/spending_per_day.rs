//! A projection of one's own, with a table of its own: what each wallet spends a day. `cargo run --example spending_per_day`
//!
//! The rows and the checkpoint that stands for them are one transaction, so each event counts exactly once, whatever is
//! restarted or delivered again in between. That holds for what is written with the connection that `apply` is given, and for
//! nothing else.

use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use chrono::NaiveDate;
use wallex::log::Metadata;
use wallex::postgres::{PgConnection, sqlx};
use wallex::{
    Amount, ApplyError, Command, Config, Currency, EventRecord, OwnerId, Projection, WalletEvent, WalletId, Wallex,
};

struct SpendingPerDay;

impl Projection for SpendingPerDay {
    /// Its consumer group as well, and the name of its checkpoints: it never changes.
    fn name(&self) -> &str {
        "spending-per-day"
    }

    async fn prepare(&mut self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let table = "CREATE TABLE IF NOT EXISTS spending_per_day (
                         wallet_id text NOT NULL,
                         day date NOT NULL,
                         currency text NOT NULL,
                         spent bigint NOT NULL, -- minor units
                         payments bigint NOT NULL,
                         last_position bigint NOT NULL,
                         last_revision bigint NOT NULL,
                         last_correlation_id text NOT NULL,
                         PRIMARY KEY (wallet_id, day))";
        sqlx::query(table).execute(transaction).await?;
        Ok(())
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        for record in events {
            let WalletEvent::WalletDebited { amount, currency, .. } = &record.event else { continue };
            // An error that no retry can mend is permanent: it parks this wallet, and the others go on.
            let metadata: Metadata =
                serde_json::from_slice(&record.metadata).map_err(|error| ApplyError::Permanent(error.to_string()))?;
            sqlx::query(
                "INSERT INTO spending_per_day AS total VALUES ($1, $2, $3, $4, 1, $5, $6, $7)
                 ON CONFLICT (wallet_id, day) DO UPDATE
                    SET spent = total.spent + excluded.spent, payments = total.payments + 1,
                        last_position = excluded.last_position, last_revision = excluded.last_revision,
                        last_correlation_id = excluded.last_correlation_id",
            )
            .bind(record.wallet_id.as_str())
            .bind(record.recorded_at.date_naive())
            .bind(currency.code())
            .bind(amount.minor())
            .bind(record.position)
            .bind(record.revision)
            .bind(&*metadata.correlation_id)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir()?;
    let mut wallex = Wallex::open(Config::embedded(folder.path())).await?;
    wallex.run_projection(SpendingPerDay);

    let (alice, shop) = (WalletId::new("alice")?, WalletId::new("shop")?);
    let opening = Amount::parse("100", Currency::USD)?;
    wallex.execute(Command::create(alice.clone(), OwnerId::new("owner-1")?, Currency::USD, opening)).await?;
    wallex.execute(Command::create(shop.clone(), OwnerId::new("owner-2")?, Currency::USD, Amount::ZERO)).await?;
    wallex.execute(Command::debit(alice.clone(), "20")).await?;
    wallex.execute(Command::transfer(alice, shop.clone(), "12.34")).await?;
    let answer = wallex.execute(Command::debit(shop, "0.34")).await?;
    wallex.projected(answer.position, Duration::from_secs(30)).await?;

    let rows: Vec<(String, NaiveDate, i64, i64, i64)> = sqlx::query_as(
        "SELECT wallet_id, day, spent, payments, last_revision FROM spending_per_day ORDER BY wallet_id, day",
    )
    .fetch_all(wallex.database().pool())
    .await?;
    for (wallet_id, day, spent, payments, revision) in rows {
        println!("{wallet_id} on {day}: {spent} cents in {payments} payments, the last at revision {revision}");
    }
    wallex.close().await;
    Ok(())
}
