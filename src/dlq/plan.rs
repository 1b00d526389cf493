//! What a replay or a discard would do: shown before it is done, and then done as it was shown.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::dlq::letter::{balances, money};
use crate::dlq::{ActionKind, DlqError, Page, Queue, Selection};
use crate::log::{Position, RecordedEvent};
use crate::postgres::Database;
use crate::projection::{LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};

/// How many queues one command is about at most. What is beyond is left for the next.
pub const PLANNED_QUEUES_MAX: usize = 100_000;

/// How many queues are looked at in one go.
const PAGE: usize = 1_000;

/// How many events are named one by one: of each queue, and in all.
const EVENTS_OF_QUEUE_MAX: usize = 20;
const EVENTS_MAX: usize = 1_000;

/// How much of a queue is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Its first record alone.
    First,
    /// All that it has now.
    Whole,
}

/// What would be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What is planned.
    pub action: ActionKind,
    /// How many records it is about; not those of queues that have an obstacle.
    pub records: i64,
    /// The queues, in the order in which they would be dealt with.
    pub queues: Vec<PlannedQueue>,
    /// Whether there are more queues than one command is about.
    pub more: bool,
}

/// What would be done with one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedQueue {
    /// The group.
    pub group: String,
    /// The wallet; `None` for the records of no wallet.
    pub wallet_id: Option<String>,
    /// Its partition.
    pub partition: i32,
    /// How many records it is about, from the first one on.
    pub records: i64,
    /// How many records are behind them, and stay parked.
    pub stays: i64,
    /// The first one's position.
    pub first_position: Option<Position>,
    /// The last one's position.
    pub last_position: Option<Position>,
    /// The currency's code, where an event says it.
    pub currency: Option<String>,
    /// What the group's own tables hold of the wallet now, decimal text; `None` where they hold nothing, or are not wallex's.
    pub held: Option<String>,
    /// The balance that the first event departs from.
    pub balance_before: Option<String>,
    /// The balance that the last event leads to.
    pub balance_after: Option<String>,
    /// The first events one by one, in order.
    pub events: Vec<PlannedEvent>,
    /// What the group will lack, of a discard.
    pub lacks: Option<String>,
    /// Why nothing will be done with it; `None` where nothing is in the way.
    pub obstacle: Option<String>,
    /// The records of no wallet, one by one.
    #[serde(skip)]
    pub(super) strangers: Vec<i64>,
}

/// One event of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedEvent {
    /// Its position.
    pub position: Position,
    /// Its place in the wallet's stream.
    pub revision: i64,
    /// Its type.
    pub event_type: String,
    /// The balance after it, decimal text; `None` where it cannot be read.
    pub balance_after: Option<String>,
}

/// Plans what is to be done with a selection. `replayable` are the groups whose projections the caller can run; a discard does not
/// ask for them. A replay is always about whole queues.
///
/// # Errors
/// [`DlqError`] where the database does not answer.
pub async fn plan(
    database: &Database,
    action: ActionKind,
    selection: &Selection,
    reach: Reach,
    replayable: &[&str],
) -> Result<Plan, DlqError> {
    let projections = database.projections().await?;
    let mut queues: Vec<PlannedQueue> = Vec::new();
    let mut named = 0;
    loop {
        let page = Page { limit: PAGE as i64, offset: queues.len() as i64 };
        let found = database.parked_queues(selection, page).await?;
        let is_last = found.len() < PAGE;
        let ends = ends(database, &found, reach).await?;
        let held = held(database, &found).await?;
        for queue in &found {
            let at = |position: Option<Position>| position.and_then(|position| ends.get(&position));
            let last = if reach == Reach::First { queue.first_position } else { queue.last_position };
            let mut planned = planned(queue, action, reach, at(queue.first_position), at(last));
            planned.held = planned
                .wallet_id
                .as_ref()
                .and_then(|wallet| held.get(&(queue.group.clone(), wallet.clone())))
                .and_then(|minor| Some(money(*minor, at(queue.first_position).and_then(balances)?.2)));
            planned.obstacle = planned.obstacle.or_else(|| match action {
                ActionKind::Replay if !replayable.contains(&queue.group.as_str()) => Some(format!(
                    "this program does not have the projection {}: replay it from the one that runs it",
                    queue.group
                )),
                ActionKind::Discard if queue.wallet_id.is_some() && !projections.contains(&queue.group) => {
                    Some(format!("{} is no projection: whoever parked this lets it go", queue.group))
                }
                _ => None,
            });
            if planned.wallet_id.is_none() && planned.obstacle.is_none() {
                planned.strangers = strangers(database, selection, &queue.group).await?;
                planned.records = planned.strangers.len() as i64;
            }
            if planned.obstacle.is_none() && named < EVENTS_MAX {
                planned.events = events(database, &planned).await?;
                named += planned.events.len();
            }
            queues.push(planned);
        }
        if is_last || queues.len() >= PLANNED_QUEUES_MAX {
            let records = queues.iter().filter(|queue| queue.obstacle.is_none()).map(|queue| queue.records).sum();
            return Ok(Plan { action, records, queues, more: !is_last });
        }
    }
}

