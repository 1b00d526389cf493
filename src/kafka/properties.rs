//! What an operator may tell librdkafka beyond our own defaults: anything, but for the few properties on which a promise of
//! wallex's stands. A property that is wrong is found at the start, and not by a part that waits for a broker in vain.

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use thiserror::Error;

use crate::kafka::KafkaConfig;

/// Properties that are wallex's own to set, by all their names, and why.
const OURS: &[(&[&str], &str)] = &[
    (&["bootstrap.servers", "metadata.broker.list"], "brokers are named by --kafka-brokers or WALLEX_KAFKA_BROKERS"),
    (&["acks", "request.required.acks"], "a record counts as published only once every copy in sync has it"),
    (
        &["enable.idempotence", "enable.gapless.guarantee", "transactional.id"],
        "each record is in the topic once, in order, with nothing left out",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms", "retries", "message.send.max.retries"],
        "a record is never given up: a broker that is away is waited for",
    ),
    (&["partitioner"], "a wallet's records stay in one partition, where every client of Kafka looks for them"),
    (&["group.id", "group.protocol"], "a projection's group has its name, by which its checkpoints are kept"),
    (
        &["partition.assignment.strategy"],
        "all members of a group have to agree on it, those of another version of wallex too",
    ),
    (
        &[
            "enable.auto.commit",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "auto.offset.reset",
            "offset.store.method",
        ],
        "where reading goes on is decided by the checkpoints in the database",
    ),
    (&["isolation.level", "enable.partition.eof", "check.crcs"], "each record that is in the topic is read, whole"),
    (
        &["allow.auto.create.topics"],
        "a topic that a broker makes by itself has another number of partitions; see `wallex topics`",
    ),
];

/// Whoever sets one of these means brokers of their own.
const OF_REAL_BROKERS: [&str; 3] = ["security.", "sasl.", "ssl."];

/// Why a property is not taken. Never holds its value, which may be a secret.
#[derive(Debug, Error)]
pub enum PropertyError {
    /// It is wallex's own to set.
    #[error("the Kafka property {name} cannot be set: {why}")]
    Ours {
        /// Its name.
        name: String,
        /// The promise that stands on it.
        why: &'static str,
    },
    /// There is no such property.
    #[error("librdkafka knows no property {0}; its CONFIGURATION.md lists them all")]
    Unknown(String),
    /// The property is there, the value is none of its.
    #[error(
        "the Kafka property {0} does not take the value that it is given; librdkafka's CONFIGURATION.md says what it takes"
    )]
    Value(String),
    /// Each is right, and together they are not, or a file is missing that one of them names.
    #[error("the Kafka client cannot be made as it is told to be: {0}")]
    Client(String),
    /// Login or encryption for the broker in our own process.
    #[error(
        "the Kafka property {0} is for brokers of your own: name them with --kafka-brokers or WALLEX_KAFKA_BROKERS"
    )]
    Embedded(String),
}

/// Whether the value of a property is a secret, and so must not stand where others can read it, such as a command line.
pub(crate) fn is_secret(name: &str) -> bool {
    let marks = ["password", "passphrase", "secret", "key.pem", "oauthbearer.config"];
    marks.iter().any(|mark| name.contains(mark))
}

impl KafkaConfig {
    /// Whether clients can be made of it; connects to nobody that would have to answer.
    ///
    /// # Errors
    /// [`PropertyError`], by the first property that cannot be.
    pub(crate) fn check(&self) -> Result<(), PropertyError> {
        for name in self.properties.keys() {
            // librdkafka's own tests have a broker by them, in each client.
            let is_of_tests = name.starts_with("test.").then_some("there would be no broker but one in each client");
            let ours = OURS.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, why)| *why);
            if let Some(why) = is_of_tests.or(ours) {
                return Err(PropertyError::Ours { name: name.clone(), why });
            }
            if self.embedded && OF_REAL_BROKERS.iter().any(|prefix| name.starts_with(prefix)) {
                return Err(PropertyError::Embedded(name.clone()));
            }
        }
        // As the relay's producer, which asks most of them.
        let config = self.client_config(&[("enable.idempotence", "true")], &[]);
        match config.create::<AdminClient<DefaultClientContext>>() {
            Ok(_) => Ok(()),
            Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _)) => {
                Err(PropertyError::Unknown(name))
            }
            Err(KafkaError::ClientConfig(_, _, name, _)) => Err(PropertyError::Value(name)),
            Err(KafkaError::ClientCreation(reason)) => Err(PropertyError::Client(reason)),
            Err(other) => Err(PropertyError::Client(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(embedded: bool, name: &str, value: &str) -> Result<(), String> {
        let mut config = KafkaConfig::new("127.0.0.1:1");
        config.embedded = embedded;
        config.properties.insert(name.to_owned(), value.to_owned());
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_promise_stands_on_is_refused_with_the_promise() {
        for (name, word) in [
            ("acks", "every copy"),
            ("enable.idempotence", "once"),
            ("enable.gapless.guarantee", "left out"),
            ("delivery.timeout.ms", "never given up"),
            ("partitioner", "one partition"),
            ("group.id", "checkpoints"),
            ("enable.auto.commit", "database"),
            ("isolation.level", "read"),
            ("partition.assignment.strategy", "agree"),
            ("bootstrap.servers", "--kafka-brokers"),
            ("test.mock.num.brokers", "no broker"),
        ] {
            let refusal = checked(false, name, "1").expect_err(name);
            assert!(refusal.contains(name) && refusal.contains(word), "{refusal}");
        }
    }

    #[test]
    fn everything_else_passes_through_and_what_is_wrong_is_named_without_its_value() {
        assert_eq!(checked(false, "linger.ms", "7"), Ok(()));
        assert_eq!(checked(false, "group.instance.id", "a"), Ok(()));
        assert_eq!(checked(true, "socket.keepalive.enable", "true"), Ok(()));
        for (name, value, word) in [
            ("sasl.pasword", "hunter2", "no property"),
            ("security.protocol", "hunter2", "does not take"),
            ("max.in.flight", "9", "in.flight"),
        ] {
            let refusal = checked(false, name, value).expect_err(name);
            assert!(refusal.contains(word) && !refusal.contains("hunter2"), "{refusal}");
        }
        let mut without_file = KafkaConfig::new("127.0.0.1:1");
        for (name, value) in [("security.protocol", "ssl"), ("ssl.ca.location", "/no/such/ca.pem")] {
            without_file.properties.insert(name.to_owned(), value.to_owned());
        }
        let refusal = without_file.check().expect_err("no such file").to_string();
        assert!(refusal.contains("ssl.ca.location"), "{refusal}");
        assert!(checked(true, "sasl.username", "wallex").expect_err("embedded").contains("WALLEX_KAFKA_BROKERS"));
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["sasl.username", "ssl.ca.pem", "ssl.key.location", "security.protocol"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
