//! Asks a cluster about its topics, makes them and changes their settings. What they should be is not decided here.
//!
//! Topics are asked for all at once and never by name, since a question by name makes a topic where the broker is set to
//! make what is missing (Kafka's own default), with a number of partitions that nobody chose.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use thiserror::Error;

use crate::kafka::KafkaConfig;

/// How long a question to the broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one attempt at it may, before the client is asked what is the matter.
const ASK_TIME: Duration = Duration::from_secs(2);
/// How long a client that has failed may tell why.
const TELL_TIME: Duration = Duration::from_millis(100);
/// How often a topic just made is looked for.
const APPEARANCE_POLL: Duration = Duration::from_millis(50);

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

/// Asks and tells a cluster about its topics.
pub(super) struct Administrator {
    /// Asks; never sends a record. The other client does not tell what goes wrong with its connections.
    client: Arc<BaseProducer<LastError>>,
    tells: AdminClient<DefaultClientContext>,
    brokers: String,
}

/// What the cluster says of itself.
pub(super) struct Cluster {
    pub(super) brokers: usize,
    /// Partitions, and copies of the partition that has the fewest; only topics that are there.
    topics: Vec<(String, usize, usize)>,
}

impl Cluster {
    pub(super) fn topic(&self, name: &str) -> Option<(usize, usize)> {
        self.topics.iter().find(|(found, ..)| found == name).map(|(_, partitions, copies)| (*partitions, *copies))
    }
}

impl Administrator {
    pub(super) fn new(kafka: &KafkaConfig) -> Result<Self, TopicsError> {
        let config = kafka.client_config(&[], &[]);
        let failed = |error: KafkaError| TopicsError::Client(error.to_string());
        let client = Arc::new(config.create_with_context(LastError::default()).map_err(failed)?);
        let tells = config.create().map_err(failed)?;
        Ok(Administrator { client, tells, brokers: kafka.brokers.clone() })
    }

    fn away(&self, error: &KafkaError) -> TopicsError {
        let reason = self.client.context().told().map_or_else(|| error.to_string(), |told| told.reason);
        TopicsError::Away { brokers: self.brokers.clone(), reason }
    }

    pub(super) async fn cluster(&self) -> Result<Cluster, TopicsError> {
        let client = Arc::clone(&self.client);
        let asked = tokio::task::spawn_blocking(move || ask(&client)).await;
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

    pub(super) async fn settings_of(&self, topic: &str) -> Result<ConfigResource, TopicsError> {
        let asked = self.tells.describe_configs([&ResourceSpecifier::Topic(topic)], &options()).await;
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

    /// Makes a topic, and waits until it is to be seen.
    pub(super) async fn make(
        &self,
        name: &str,
        partitions: i32,
        copies: i32,
        settings: &[(&str, &str)],
    ) -> Result<(), TopicsError> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies));
        for (setting, value) in settings {
            topic = topic.set(setting, value);
        }
        let asked = self.tells.create_topics([&topic], &options()).await;
        match asked.map_err(|error| self.away(&error))?.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                return Err(TopicsError::Refused { what: format!("{name} be made"), reason: code.to_string() });
            }
            _ => {}
        }
        let until = Instant::now() + ANSWER_TIMEOUT;
        while self.cluster().await?.topic(name).is_none() && Instant::now() < until {
            tokio::time::sleep(APPEARANCE_POLL).await;
        }
        Ok(())
    }

    /// Changes settings of a topic, and leaves its others as they are.
    pub(super) async fn set(&self, topic: &str, settings: &[(&str, &str)]) -> Result<(), TopicsError> {
        let found = self.settings_of(topic).await?;
        // The request names all that is to be set: whatever it does not name falls back to the broker's default.
        let mut request = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for entry in found.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic) {
            if let Some(value) = entry.value.as_deref()
                && settings.iter().all(|(setting, _)| *setting != entry.name)
            {
                request = request.set(&entry.name, value);
            }
        }
        for (setting, value) in settings {
            request = request.set(setting, value);
        }
        let asked = self.tells.alter_configs([&request], &options()).await;
        match asked.map_err(|error| self.away(&error))?.into_iter().next() {
            Some(Err((_, code))) => Err(TopicsError::Refused {
                what: format!("the settings of {topic} be changed"),
                reason: code.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT))
}

/// Asks for all topics at once, and gives up early where more time would not help.
fn ask(client: &BaseProducer<LastError>) -> Result<Metadata, KafkaError> {
    let until = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let answer = client.client().fetch_metadata(None, ASK_TIME);
        if answer.is_ok() {
            return answer;
        }
        // What the client has to say waits until it is asked; this goes on for as long as it is told to.
        client.poll(TELL_TIME);
        if Instant::now() > until || client.context().told().is_some_and(|told| told.is_final) {
            return answer;
        }
    }
}

/// What the client said last about its connections: its errors themselves only say that time ran out.
#[derive(Default)]
struct LastError(Mutex<Option<Told>>);

#[derive(Clone)]
struct Told {
    reason: String,
    /// A login or a certificate that is refused stays so.
    is_final: bool,
}

impl LastError {
    fn told(&self) -> Option<Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ProducerContext for LastError {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, _opaque: ()) {}
}

impl ClientContext for LastError {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "administration");
        let code = error.rdkafka_error_code();
        // "All brokers are down" comes last and says least.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) {
            let is_final = matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
            let told = Told { reason: reason.to_owned(), is_final };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }
    }
}
