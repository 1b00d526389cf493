//! What readers ask of the tables that the projections fill: ledger rows, a ledger's summary, the list of wallets.
//!
//! Every statement runs read-only and under a time limit of the server's own, so that a reader who gives up leaves
//! nothing running.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row, Transaction};
use thiserror::Error;
use uuid::Uuid;

use crate::money::{Amount, Currency};
use crate::postgres::{Database, is_transient};
use crate::wallet::{OwnerId, Wallet, WalletId, WalletStatus};

/// Begins what a reader asks. The time limit is in milliseconds, and a second above the deadline that HTTP gives a read by
/// default: it is there for the statement that nobody waits for any more.
const BEGIN_READING: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = 6000";

/// What a wallet's own account in the ledger is called before its id.
const WALLET_ACCOUNT: &str = "wallet/";

/// The columns that [`ledger_row`] reads.
const LEDGER_COLUMNS: &str = "event_id, account, transaction_type, currency, amount, balance_after, description, \
                              reference_id, related_wallet_id, metadata, created_at";

/// Why a reader got no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The database is away, or did not answer in time; the same question may be answered later.
    #[error("the database did not answer: {0}")]
    Away(String),
    /// The database holds something that must not be, or refused for good.
    #[error("the database holds something wrong: {0}")]
    Wrong(String),
}

impl From<sqlx::Error> for QueryError {
    fn from(error: sqlx::Error) -> Self {
        if is_transient(&error) { QueryError::Away(error.to_string()) } else { QueryError::Wrong(error.to_string()) }
    }
}

/// Which way the money of a ledger row went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionType {
    /// In, from outside.
    Credit,
    /// Out, to outside.
    Debit,
    /// Out, to another wallet.
    TransferOut,
    /// In, from another wallet.
    TransferIn,
}

impl TransactionType {
    /// All of them.
    pub const ALL: [TransactionType; 4] =
        [TransactionType::Credit, TransactionType::Debit, TransactionType::TransferOut, TransactionType::TransferIn];

    /// As the ledger and the HTTP contract write it.
    pub fn as_str(self) -> &'static str {
        match self {
            TransactionType::Credit => "CREDIT",
            TransactionType::Debit => "DEBIT",
            TransactionType::TransferOut => "TRANSFER_OUT",
            TransactionType::TransferIn => "TRANSFER_IN",
        }
    }

    /// The one that is written so, capitals and all.
    pub fn from_text(text: &str) -> Option<Self> {
        TransactionType::ALL.into_iter().find(|known| known.as_str() == text)
    }
}

/// Which ledger rows: every condition that is there must hold.
#[derive(Clone, Debug, Default)]
pub struct LedgerFilter {
    /// Of this wallet.
    pub wallet_id: Option<WalletId>,
    /// Of this transfer.
    pub reference_id: Option<Uuid>,
    /// Of this type.
    pub transaction_type: Option<TransactionType>,
    /// From this time on.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub before: Option<DateTime<Utc>>,
    /// At most so many.
    pub limit: i64,
    /// After so many of the newest.
    pub offset: i64,
}

/// A ledger row: one event that moved a wallet's money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// The event's id.
    pub id: Uuid,
    /// Whose row it is.
    pub wallet_id: String,
    /// Which way the money went.
    pub transaction_type: TransactionType,
    /// The wallet's currency.
    pub currency: Currency,
    /// How much, in minor units.
    pub amount: Amount,
    /// The balance before it, in minor units.
    pub balance_before: Amount,
    /// The balance after it, in minor units.
    pub balance_after: Amount,
    /// What for.
    pub description: Option<String>,
    /// The transfer that it is a leg of.
    pub reference_id: Option<Uuid>,
    /// The wallet at the transfer's other end.
    pub related_wallet_id: Option<String>,
    /// The event's metadata, JSON.
    pub metadata: Option<String>,
    /// When it happened.
    pub created_at: DateTime<Utc>,
}