/// What is planned for one queue, by what is known of its first and last event.
fn planned(
    queue: &Queue,
    action: ActionKind,
    reach: Reach,
    first: Option<&RecordedEvent>,
    last: Option<&RecordedEvent>,
) -> PlannedQueue {
    let records = match (&queue.wallet_id, reach) {
        (Some(_), Reach::First) => 1,
        _ => queue.records,
    };
    let (begins, ends) = (first.and_then(balances), last.and_then(balances));
    let currency = begins.or(ends).map(|(_, _, currency)| currency);
    let mut planned = PlannedQueue {
        group: queue.group.clone(),
        wallet_id: queue.wallet_id.clone(),
        partition: queue.partition,
        records,
        stays: queue.records - records,
        first_position: queue.first_position,
        last_position: if reach == Reach::First { queue.first_position } else { queue.last_position },
        currency: currency.map(|currency| currency.code().to_owned()),
        held: None,
        balance_before: begins.map(|(before, _, currency)| money(before, currency)),
        balance_after: ends.map(|(_, after, currency)| money(after, currency)),
        events: Vec::new(),
        lacks: None,
        obstacle: None,
        strangers: Vec::new(),
    };
    match (action, &queue.wallet_id) {
        (ActionKind::Replay, None) => {
            let reason = "they belong to no wallet and stand for no event, so there is nothing to apply; discard them";
            planned.obstacle = Some(reason.to_owned());
        }
        (ActionKind::Replay, Some(_)) => {}
        (ActionKind::Discard, None) => planned.lacks = Some("nothing: they stand for no event".to_owned()),
        (ActionKind::Discard, Some(_)) => planned.lacks = Some(lacks(&planned, first)),
    }
    planned
}

/// What a group will lack once the events are discarded.
fn lacks(planned: &PlannedQueue, first: Option<&RecordedEvent>) -> String {
    let events = if planned.records == 1 { "1 event".to_owned() } else { format!("{} events", planned.records) };
    let way = match (&planned.balance_before, &planned.balance_after, &planned.currency) {
        (Some(before), Some(after), Some(currency)) => {
            format!("{events}, from a balance of {before} to {after} {currency}")
        }
        _ => events,
    };
    match planned.group.as_str() {
        READ_MODEL_PROJECTOR if first.is_some_and(|first| first.revision == 0) => {
            format!("the wallet for good, with every later event of it: {way}")
        }
        READ_MODEL_PROJECTOR => format!("{way}: until the wallet's next event its row stays as it is"),
        LEDGER_PROJECTOR => format!("the postings of {way}: later ones are right, sums over the account are not"),
        _ => way,
    }
}

/// The events at both ends of the queues.
async fn ends(
    database: &Database,
    queues: &[Queue],
    reach: Reach,
) -> Result<HashMap<Position, RecordedEvent>, DlqError> {
    let last = |queue: &Queue| queue.last_position.filter(|_| reach == Reach::Whole);
    let positions: Vec<Position> =
        queues.iter().flat_map(|queue| [queue.first_position, last(queue)]).flatten().collect();
    Ok(database.events_at(&positions).await?.into_iter().map(|event| (event.position, event)).collect())
}

/// What the groups' tables hold of the queues' wallets, by group and wallet.
async fn held(database: &Database, queues: &[Queue]) -> Result<HashMap<(String, String), i64>, DlqError> {
    let mut wallets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for queue in queues {
        wallets.entry(&queue.group).or_default().extend(queue.wallet_id.as_deref());
    }
    let mut held = HashMap::new();
    for (group, wallets) in wallets {
        let found = database.balances_held(group, &wallets).await?;
        held.extend(found.into_iter().map(|(wallet, minor)| ((group.to_owned(), wallet), minor)));
    }
    Ok(held)
}

async fn strangers(database: &Database, selection: &Selection, group: &str) -> Result<Vec<i64>, DlqError> {
    let selection = Selection { group: Some(group.to_owned()), ..selection.clone() };
    let mut records = Vec::new();
    loop {
        let page = database.parked_strangers(&selection, records.last().copied().unwrap_or(0), PAGE as i64).await?;
        let is_last = page.len() < PAGE;
        records.extend(page);
        if is_last {
            return Ok(records);
        }
    }
}

async fn events(database: &Database, planned: &PlannedQueue) -> Result<Vec<PlannedEvent>, DlqError> {
    let limit = planned.records.min(EVENTS_OF_QUEUE_MAX as i64);
    let page = Page { limit, offset: 0 };
    let stored = database.parked_of_queue(&planned.group, planned.wallet_id.as_deref(), page).await?;
    let positions: Vec<Position> = stored.iter().filter_map(|stored| stored.record.position).collect();
    let event = |event: &RecordedEvent| PlannedEvent {
        position: event.position,
        revision: event.revision,
        event_type: event.event_type.clone(),
        balance_after: balances(event).map(|(_, after, currency)| money(after, currency)),
    };
    Ok(database.events_at(&positions).await?.iter().map(event).collect())
}
