//! The topics that wallex publishes to: what they should be, what they are, and what may be done about a difference.
//!
//! What is missing is made, and a setting is changed where that takes nothing away. Nothing is ever deleted, shrunk or cut
//! into more partitions: a wallet's events would be spread over two of them, and their order lost.
//!
//! Topics are asked for all at once and never by name, since a question by name makes a topic where the broker is set to
//! make what is missing (Kafka's own default), with a number of partitions that nobody chose.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use serde::Serialize;
use thiserror::Error;

use crate::kafka::{DLQ_PARTITIONS, DLQ_TOPIC, EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig};

/// How long a question to the broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a topic just made is looked for.
const APPEARANCE_POLL: Duration = Duration::from_millis(50);
/// More copies than this are not asked for, however many brokers there are.
const COPIES_MAX: usize = 3;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What a topic should be.
struct Wanted {
    name: &'static str,
    partitions: i32,
    retention_ms: i64,
}

const WANTED: [Wanted; 2] = [
    Wanted { name: EVENTS_TOPIC, partitions: EVENTS_PARTITIONS, retention_ms: 7 * DAY_MS },
    Wanted { name: DLQ_TOPIC, partitions: DLQ_PARTITIONS, retention_ms: 30 * DAY_MS },
];

/// Why the topics are not known, or could not be put right.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// A setting that librdkafka does not know, or a value that it does not take.
    #[error("the Kafka client cannot be made: {0}")]
    Client(String),
    /// The broker did not answer, or not to us.
    #[error("{brokers} does not answer: {reason}")]
    Away {
        /// `bootstrap.servers`.
        brokers: String,
        /// Why, as far as the client knows.
        reason: String,
    },
    /// The broker refused.
    #[error("the broker does not let {what}: {reason}")]
    Refused {
        /// What was asked, such as `wallet-events be made`.
        what: String,
        /// What it said.
        reason: String,
    },
    /// Published to, keys would be placed otherwise than every consumer expects.
    #[error(
        "topic {topic} has {found} partitions and not {expected}, so nothing is published to it: keys would be placed \
         otherwise than every consumer expects. `wallex topics` says what can be done"
    )]
    Partitions {
        /// Its name.
        topic: &'static str,
        /// How many it has.
        found: usize,
        /// How many it should have.
        expected: i32,
    },
}

/// What should be, what is, and the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicsReport {
    /// Whether nothing differs.
    pub ok: bool,
    /// How many brokers the cluster has now.
    pub brokers: usize,
    /// The topics, by what they are for.
    pub topics: Vec<TopicReport>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicReport {
    /// Its name.
    pub topic: &'static str,
    /// Whether it is there.
    pub exists: bool,
    /// Whether it is all that it should be.
    pub ok: bool,
    /// What it is, setting by setting.
    pub settings: Vec<Setting>,
}

/// One property of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// `partitions`, `replication`, or the name that Kafka gives it.
    pub name: &'static str,
    /// For people: `10`, `2 or more`.
    pub should_be: String,
    /// What it is; `null` where there is no topic.
    pub is: Option<String>,
    /// What that means.
    pub verdict: Verdict,
    /// What an operator can do where `--apply` cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
    /// What `--apply` sets it to.
    #[serde(skip)]
    value: String,
}

/// What is to be done about a property of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// The topic is missing: it can be made.
    Missing,
    /// It can be set without anything being lost.
    Settable,
    /// Nothing that wallex does: see the advice.
    ByHand,
}

const REPARTITION: &str = "more partitions would place a wallet's next events elsewhere than its earlier ones and break \
                           their order, and fewer is not possible. Stop wallex, delete the topic, and run `wallex topics \
                           --apply`: what the projections lack is published again from the log; consumers of your own begin anew";
const REPLICATE: &str = "the copies of a topic that exists are added with Kafka's own kafka-reassign-partitions";

/// Asks the brokers what the topics are. Nothing is changed.
///
/// # Errors
/// [`TopicsError`] where the brokers do not answer.
pub async fn inspect_topics(kafka: &KafkaConfig) -> Result<TopicsReport, TopicsError> {
    Administrator::new(kafka)?.inspect().await
}

