//! The topics that wallex publishes to: what they should be, what they are, and what may be done about a difference.
//!
//! What is missing is made, and a setting is changed where that takes nothing away. Nothing is ever deleted, shrunk or cut
//! into more partitions: a wallet's events would be spread over two of them, and their order lost.

use std::time::{Duration, Instant};

use rdkafka::admin::ConfigResource;
use serde::Serialize;

use crate::kafka::administrator::{Administrator, TopicsError};
use crate::kafka::{
    DLQ_PARTITIONS, DLQ_RETENTION, DLQ_TOPIC, EVENTS_PARTITIONS, EVENTS_RETENTION, EVENTS_TOPIC, KafkaConfig,
};

/// How long an answer may take that can be done without.
const QUICK_ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long every broker may take to know what was changed, and how often that is looked at.
const SPREAD_TIME: Duration = Duration::from_secs(10);
const SPREAD_POLL: Duration = Duration::from_millis(50);
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
    Wanted { name: EVENTS_TOPIC, partitions: EVENTS_PARTITIONS, retention_ms: EVENTS_RETENTION.as_millis() as i64 },
    Wanted { name: DLQ_TOPIC, partitions: DLQ_PARTITIONS, retention_ms: DLQ_RETENTION.as_millis() as i64 },
];

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

impl TopicReport {
    /// Whether nothing is left that `--apply` could do.
    fn is_settled(&self) -> bool {
        self.settings.iter().all(|setting| matches!(setting.verdict, Verdict::Ok | Verdict::ByHand))
    }
}

impl Setting {
    /// Name and value, as `--apply` sets them.
    fn pair(&self) -> (&'static str, &str) {
        (self.name, &self.value)
    }
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
    inspect(&Administrator::new(kafka)?, kafka.embedded).await
}

/// Makes what is missing and sets what can be set, and tells what was done, a line each, and what the topics are then.
///
/// # Errors
/// [`TopicsError`] where the brokers do not answer or refuse.
pub async fn apply_topics(kafka: &KafkaConfig) -> Result<(Vec<String>, TopicsReport), TopicsError> {
    let administrator = Administrator::new(kafka)?;
    let report = inspect(&administrator, kafka.embedded).await?;
    let mut done = Vec::new();
    for topic in &report.topics {
        if topic.exists {
            done.extend(set(&administrator, topic).await?);
        } else {
            make(&administrator, topic).await?;
            done.push(format!("made {}", topic.topic));
        }
    }
    if done.is_empty() {
        return Ok((done, report));
    }
    // Any of the brokers may answer, and not each of them has heard of it yet.
    let until = Instant::now() + SPREAD_TIME;
    loop {
        let report = inspect(&administrator, kafka.embedded).await;
        let is_settled = report.as_ref().is_ok_and(|report| report.topics.iter().all(TopicReport::is_settled));
        if is_settled || Instant::now() > until {
            return Ok((done, report?));
        }
        tokio::time::sleep(SPREAD_POLL).await;
    }
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
            make(&administrator, &missing(wanted, cluster.brokers)).await
        }
    }
}

/// How many bytes a batch of [`EVENTS_TOPIC`] may have, as it lies there; `None` where the brokers do not say.
pub(crate) async fn batch_bytes_max(kafka: &KafkaConfig) -> Option<usize> {
    // The embedded broker tells of no settings.
    let administrator = Administrator::new(kafka).ok().filter(|_| !kafka.embedded)?;
    match tokio::time::timeout(QUICK_ANSWER_TIMEOUT, administrator.settings_of(EVENTS_TOPIC)).await {
        Ok(Ok(settings)) => number(&settings, "max.message.bytes"),
        Ok(Err(error)) => {
            tracing::warn!(%error, "how large a record may be is not known");
            None
        }
        Err(_) => {
            tracing::warn!("how large a record may be is not known: the brokers do not answer");
            None
        }
    }
}

/// With how many replicas in sync a partition of [`EVENTS_TOPIC`] takes records, and shows those that it took; `None` where the
/// brokers do not tell.
///
/// # Errors
/// [`TopicsError`] where they do not answer.
pub(crate) async fn in_sync_min(kafka: &KafkaConfig) -> Result<Option<usize>, TopicsError> {
    match Administrator::new(kafka)?.settings_of(EVENTS_TOPIC).await {
        Ok(settings) => Ok(number(&settings, IN_SYNC_MIN)),
        Err(TopicsError::Refused { reason, .. }) => {
            tracing::warn!(reason, "how many replicas have to be in sync is not known");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn number(settings: &ConfigResource, name: &str) -> Option<usize> {
    settings.get(name)?.value.as_deref()?.parse().ok()
}

const PARTITIONS: &str = "partitions";
const REPLICATION: &str = "replication";
const IN_SYNC_MIN: &str = "min.insync.replicas";

async fn inspect(administrator: &Administrator, embedded: bool) -> Result<TopicsReport, TopicsError> {
    let cluster = administrator.cluster().await?;
    let mut topics = Vec::with_capacity(WANTED.len());
    for wanted in &WANTED {
        let report = match cluster.topic(wanted.name) {
            Some((partitions, copies)) => {
                // The embedded broker tells of no settings.
                let found = if embedded { None } else { Some(administrator.settings_of(wanted.name).await?) };
                compared(wanted, cluster.brokers, partitions, copies, found.as_ref())
            }
            None => missing(wanted, cluster.brokers),
        };
        topics.push(report);
    }
    Ok(TopicsReport { ok: topics.iter().all(|topic| topic.ok), brokers: cluster.brokers, topics })
}

async fn make(administrator: &Administrator, report: &TopicReport) -> Result<(), TopicsError> {
    let count = |name: &str| {
        let setting = report.settings.iter().find(|setting| setting.name == name);
        setting.and_then(|setting| setting.value.parse().ok()).unwrap_or(1)
    };
    let settings: Vec<_> = report.settings.iter().filter(|setting| is_kafkas(setting)).map(Setting::pair).collect();
    administrator.make(report.topic, count(PARTITIONS), count(REPLICATION), &settings).await
}

/// Sets what can be set; a line for each.
async fn set(administrator: &Administrator, report: &TopicReport) -> Result<Vec<String>, TopicsError> {
    let settable = report.settings.iter().filter(|setting| setting.verdict == Verdict::Settable);
    let settings: Vec<_> = settable.map(Setting::pair).collect();
    if settings.is_empty() {
        return Ok(Vec::new());
    }
    administrator.set(report.topic, &settings).await?;
    Ok(settings.iter().map(|(name, value)| format!("set {name} of {} to {value}", report.topic)).collect())
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
            IN_SYNC_MIN,
            in_sync,
            in_sync,
            found(IN_SYNC_MIN),
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
