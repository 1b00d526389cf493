//! Asks the database and the broker, and puts the two together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use crate::kafka::{EVENTS_TOPIC, KafkaConfig, OffsetReader, Offsets};
use crate::lag::behind::Behind;
use crate::lag::{BrokerState, GroupLag, LagError, LagReport, OutboxLag, PartitionLag, Standing};
use crate::postgres::Database;

/// How long the broker may take over an answer before it counts as away.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(2);

/// Something to ask for the lag again and again: it keeps its clients of the broker. Clones share them.
#[derive(Clone)]
pub struct LagProbe {
    database: Database,
    broker: Option<Arc<Mutex<Broker>>>,
}

struct Broker {
    offsets: OffsetReader,
    /// When the last question was put, and its answer.
    last: Option<(Instant, Result<Offsets, String>)>,
}

impl LagProbe {
    /// Asks this database and this broker; `None` where no broker runs. Nothing is sent yet.
    pub fn new(database: Database, kafka: Option<KafkaConfig>) -> Self {
        let broker = |config| Arc::new(Mutex::new(Broker { offsets: OffsetReader::new(config), last: None }));
        LagProbe { database, broker: kafka.map(broker) }
    }

    /// What is behind now. A broker that is away is part of the answer, not an error; it costs up to [`BROKER_TIMEOUT`].
    ///
    /// # Errors
    /// [`LagError`] where the database does not answer.
    pub async fn report(&self) -> Result<LagReport, LagError> {
        let standing = self.database.standing().await?;
        let groups: Vec<String> = standing.groups().into_iter().map(str::to_owned).collect();
        let from_database = async {
            let behind = Behind::find(&self.database, &standing).await?;
            Ok::<_, LagError>((behind, self.database.parked_wallets().await?))
        };
        let (from_database, offsets) = tokio::join!(from_database, self.offsets(groups));
        let (behind, parked) = from_database?;
        let (offsets, broker) = match offsets {
            Ok(offsets) => {
                let missing = offsets.watermarks.is_empty();
                let error = missing.then(|| format!("the broker has no topic {EVENTS_TOPIC} yet"));
                (offsets, BrokerState { connected: true, error })
            }
            Err(error) => (Offsets::default(), BrokerState { connected: false, error: Some(error) }),
        };
        let now = Utc::now();
        Ok(LagReport {
            outbox: OutboxLag {
                head: standing.head,
                published: standing.published,
                depth: (standing.head - standing.published).max(0),
                oldest_age_ms: behind.outbox().map(|since| age_ms(since, now)),
            },
            broker,
            groups: standing
                .groups()
                .into_iter()
                .map(|group| group_lag(group, &standing, &behind, &offsets, now))
                .collect(),
            parked,
        })
    }

    /// Asks the broker, off the runtime's threads since its client blocks. Whoever waited while somebody else asked the same
    /// shares the answer, so that a broker that is away does not make a queue.
    async fn offsets(&self, groups: Vec<String>) -> Result<Offsets, String> {
        let Some(broker) = &self.broker else {
            return Err("no broker runs".to_owned());
        };
        let arrived = Instant::now();
        let mut broker = Arc::clone(broker).lock_owned().await;
        if let Some((asked, answer)) = &broker.last
            && *asked >= arrived
        {
            return answer.clone();
        }
        let asking = tokio::task::spawn_blocking(move || {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let asked = Instant::now();
            let answer = broker.offsets.read(EVENTS_TOPIC, &groups, BROKER_TIMEOUT);
            broker.last = Some((asked, answer.clone()));
            answer
        });
        asking.await.unwrap_or_else(|error| Err(format!("asking the broker failed: {error}")))
    }
}

fn group_lag(group: &str, standing: &Standing, behind: &Behind, offsets: &Offsets, now: DateTime<Utc>) -> GroupLag {
    let known = offsets.watermarks.keys().next_back().map_or(0, |last| last + 1);
    let partitions: Vec<PartitionLag> = (0..standing.partitions().max(known))
        .map(|partition| {
            let watermarks = offsets.watermarks.get(&partition);
            let end = watermarks.map(|watermarks| watermarks.end);
            let committed = offsets.committed.get(&(group.to_owned(), partition)).copied();
            // Where nothing was ever published there is nothing to commit.
            let lag = match (end, committed) {
                (Some(end), Some(committed)) => Some((end - committed).max(0)),
                (Some(0), None) => Some(0),
                _ => None,
            };
            let behind_ms = behind.of(standing.through(group, partition), partition).map(|since| age_ms(since, now));
            PartitionLag { partition, end, committed, lag, position: standing.checkpoint(group, partition), behind_ms }
        })
        .collect();
    GroupLag {
        group: group.to_owned(),
        topic: EVENTS_TOPIC.to_owned(),
        position: standing.group_through(group),
        lag: partitions.iter().map(|partition| partition.lag).sum(),
        behind_ms: partitions.iter().filter_map(|partition| partition.behind_ms).max(),
        partitions,
    }
}

fn age_ms(since: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    // The event's time is another clock's; an event from the future is new.
    (now - since).num_milliseconds().max(0)
}
