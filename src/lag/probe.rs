//! Asks the database and the broker, and puts the two together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, watch};

use crate::kafka::{DLQ_TOPIC, EVENTS_TOPIC, KafkaConfig, OffsetReader, Offsets, Watermarks};
use crate::kurrentdb::KurrentLog;
use crate::lag::behind::Behind;
use crate::lag::ingest::Known;
use crate::lag::state::{Broker, GroupFacts, OutboxFacts, Waiting, group_state, needs_help, outbox_state, state_of};
use crate::lag::{
    self, BrokerState, GroupLag, IngestLag, LagError, LagReport, OutboxLag, PartitionLag, Progress, Standing, State,
    TopicLag, TotalLag, ingest,
};
use crate::log::EventLog;
use crate::postgres::{Database, RelayStatus, WithheldWallet};
use crate::projection::is_nearly_full;

/// How long the broker may take over an answer before it counts as away.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the event store may take to say where it ends, where everything else is asked of the database alone.
const STORE_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Something to ask for the lag again and again: it keeps its clients of the broker. Clones share them.
#[derive(Clone)]
pub struct LagProbe {
    database: Database,
    broker: Option<Arc<Mutex<Asked>>>,
    /// Where the events are, if they are in an event store that was named.
    event_store: Option<KurrentLog>,
    /// The last report, and when it was asked for.
    last: Arc<watch::Sender<Option<(Instant, LagReport)>>>,
    is_asking: Arc<AtomicBool>,
    /// How long broker and event store may take over an answer.
    patience: Duration,
}

struct Asked {
    offsets: OffsetReader,
    /// When the last answer came, and what it was.
    last: Option<(Instant, Result<Offsets, String>)>,
}

impl LagProbe {
    /// Asks this database and this broker; `None` where no broker runs. Nothing is sent yet.
    pub fn new(database: Database, kafka: Option<KafkaConfig>) -> Self {
        let broker = |config| Arc::new(Mutex::new(Asked { offsets: OffsetReader::new(config), last: None }));
        LagProbe {
            database,
            broker: kafka.map(broker),
            event_store: None,
            last: Arc::new(watch::Sender::new(None)),
            is_asking: Arc::default(),
            patience: BROKER_TIMEOUT,
        }
    }

    /// Asks this event store too, where the events are in one.
    #[must_use]
    pub fn with_event_store(self, event_store: Option<KurrentLog>) -> Self {
        LagProbe { event_store, ..self }
    }