/// Makes what is missing and sets what can be set, and tells what was done, a line each, and what the topics are then.
///
/// # Errors
/// [`TopicsError`] where the brokers do not answer or refuse.
pub async fn apply_topics(kafka: &KafkaConfig) -> Result<(Vec<String>, TopicsReport), TopicsError> {
    let administrator = Administrator::new(kafka)?;
    let report = administrator.inspect().await?;
    let mut done = Vec::new();
    for topic in &report.topics {
        if topic.exists {
            done.extend(administrator.set(topic).await?);
        } else {
            administrator.make(topic).await?;
            done.push(format!("made {}", topic.topic));
        }
    }
    if done.is_empty() {
        return Ok((done, report));
    }
    let report = administrator.inspect().await?;
    Ok((done, report))
}

/// What whoever publishes to one of the topics needs before it does: the topic is made where it is missing, and has the
/// partitions that every consumer expects.
///
/// # Errors
/// [`TopicsError`]: the brokers do not answer or refuse, or the number of partitions is another.
pub(crate) async fn ensure_topic(kafka: &KafkaConfig, topic: &str) -> Result<(), TopicsError> {
    // The embedded broker makes its topics as it starts, and knows no administration.
    let Some(wanted) = WANTED.iter().find(|wanted| wanted.name == topic && !kafka.embedded) else {
        return Ok(());
    };
    let administrator = Administrator::new(kafka)?;
    let cluster = administrator.cluster().await?;
    match cluster.topic(topic) {
        Some((found, _)) if found == wanted.partitions as usize => Ok(()),
        Some((found, _)) => Err(TopicsError::Partitions { topic: wanted.name, found, expected: wanted.partitions }),
        None => {
            tracing::info!(topic, "the topic is missing; making it");
            administrator.make(&missing(wanted, cluster.brokers)).await
        }
    }
}

const PARTITIONS: &str = "partitions";
const REPLICATION: &str = "replication";

/// Asks and tells a cluster about its topics.
struct Administrator {
    client: Arc<AdminClient<LastError>>,
    brokers: String,
    /// The embedded broker tells of no settings.
    embedded: bool,
}

/// What the cluster says of itself.
struct Cluster {
    brokers: usize,
    /// Partitions, and copies of the partition that has the fewest; only topics that are there.
    topics: Vec<(String, usize, usize)>,
}

impl Cluster {
    fn topic(&self, name: &str) -> Option<(usize, usize)> {
        self.topics.iter().find(|(found, ..)| found == name).map(|(_, partitions, copies)| (*partitions, *copies))
    }
}

impl Administrator {
    fn new(kafka: &KafkaConfig) -> Result<Self, TopicsError> {
        let client = kafka
            .client_config(&[], &[])
            .create_with_context(LastError::default())
            .map_err(|error| TopicsError::Client(error.to_string()))?;
        Ok(Administrator { client: Arc::new(client), brokers: kafka.brokers.clone(), embedded: kafka.embedded })
    }

