//! A projection of one's own: what each wallet spends in a day.
//!
//!     cargo run --example spending_per_day
//!
//! What it can rely on: each event counts once in effect, because its rows and the checkpoint are one transaction; a wallet's
//! events come in order. So it adds up, and needs no key to deduplicate by. Whatever it wrote elsewhere (a file, another
//! system) would be written at least once, and would have to be deduplicated by `position`.

use std::error::Error;
use std::time::Duration;

use wallex::kafka::EventRecord;
use wallex::money::{Amount, Currency};
use wallex::postgres::{PgConnection, sqlx};
use wallex::projection::{ApplyError, Projection};
use wallex::runtime::{Config, Wallex};
use wallex::wallet::{Command, OwnerId, WalletEvent, WalletId};

struct SpendingPerDay;

impl Projection for SpendingPerDay {
    /// Names the checkpoints and the consumer group.
    fn name(&self) -> &str {
        "spending-per-day"
    }

    async fn prepare(&mut self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let table = "CREATE TABLE IF NOT EXISTS spending_per_day (
                         wallet_id text, day date, spent bigint NOT NULL, payments bigint NOT NULL, PRIMARY KEY (wallet_id, day))";
        sqlx::query(table).execute(transaction).await?;
        Ok(())
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let spent = |record: &EventRecord| match &record.event {
            WalletEvent::WalletDebited { amount, transfer: None, .. } => Some(amount.minor()),
            _ => None,
        };
        let payments = events.iter().filter_map(|record| Some((record, spent(record)?)));
        let (records, amounts): (Vec<&EventRecord>, Vec<i64>) = payments.unzip();
        // All of a batch in one statement: that is what makes a projection fast.
        let statement = "INSERT INTO spending_per_day (wallet_id, day, spent, payments)
             SELECT wallet_id, (at AT TIME ZONE 'UTC')::date AS day, sum(amount)::bigint, count(*)
               FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS payment (wallet_id, at, amount)
              GROUP BY wallet_id, day
                 ON CONFLICT (wallet_id, day) DO UPDATE
                SET spent = spending_per_day.spent + excluded.spent,
                    payments = spending_per_day.payments + excluded.payments";
        sqlx::query(statement)
            .bind(records.iter().map(|record| record.wallet_id.as_str()).collect::<Vec<_>>())
            .bind(records.iter().map(|record| record.recorded_at).collect::<Vec<_>>())
            .bind(amounts)
            .execute(transaction)
            .await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir = tempfile::tempdir()?;
    let mut wallex = Wallex::open(Config::embedded(data_dir.path())).await?;
    wallex.run_projection(SpendingPerDay);

    let mut position = 0;
    for name in ["ann", "bob"] {
        let (wallet, owner) = (WalletId::new(name)?, OwnerId::new(name)?);
        let hundred = Amount::parse("100", Currency::USD)?;
        wallex.execute(Command::create(wallet.clone(), owner, Currency::USD, hundred)).await?;
        for price in ["2.50", "19.99", "4"] {
            position = wallex.execute(Command::debit(wallet.clone(), price)).await?.position;
        }
    }
    wallex.projected(position, Duration::from_secs(30)).await?;

    let rows: Vec<(String, chrono::NaiveDate, i64, i64)> =
        sqlx::query_as("SELECT wallet_id, day, spent, payments FROM spending_per_day ORDER BY wallet_id, day")
            .fetch_all(wallex.database().pool())
            .await?;
    for (wallet, day, spent, payments) in rows {
        let spent = Amount::from_minor(spent).unwrap_or_default().to_text(Currency::USD);
        println!("{day}  {wallet}  {spent} USD in {payments} payments");
    }
    wallex.close().await;
    Ok(())
}
