//! The proof that log, outbox, topic, ledger and read model tell the same story.
//!
//! Everything is computed again from the log and compared as of one position, so that traffic does not disturb it. Two passes
//! read the log, each page by page: one in the order of positions, with the ledger and the topic merged in, which have the same
//! order; one wallet after wallet, with the read model and the snapshots. Neither holds more than a few pages.

mod copy;
mod drain;
mod history;
mod order;
mod posting;
mod proof;
mod rows;
mod strays;
mod topic;
mod withheld;

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::kafka::{EVENTS_TOPIC, KafkaConfig, TopicReader};
use crate::kurrentdb::KurrentLog;
use crate::lag::LagError;
use crate::log::Position;
use crate::money::named;
use crate::postgres::Database;
use crate::verify::drain::Drained;
use crate::verify::history::{Bounds, Histories};
use crate::verify::order::Order;
use crate::verify::posting::Ledger;
use crate::verify::proof::Finding;
use crate::verify::topic::TopicScan;

pub use proof::{Check, Proof};
pub(crate) use rows::{
    DiscardedRow, EventRow, KeyRow, OutboxRow, ParkedRow, PostingRow, SnapshotRow, Strangers, Stray, StreamId,
    WalletRow,
};
pub(crate) use withheld::WithheldSpan;

/// How long the broker may take over each answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// How to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How long to wait for the relay and the projections to come through the position that is verified.
    pub wait_max: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions { wait_max: Duration::from_secs(30) }
    }
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What it is doing, in a word or two.
    pub stage: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is; 0 where that is not known.
    pub total: u64,
}

/// Why nothing could be verified. A difference is no error, and a broker that is away is a difference.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The database did not answer; it may well do so later.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database refused, or a table is not what it should be.
    #[error("the database refused: {0}")]
    Refused(String),
}

impl From<LagError> for VerifyError {
    fn from(error: LagError) -> Self {
        match error {
            LagError::Away(reason) => VerifyError::Away(reason),
            LagError::Refused(reason) => VerifyError::Refused(reason),
        }
    }
}