    fn options() -> AdminOptions {
        AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT))
    }

    fn away(&self, error: &KafkaError) -> TopicsError {
        let reason = self.client.inner().context().reason().unwrap_or_else(|| error.to_string());
        TopicsError::Away { brokers: self.brokers.clone(), reason }
    }

    async fn cluster(&self) -> Result<Cluster, TopicsError> {
        let client = Arc::clone(&self.client);
        let asked = tokio::task::spawn_blocking(move || client.inner().fetch_metadata(None, ANSWER_TIMEOUT)).await;
        let metadata = match asked {
            Ok(answer) => answer.map_err(|error| self.away(&error))?,
            Err(error) => return Err(TopicsError::Client(error.to_string())),
        };
        let described = |topic: &rdkafka::metadata::MetadataTopic| {
            let partitions = topic.partitions();
            let copies = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            (topic.name().to_owned(), partitions.len(), copies)
        };
        let topics = metadata.topics().iter().map(described).filter(|(_, partitions, _)| *partitions > 0).collect();
        Ok(Cluster { brokers: metadata.brokers().len(), topics })
    }

    async fn inspect(&self) -> Result<TopicsReport, TopicsError> {
        let cluster = self.cluster().await?;
        let mut topics = Vec::with_capacity(WANTED.len());
        for wanted in &WANTED {
            let report = match cluster.topic(wanted.name) {
                Some((partitions, copies)) => {
                    let found = if self.embedded { None } else { Some(self.settings_of(wanted.name).await?) };
                    compared(wanted, cluster.brokers, partitions, copies, found.as_ref())
                }
                None => missing(wanted, cluster.brokers),
            };
            topics.push(report);
        }
        Ok(TopicsReport { ok: topics.iter().all(|topic| topic.ok), brokers: cluster.brokers, topics })
    }

    async fn settings_of(&self, topic: &str) -> Result<ConfigResource, TopicsError> {
        let asked = self.client.describe_configs([&ResourceSpecifier::Topic(topic)], &Self::options()).await;
        let answer = asked.map_err(|error| self.away(&error))?;
        match answer.into_iter().next() {
            Some(Ok(settings)) => Ok(settings),
            Some(Err(code)) => {
                Err(TopicsError::Refused { what: format!("the settings of {topic} be read"), reason: code.to_string() })
            }
            None => Err(TopicsError::Refused {
                what: format!("the settings of {topic} be read"),
                reason: "it answered with nothing".to_owned(),
            }),
        }
    }

    /// Makes a topic that is missing, and waits until it is to be seen.
    async fn make(&self, report: &TopicReport) -> Result<(), TopicsError> {
        let value = |name: &str| {
            let setting = report.settings.iter().find(|setting| setting.name == name);
            setting.and_then(|setting| setting.value.parse().ok()).unwrap_or(1)
        };
        let copies = TopicReplication::Fixed(value(REPLICATION));
        let mut topic = NewTopic::new(report.topic, value(PARTITIONS), copies);
        for setting in report.settings.iter().filter(|setting| is_kafkas(setting)) {
            topic = topic.set(setting.name, &setting.value);
        }
        let asked = self.client.create_topics([&topic], &Self::options()).await;
        match asked.map_err(|error| self.away(&error))?.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                return Err(TopicsError::Refused {
                    what: format!("{} be made", report.topic),
                    reason: code.to_string(),
                });
            }
            _ => {}
        }
        let until = Instant::now() + ANSWER_TIMEOUT;
        while self.cluster().await?.topic(report.topic).is_none() && Instant::now() < until {
            tokio::time::sleep(APPEARANCE_POLL).await;
        }
        Ok(())
    }

    /// Sets what can be set; a line for each.
    async fn set(&self, report: &TopicReport) -> Result<Vec<String>, TopicsError> {
        let settable: Vec<&Setting> =
            report.settings.iter().filter(|setting| setting.verdict == Verdict::Settable).collect();
        if settable.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.settings_of(report.topic).await?;
        // The request names all that is to be set: whatever it does not name falls back to the broker's default.
        let mut request = AlterConfig::new(ResourceSpecifier::Topic(report.topic));
        for entry in found.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic) {
            if let Some(value) = entry.value.as_deref()
                && settable.iter().all(|setting| setting.name != entry.name)
            {
                request = request.set(&entry.name, value);
            }
        }
        for setting in &settable {
            request = request.set(setting.name, &setting.value);
        }
        let asked = self.client.alter_configs([&request], &Self::options()).await;
        if let Some(Err((_, code))) = asked.map_err(|error| self.away(&error))?.into_iter().next() {
            return Err(TopicsError::Refused {
                what: format!("the settings of {} be changed", report.topic),
                reason: code.to_string(),
            });
        }
        Ok(settable
            .iter()
            .map(|setting| format!("set {} of {} to {}", setting.name, report.topic, setting.value))
            .collect())
    }
}

/// Whether it is a setting in Kafka's own sense.
fn is_kafkas(setting: &Setting) -> bool {
    setting.name != PARTITIONS && setting.name != REPLICATION
}

/// How many copies have to have a record before it counts as published: one may be away, where there are as many.
fn copies_in_sync(copies: usize) -> usize {
    copies.saturating_sub(1).max(1)
}

fn copies_wanted(brokers: usize) -> usize {
    brokers.clamp(1, COPIES_MAX)
}