    /// Gives broker and event store this long for each answer: for those who ask once, with clients that have yet to connect.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        LagProbe { patience, ..self }
    }

    /// The last report if it is younger than this, without asking anybody. Where it is not, one is asked for in the
    /// background, for the next time.
    pub(crate) fn recent(&self, age_max: Duration) -> Option<LagReport> {
        let last = self.last.borrow().clone();
        let recent = last.filter(|(asked, _)| asked.elapsed() < age_max);
        if recent.is_none() && !self.is_asking.swap(true, Ordering::Relaxed) {
            let probe = self.clone();
            tokio::spawn(async move {
                if let Err(error) = probe.report().await {
                    tracing::debug!(%error, "the lag is not known");
                }
                probe.is_asking.store(false, Ordering::Relaxed);
            });
        }
        recent.map(|(_, report)| report)
    }

    /// What is behind now. A broker or an event store that is away is part of the answer, not an error; it costs up to
    /// [`BROKER_TIMEOUT`], or what [`LagProbe::with_patience`] was told.
    ///
    /// # Errors
    /// [`LagError`] where the database does not answer.
    pub async fn report(&self) -> Result<LagReport, LagError> {
        let asked = Instant::now();
        let standing = self.database.standing().await?;
        let groups: Vec<String> = standing.groups().into_iter().map(str::to_owned).collect();
        let from_database = async {
            let behind = Behind::find(&self.database, &standing).await?;
            Ok::<_, LagError>((behind, self.database.parked_wallets().await?, self.database.relay().await?))
        };
        let (from_database, offsets, ingest) =
            tokio::join!(from_database, self.offsets(groups), self.ingest(&standing));
        let (behind, parked, relay) = from_database?;
        let ingest = ingest?;
        let (offsets, broker, answered) = match offsets {
            Ok(offsets) if offsets.watermarks.is_empty() => {
                let error = Some(format!("the broker has no topic {EVENTS_TOPIC}"));
                (offsets, BrokerState { connected: true, error }, Broker::WithoutTopic)
            }
            Ok(offsets) => (offsets, BrokerState { connected: true, error: None }, Broker::Serving),
            Err(error) => {
                let broker = BrokerState { connected: false, error: Some(error) };
                (Offsets::default(), broker, Broker::Away)
            }
        };
        let moment =
            Moment { standing: &standing, behind: &behind, offsets: &offsets, broker: answered, now: Utc::now() };
        let outbox = moment.outbox(relay);
        let groups: Vec<GroupLag> = standing.groups().into_iter().map(|group| moment.group(group)).collect();
        let total = total(ingest.as_ref(), &outbox, &groups);
        let report = LagReport { total, ingest, outbox, broker, topics: moment.topics(), groups, parked };
        self.last.send_replace(Some((asked, report.clone())));
        Ok(report)
    }

    /// How far everything has come, with the event store's head where that can be asked.
    ///
    /// # Errors
    /// [`LagError`] where the database does not answer.
    pub(crate) async fn progress(&self) -> Result<Progress, LagError> {
        let head = async {
            let store = self.event_store.as_ref()?;
            tokio::time::timeout(STORE_HEAD_TIMEOUT, store.head()).await.ok()?.ok()
        };
        // Before the database: what is found to be copied may then be all of it.
        let head = head.await;
        let mut progress = lag::progress(&self.database).await?;
        if let Some(store) = &mut progress.event_store {
            store.head = head;
        }
        Ok(progress)
    }

    /// What the copy lacks, where the log is one.
    async fn ingest(&self, standing: &Standing) -> Result<Option<IngestLag>, LagError> {
        if !standing.is_a_copy {
            return Ok(None);
        }
        let (in_transit, reached) = tokio::try_join!(self.database.in_transit_now(), self.database.reached_now())?;
        let store = self.event_store.as_ref();
        let asked = ingest::ask(store, &self.database, reached.as_ref(), self.patience).await;
        let strays = reached.map(|reached| reached.strays).unwrap_or_default();
        Ok(Some(ingest::ingest_lag(standing, asked, Known { in_transit, strays }, Utc::now())))
    }

    /// Asks the broker, off the runtime's threads since its client blocks. Whoever waited while somebody else asked the same
    /// shares the answer, so that a broker that is away does not make a queue.
    async fn offsets(&self, groups: Vec<String>) -> Result<Offsets, String> {
        let Some(broker) = &self.broker else {
            return Err("no broker runs".to_owned());
        };
        let arrived = Instant::now();
        let mut broker = Arc::clone(broker).lock_owned().await;
        if let Some((answered, answer)) = &broker.last
            && *answered >= arrived
        {
            return answer.clone();
        }
        let patience = self.patience;
        let asking = tokio::task::spawn_blocking(move || {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let answer = broker.offsets.read(EVENTS_TOPIC, &groups, patience);
            broker.last = Some((Instant::now(), answer.clone()));
            answer
        });
        asking.await.unwrap_or_else(|error| Err(format!("asking the broker failed: {error}")))
    }
}

/// All that was found out at one time.
struct Moment<'a> {
    standing: &'a Standing,
    behind: &'a Behind,
    offsets: &'a Offsets,
    broker: Broker,
    now: DateTime<Utc>,
}