/// [`verify`], where the log may be the copy of an event store: it first waits, as long as the options allow, until the copy has
/// what the store has now. The first check says whether it has; where the log is no copy there is no such check.
///
/// # Errors
/// As [`verify`]. A store that is away is a difference.
pub async fn verify_copy(
    database: &Database,
    event_store: Option<&KurrentLog>,
    kafka: Option<&KafkaConfig>,
    options: &VerifyOptions,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<Proof, VerifyError> {
    let check = match event_store {
        Some(store) => copy::wait(database, store, options.wait_max, progress).await?,
        None => None,
    };
    let mut proof = verify(database, kafka, options, progress).await?;
    if let Some(check) = check {
        proof.ok &= check.ok;
        proof.checks.insert(0, check);
    }
    Ok(proof)
}

/// Computes everything again from the log and compares, as of the log's head when it begins.
///
/// `kafka` is `None` where no broker runs: the topic is then not compared, and the proof says so. Where the relay or a
/// projection is behind for longer than the options allow, that is a difference, and each table is compared as far as it got.
///
/// # Errors
/// [`VerifyError`] where the database does not answer.
pub async fn verify(
    database: &Database,
    kafka: Option<&KafkaConfig>,
    options: &VerifyOptions,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<Proof, VerifyError> {
    let drained = drain::wait(database, options.wait_max, progress).await?;
    let head = drained.position;
    let discarded = database.discarded_strangers().await?;
    let withheld = database.withheld_spans().await?;
    let (scan, unread) = match open_topic(kafka, drained.published, options.wait_max, discarded, withheld).await {
        Ok(scan) => (Some(scan), None),
        Err(check) => (None, Some(check)),
    };
    let mut order = Order::new(drained.ledger);
    let scan = order.scan(database, head, scan, progress).await?;
    let topic = match (finish_topic(scan).await?, unread) {
        (Some(check), _) | (None, Some(check)) => check,
        (None, None) => topic_check(false, "a topic that can be read", "nothing was read"),
    };
    let mut histories = Histories::new(Bounds { head, read_model: drained.read_model, ledger: drained.ledger });
    histories.scan(database, progress).await?;
    progress(VerifyProgress { stage: "keys and the rest", done: 0, total: 0 });
    let strays = strays::find(database, &mut order, &mut histories).await?;

    let in_transit = in_transit(database, drained.ledger).await?;
    let double_entry = double_entry_check(&order.sums, &in_transit, drained.ledger == head, drained.ledger);
    let money = money_check(&histories, &order.sums, order.discarded, drained.ledger);
    let Drained { ledger, read_model, .. } = drained;
    let checks = vec![
        drained.check,
        strays.parked,
        strays.discarded,
        order.log.check(format!("positions 1 to {head} without a gap"), format!("{head} events")),
        histories
            .histories
            .check("each wallet's events follow from each other", format!("{} wallets", histories.wallets)),
        strays.outbox,
        topic,
        order.ledger.check(
            format!("two postings for each movement up to position {ledger}, none besides"),
            format!("{} postings", order.postings),
        ),
        double_entry,
        money,
        histories.read_model.check(
            format!("a row for each wallet, its state at position {read_model} or later"),
            format!("{} rows", histories.wallets),
        ),
        histories.snapshots.check("the state at its revision", format!("{} snapshots", histories.snapshots_compared)),
        strays.keys,
        strays.checkpoints,
    ];
    Ok(Proof { position: head, ok: checks.iter().all(|check| check.ok), checks })
}

fn topic_check(ok: bool, expected: impl Into<String>, actual: impl Into<String>) -> Check {
    Check { name: "topic".to_owned(), ok, expected: expected.into(), actual: actual.into() }
}

/// The topic ready to be read, or the check that there is to make of it.
async fn open_topic(
    kafka: Option<&KafkaConfig>,
    published: Position,
    wait_max: Duration,
    discarded: Strangers,
    withheld: Vec<WithheldSpan>,
) -> Result<TopicScan, Check> {
    let Some(config) = kafka.cloned() else {
        return Err(topic_check(true, "as far as a broker runs", "not compared: no broker runs"));
    };
    let opening = tokio::task::spawn_blocking(move || TopicReader::open(&config, EVENTS_TOPIC, BROKER_TIMEOUT));
    match opening.await {
        Ok(Ok(Some(reader))) => Ok(TopicScan::new(reader, published, wait_max, discarded, withheld)),
        Ok(Ok(None)) if published == 0 => Err(topic_check(true, "nothing published", "no topic yet")),
        Ok(Ok(None)) => Err(topic_check(false, "a topic", format!("the broker has no topic {EVENTS_TOPIC}"))),
        Ok(Err(reason)) => Err(topic_check(false, "a broker that answers", reason)),
        Err(error) => Err(topic_check(false, "a topic that can be read", format!("reading it failed: {error}"))),
    }
}

async fn finish_topic(scan: Option<TopicScan>) -> Result<Option<Check>, VerifyError> {
    let Some(mut scan) = scan else { return Ok(None) };
    let finishing = tokio::task::spawn_blocking(move || {
        scan.finish();
        scan.check()
    });
    finishing.await.map(Some).map_err(|error| VerifyError::Refused(format!("reading the topic failed: {error}")))
}

/// What is on its way as of a position, in minor units by currency: transfers whose receiving leg is not there yet. Only an event
/// store of its own has such, because there the legs are two appends.
async fn in_transit(database: &Database, through: Position) -> Result<BTreeMap<&'static str, i128>, VerifyError> {
    let mut sums = BTreeMap::new();
    let mut after = 0;
    loop {
        let page =
            database.in_transit_at(through, after).await.map_err(|error| VerifyError::Refused(error.to_string()))?;
        let Some(last) = page.last() else { return Ok(sums) };
        after = last.position;
        // One that cannot be read is a difference already, in the log.
        for event in page.iter().filter_map(|recorded| recorded.decode().ok()) {
            *sums.entry(event.currency().code()).or_default() +=
                event.amount().map_or(0, |amount| i128::from(amount.minor()));
        }
    }
}

/// All accounts together come to nothing. Each clearing account holds what is in transit, where no transfer can be half posted.
fn double_entry_check(
    sums: &Ledger,
    in_transit: &BTreeMap<&'static str, i128>,
    is_whole: bool,
    through: Position,
) -> Check {
    let mut finding = Finding::new("double entry");
    for (code, balances) in sums {
        if balances.all != 0 {
            finding.differs(format!("all accounts in {code}"), named(0, code), named(balances.all, code));
        }
        let on_its_way = in_transit.get(code.as_str()).copied().unwrap_or(0);
        if is_whole && balances.clearing != on_its_way {
            finding.differs(format!("clearing/{code}"), named(on_its_way, code), named(balances.clearing, code));
        }
    }
    let currencies: Vec<_> = sums.iter().map(|(code, balances)| named(balances.all, code)).collect();
    let mut actual = if currencies.is_empty() { "no postings".to_owned() } else { currencies.join(", ") };
    for (code, amount) in in_transit {
        actual.push_str(&format!("; {} in transit", named(*amount, code)));
    }
    finding.check(format!("all accounts sum to zero in each currency at position {through}"), actual)
}

/// What the wallets hold by their events, and by the ledger's accounts with what was discarded.
fn money_check(histories: &Histories, sums: &Ledger, discarded: u64, through: Position) -> Check {
    let mut finding = Finding::new("money");
    let by_events: Vec<_> =
        histories.balances.iter().filter(|(_, held)| **held != 0).map(|(code, held)| (*code, *held)).collect();
    let by_accounts: Vec<_> = sums
        .iter()
        .filter(|(_, balances)| balances.wallets != 0)
        .map(|(code, balances)| (code.as_str(), balances.wallets))
        .collect();
    let words = |held: &[(&str, i128)]| match held {
        [] => "nothing".to_owned(),
        held => held.iter().map(|(code, minor)| named(*minor, code)).collect::<Vec<_>>().join(", "),
    };
    if by_events != by_accounts {
        finding.differs("the ledger's wallets", format!("{} by the events", words(&by_events)), words(&by_accounts));
    }
    let held = match discarded {
        0 => words(&by_accounts),
        discarded => format!("{}, with what the ledger lacks by {discarded} discarded events", words(&by_accounts)),
    };
    finding.check(format!("{} held by the events up to position {through}", words(&by_events)), held)
}