/// How what is found compares to what should be. `None`: there is no topic.
fn setting(
    name: &'static str,
    should_be: impl ToString,
    value: impl ToString,
    is: Option<&str>,
    is_good: impl FnOnce(&str) -> bool,
    otherwise: Verdict,
    advice: Option<&'static str>,
) -> Setting {
    let verdict = match is {
        None => Verdict::Missing,
        Some(is) if is_good(is) => Verdict::Ok,
        Some(_) => otherwise,
    };
    let advice = advice.filter(|_| verdict == Verdict::ByHand);
    Setting {
        name,
        should_be: should_be.to_string(),
        is: is.map(str::to_owned),
        verdict,
        advice,
        value: value.to_string(),
    }
}

/// Everything about a topic, in the order in which it is told. `found` finds what is there, if the topic is.
fn report<'a>(wanted: &Wanted, brokers: usize, copies: usize, found: impl Fn(&str) -> Option<&'a str>) -> TopicReport {
    let at_least = |least: i64| move |is: &str| is.parse::<i64>().is_ok_and(|is| is >= least);
    let copies_wanted = copies_wanted(brokers);
    let in_sync = copies_in_sync(copies);
    let settings = vec![
        setting(
            PARTITIONS,
            wanted.partitions,
            wanted.partitions,
            found(PARTITIONS),
            |is| is == wanted.partitions.to_string(),
            Verdict::ByHand,
            Some(REPARTITION),
        ),
        setting(
            REPLICATION,
            copies_wanted,
            copies_wanted,
            found(REPLICATION),
            at_least(copies_wanted as i64),
            Verdict::ByHand,
            Some(REPLICATE),
        ),
        // A stricter number is an operator's choice, for as long as the copies are there that it asks for.
        setting(
            "min.insync.replicas",
            in_sync,
            in_sync,
            found("min.insync.replicas"),
            |is| is.parse::<usize>().is_ok_and(|is| is >= in_sync && is <= copies),
            Verdict::Settable,
            None,
        ),
        // Longer is an operator's choice too, and shortening it would delete.
        setting(
            "retention.ms",
            format!("{} ({} days) or longer", wanted.retention_ms, wanted.retention_ms / DAY_MS),
            wanted.retention_ms,
            found("retention.ms"),
            |is| is == "-1" || at_least(wanted.retention_ms)(is),
            Verdict::Settable,
            None,
        ),
        // A bound in bytes would delete before the time is over, and compaction whatever a wallet has a later event for.
        setting("retention.bytes", -1, -1, found("retention.bytes"), |is| is == "-1", Verdict::Settable, None),
        setting(
            "cleanup.policy",
            "delete",
            "delete",
            found("cleanup.policy"),
            |is| is == "delete",
            Verdict::Settable,
            None,
        ),
        // Batches are kept as the relay has compressed them.
        setting(
            "compression.type",
            "producer",
            "producer",
            found("compression.type"),
            |is| is == "producer",
            Verdict::Settable,
            None,
        ),
    ];
    let exists = found(PARTITIONS).is_some();
    let ok = settings.iter().all(|setting| setting.verdict == Verdict::Ok);
    TopicReport { topic: wanted.name, exists, ok, settings }
}

fn missing(wanted: &Wanted, brokers: usize) -> TopicReport {
    report(wanted, brokers, copies_wanted(brokers), |_| None)
}

fn compared(
    wanted: &Wanted,
    brokers: usize,
    partitions: usize,
    copies: usize,
    settings: Option<&ConfigResource>,
) -> TopicReport {
    let (partitions, copies_found) = (partitions.to_string(), copies.to_string());
    let mut report = report(wanted, brokers, copies, |name| match name {
        PARTITIONS => Some(partitions.as_str()),
        REPLICATION => Some(copies_found.as_str()),
        // What the broker does not tell is not known to be right.
        other => settings.map(|all| all.get(other).and_then(|entry| entry.value.as_deref()).unwrap_or("unknown")),
    });
    // Where the broker has no settings, only what can be counted is compared.
    if settings.is_none() {
        report.settings.retain(|setting| !is_kafkas(setting));
        report.ok = report.settings.iter().all(|setting| setting.verdict == Verdict::Ok);
    }
    report
}

/// Keeps what the client said last about its connections: its errors themselves only say that time ran out.
#[derive(Default)]
pub(crate) struct LastError(Mutex<Option<String>>);

impl LastError {
    fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for LastError {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "administration");
        // "All brokers are down" comes last and says least.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}