impl Moment<'_> {
    fn outbox(&self, (relay, withheld): (RelayStatus, Vec<WithheldWallet>)) -> OutboxLag {
        let standing = self.standing;
        let since = self.behind.outbox();
        let waiting = since.map(|since| self.waiting(since, Some(standing.published_unmoved)));
        OutboxLag {
            state: outbox_state(&OutboxFacts {
                broker: self.broker,
                waiting,
                relay: relay.state,
                withholds: !withheld.is_empty(),
            }),
            head: standing.head,
            published: standing.published,
            depth: (standing.head - standing.published).max(0),
            oldest_age_ms: since.map(|since| age_ms(since, self.now)),
            unmoved_ms: milliseconds(standing.published_unmoved),
            relay,
            withheld,
        }
    }

    fn topics(&self) -> Vec<TopicLag> {
        let found = [(EVENTS_TOPIC, &self.offsets.watermarks), (DLQ_TOPIC, &self.offsets.dead_letters)];
        let topic = |(topic, watermarks): (&str, &BTreeMap<i32, Watermarks>)| TopicLag {
            topic: topic.to_owned(),
            exists: (!matches!(self.broker, Broker::Away)).then_some(!watermarks.is_empty()),
            partitions: i32::try_from(watermarks.len()).unwrap_or(i32::MAX),
            records: (!watermarks.is_empty()).then(|| watermarks.values().map(|found| found.end - found.low).sum()),
        };
        found.into_iter().map(topic).collect()
    }

    fn group(&self, group: &str) -> GroupLag {
        let known = self.offsets.watermarks.keys().next_back().map_or(0, |last| last + 1);
        let all = 0..self.standing.partitions().max(known);
        let partitions: Vec<PartitionLag> = all.map(|partition| self.partition(group, partition)).collect();
        let most_urgent = partitions.iter().map(|partition| partition.state).max().unwrap_or(State::Idle);
        let position = self.standing.group_through(group);
        let members = self.offsets.members.get(group).copied();
        let parked = self.standing.parked.get(group).copied().unwrap_or(0);
        let parked_max = self.standing.parked_max.get(group).copied();
        let has_begun = partitions.iter().any(|it| it.position > Some(0) || it.committed.is_some());
        let state =
            group_state(&GroupFacts { broker: self.broker, members, has_begun, partitions: most_urgent, parked });
        GroupLag {
            group: group.to_owned(),
            topic: EVENTS_TOPIC.to_owned(),
            state,
            needs_help: needs_help(state, most_urgent)
                || parked_max.is_some_and(|parked_max| is_nearly_full(parked, parked_max)),
            members,
            position,
            lag: partitions.iter().map(|partition| partition.lag).sum(),
            behind_ms: partitions.iter().filter_map(|partition| partition.behind_ms).max(),
            parked,
            parked_max,
            partitions,
        }
    }

    fn partition(&self, group: &str, partition: i32) -> PartitionLag {
        let end = self.offsets.watermarks.get(&partition).map(|watermarks| watermarks.end);
        let committed = self.offsets.committed.get(&(group.to_owned(), partition)).copied();
        // Where nothing was ever published there is nothing to commit.
        let lag = match (end, committed) {
            (Some(end), Some(committed)) => Some((end - committed).max(0)),
            (Some(0), None) => Some(0),
            _ => None,
        };
        let checkpoint = self.standing.checkpoint(group, partition);
        let oldest = self.behind.of(self.standing.through(group, partition), partition);
        // A group cannot be blamed for what has not been published to it.
        let due = oldest.filter(|oldest| oldest.position <= self.standing.published);
        let state = match self.standing.paused.contains(&(group.to_owned(), partition)) {
            true => State::Full,
            false => state_of(due.map(|due| self.waiting(due.since, checkpoint.map(|through| through.unmoved)))),
        };
        PartitionLag {
            partition,
            state,
            end,
            committed,
            lag,
            position: checkpoint.map(|through| through.position),
            next_offset: checkpoint.and_then(|through| through.next_offset),
            unmoved_ms: checkpoint.map(|through| milliseconds(through.unmoved)),
            behind_ms: oldest.map(|oldest| age_ms(oldest.since, self.now)),
        }
    }

    fn waiting(&self, since: DateTime<Utc>, unmoved: Option<Duration>) -> Waiting {
        Waiting { oldest: Duration::from_millis(age_ms(since, self.now).unsigned_abs()), unmoved }
    }
}

fn total(ingest: Option<&IngestLag>, outbox: &OutboxLag, groups: &[GroupLag]) -> TotalLag {
    let copying = ingest.and_then(|ingest| ingest.state).unwrap_or(State::Idle);
    let ages = ingest.and_then(|ingest| ingest.behind_ms).into_iter().chain(outbox.oldest_age_ms);
    TotalLag {
        state: groups.iter().map(|group| group.state).fold(outbox.state.max(copying), State::max),
        needs_help: [copying, outbox.state].iter().any(|state| needs_help(*state, *state))
            || groups.iter().any(|group| group.needs_help),
        lag: groups.iter().map(|group| group.lag).sum(),
        behind_ms: groups.iter().filter_map(|group| group.behind_ms).chain(ages).max(),
        parked: groups.iter().map(|group| group.parked).sum(),
    }
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn age_ms(since: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    // The event's time is another clock's; an event from the future is new.
    (now - since).num_milliseconds().max(0)
}