/// What a wallet's ledger adds up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSummary {
    /// Everything that came in, in minor units; it may be more than any one amount.
    pub credits: i128,
    /// Everything that went out, in minor units.
    pub debits: i128,
    /// How many rows there are.
    pub transactions: i64,
    /// The newest row; `None` where there is none.
    pub last: Option<LedgerRow>,
}

impl Database {
    async fn begin_reading(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool().begin_with(BEGIN_READING).await
    }

    /// The ledger rows that a filter lets through, newest first.
    ///
    /// # Errors
    /// [`QueryError`] where the database is away, too slow, or holds a row that is wrong.
    pub async fn ledger_rows(&self, filter: &LedgerFilter) -> Result<Vec<LedgerRow>, QueryError> {
        let account = filter.wallet_id.as_ref().map(account_of);
        let mut statement = format!("SELECT {LEDGER_COLUMNS} FROM ledger_postings WHERE leg = 0");
        // Only what is asked for becomes a condition, so that each kind of question gets a plan of its own.
        let conditions = [
            (account.is_some(), " AND account = $1"),
            (filter.reference_id.is_some(), " AND reference_id = $2"),
            (filter.transaction_type.is_some(), " AND transaction_type = $3"),
            (filter.from.is_some(), " AND created_at >= $4"),
            (filter.before.is_some(), " AND created_at < $5"),
        ];
        for (asked, condition) in conditions {
            if asked {
                statement.push_str(condition);
            }
        }
        statement.push_str(" ORDER BY position DESC LIMIT $6 OFFSET $7");
        let mut reading = self.begin_reading().await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(account)
            .bind(filter.reference_id)
            .bind(filter.transaction_type.map(TransactionType::as_str))
            .bind(filter.from)
            .bind(filter.before)
            .bind(filter.limit)
            .bind(filter.offset)
            .fetch_all(&mut *reading)
            .await?;
        reading.rollback().await?;
        rows.iter().map(ledger_row).collect()
    }

    /// What a wallet's ledger adds up to; zeros where the ledger has nothing of that wallet.
    ///
    /// # Errors
    /// [`QueryError`] where the database is away, too slow, or holds a row that is wrong.
    pub async fn ledger_summary(&self, wallet_id: &WalletId) -> Result<LedgerSummary, QueryError> {
        // One statement, so that the sums and the newest row are of the same moment. A sum of bigint is numeric: it has no
        // bound, and is read as text.
        let statement = format!(
            "SELECT sums.*, newest.*
               FROM (SELECT count(*) AS transactions,
                            coalesce(sum(amount) FILTER (WHERE amount > 0), 0)::text AS credits,
                            coalesce(-sum(amount) FILTER (WHERE amount < 0), 0)::text AS debits
                       FROM ledger_postings WHERE account = $1 AND leg = 0) sums
               LEFT JOIN LATERAL
                    (SELECT {LEDGER_COLUMNS} FROM ledger_postings
                      WHERE account = $1 AND leg = 0 ORDER BY position DESC LIMIT 1) newest ON true"
        );
        let mut reading = self.begin_reading().await?;
        let row =
            sqlx::query(sqlx::AssertSqlSafe(statement)).bind(account_of(wallet_id)).fetch_one(&mut *reading).await?;
        reading.rollback().await?;
        let transactions: i64 = row.try_get("transactions")?;
        Ok(LedgerSummary {
            credits: sum(&row, "credits")?,
            debits: sum(&row, "debits")?,
            transactions,
            last: if transactions > 0 { Some(ledger_row(&row)?) } else { None },
        })
    }

    /// Up to `limit` wallets of the read model whose ids come after `after`, in the order of their ids.
    ///
    /// # Errors
    /// [`QueryError`] where the database is away, too slow, or holds a row that is wrong.
    pub async fn listed_wallets(&self, after: Option<&WalletId>, limit: i64) -> Result<Vec<Wallet>, QueryError> {
        // Every id is greater than the empty text.
        let statement = "SELECT wallet_id, owner_id, currency, balance, status, version, created_at, updated_at
                           FROM read_model_wallets WHERE wallet_id > $1 ORDER BY wallet_id LIMIT $2";
        let mut reading = self.begin_reading().await?;
        let rows = sqlx::query(statement)
            .bind(after.map_or("", WalletId::as_str))
            .bind(limit)
            .fetch_all(&mut *reading)
            .await?;
        reading.rollback().await?;
        rows.iter().map(listed_wallet).collect()
    }

    /// Whether the table that the ledger routes read can be read.
    ///
    /// # Errors
    /// [`QueryError`] where it cannot.
    pub async fn check_ledger(&self) -> Result<(), QueryError> {
        self.check("SELECT FROM ledger_postings LIMIT 1").await
    }

    /// Whether the table that lists the wallets can be read.
    ///
    /// # Errors
    /// [`QueryError`] where it cannot.
    pub async fn check_read_model(&self) -> Result<(), QueryError> {
        self.check("SELECT FROM read_model_wallets LIMIT 1").await
    }

    async fn check(&self, statement: &'static str) -> Result<(), QueryError> {
        sqlx::query(statement).fetch_optional(self.pool()).await?;
        Ok(())
    }
}

fn account_of(wallet_id: &WalletId) -> String {
    format!("{WALLET_ACCOUNT}{wallet_id}")
}

fn wrong(what: impl std::fmt::Display) -> QueryError {
    QueryError::Wrong(what.to_string())
}

fn sum(row: &PgRow, column: &str) -> Result<i128, QueryError> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| wrong(format!("{column}: a sum that is no whole number")))
}

fn ledger_row(row: &PgRow) -> Result<LedgerRow, QueryError> {
    let id: Uuid = row.try_get("event_id")?;
    let account: String = row.try_get("account")?;
    let transaction_type: String = row.try_get("transaction_type")?;
    let signed: i64 = row.try_get("amount")?;
    let balance_after: i64 = row.try_get("balance_after")?;
    let amount = |minor: Option<i64>| {
        minor.and_then(Amount::from_minor).ok_or_else(|| wrong(format!("ledger row {id}: an impossible amount")))
    };
    Ok(LedgerRow {
        id,
        wallet_id: account
            .strip_prefix(WALLET_ACCOUNT)
            .ok_or_else(|| wrong(format!("ledger row {id}: leg 0 on the account {account}")))?
            .to_owned(),
        transaction_type: TransactionType::from_text(&transaction_type)
            .ok_or_else(|| wrong(format!("ledger row {id}: an unknown type {transaction_type}")))?,
        currency: currency(row)?,
        amount: amount(signed.checked_abs())?,
        balance_before: amount(balance_after.checked_sub(signed))?,
        balance_after: amount(Some(balance_after))?,
        description: row.try_get("description")?,
        reference_id: row.try_get("reference_id")?,
        related_wallet_id: row.try_get("related_wallet_id")?,
        metadata: row
            .try_get::<Option<Vec<u8>>, _>("metadata")?
            .map(String::from_utf8)
            .transpose()
            .map_err(|_| wrong(format!("ledger row {id}: metadata that is not UTF-8")))?,
        created_at: row.try_get("created_at")?,
    })
}

fn listed_wallet(row: &PgRow) -> Result<Wallet, QueryError> {
    let id: String = row.try_get("wallet_id")?;
    let owner_id: String = row.try_get("owner_id")?;
    let status: String = row.try_get("status")?;
    let balance: i64 = row.try_get("balance")?;
    if status != WalletStatus::Active.as_str() {
        return Err(wrong(format!("read model of {id}: an unknown status {status}")));
    }
    Ok(Wallet {
        owner_id: OwnerId::new(owner_id).map_err(|error| wrong(format!("read model of {id}: {error}")))?,
        currency: currency(row)?,
        balance: Amount::from_minor(balance).ok_or_else(|| wrong(format!("read model of {id}: a negative balance")))?,
        status: WalletStatus::Active,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        id: WalletId::new(id).map_err(|error| wrong(format!("read model: {error}")))?,
    })
}

fn currency(row: &PgRow) -> Result<Currency, QueryError> {
    Currency::from_code(&row.try_get::<String, _>("currency")?).map_err(wrong)
}
