//! Options that every verb has, turned once into what they mean.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use color_eyre::eyre::eyre;

use crate::cli::Format;
use crate::kafka::is_secret;
use crate::kurrentdb::{KurrentConfig, STREAM_PREFIX};
use crate::runtime::Config;

/// Options that every verb has.
#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// Where wallex keeps its data, and where commands find the running serve
    ///
    /// Left out: /var/lib/wallex for root, else wallex in the XDG data home.
    #[arg(long, global = true, env = "WALLEX_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// A PostgreSQL of your own: postgres://user:password@host:5432/database
    #[arg(long, global = true, env = "WALLEX_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,

    /// A KurrentDB or EventStoreDB for the events: esdb://user:password@host:2113?tls=true
    ///
    /// Left out: the events are in the database. Where a database's events are is settled by its first start, for ever.
    #[arg(long, global = true, env = "WALLEX_EVENT_STORE", value_name = "URL", hide_env_values = true)]
    event_store: Option<String>,

    /// What the wallets' streams are called in the event store, before the wallet's id
    ///
    /// For several wallexes on one KurrentDB: each needs a prefix of its own, and none may begin with another's. Settled with the first
    /// events that are copied.
    #[arg(long, global = true, env = "WALLEX_EVENT_STORE_PREFIX", value_name = "PREFIX", default_value = STREAM_PREFIX)]
    event_store_prefix: String,

    /// Kafka brokers of your own: host:port, separated by commas
    #[arg(long, global = true, env = "WALLEX_KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,

    /// Anything librdkafka can be told, by its own name; may be given more than once
    ///
    /// In the environment sasl.username is WALLEX_KAFKA_SASL_USERNAME, and so on; in wallex.toml it stands in the table
    /// [kafka]. Passwords are taken from these two only: a command line can be read by everybody on the machine.
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    kafka_config: Vec<String>,

    /// A file of defaults; left out: wallex.toml in the current directory, if there is one
    #[arg(long, global = true, env = "WALLEX_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// How the answer is written
    #[arg(short, long, global = true, env = "WALLEX_OUTPUT", value_enum, default_value_t)]
    pub(super) output: Format,

    /// What is logged to stderr: a level, or `wallex=debug,rdkafka=warn`
    #[arg(long, global = true, env = "WALLEX_LOG", value_name = "FILTER", default_value = "warn,wallex=info")]
    pub(super) log: String,
}

impl Global {
    /// What the options mean, together with the Kafka properties that the file sets.
    pub(super) fn config(&self, file_properties: BTreeMap<String, String>) -> color_eyre::Result<Config> {
        let mut kafka_properties = file_properties;
        kafka_properties.extend(properties_of(std::env::vars_os())?);
        for property in &self.kafka_config {
            // The value may be a secret, so only the name is ever repeated.
            let (name, value) = property
                .split_once('=')
                .map(|(name, value)| (name.trim(), value))
                .ok_or_else(|| eyre!("--kafka-config must be NAME=VALUE, such as security.protocol=ssl"))?;
            if is_secret(name) {
                return Err(eyre!(
                    "{name} on the command line can be read by everybody on this machine; give it as {PREFIX}{} or in the \
                     table [kafka] of wallex.toml",
                    name.replace('.', "_").to_uppercase()
                ));
            }
            kafka_properties.insert(name.to_owned(), value.to_owned());
        }
        let event_store = self.event_store.as_deref().filter(|address| !address.is_empty());
        let event_store = event_store
            .map(|address| match self.event_store_prefix.as_str() {
                "" => KurrentConfig::new(address),
                prefix => KurrentConfig::new(address)?.with_stream_prefix(prefix),
            })
            .transpose()?;
        Ok(Config {
            data_dir: self.data_dir.clone(),
            database_url: self.database_url.clone().filter(|url| !url.is_empty()),
            kafka_brokers: self.kafka_brokers.clone().filter(|brokers| !brokers.is_empty()),
            kafka_properties,
            event_store,
            ..Config::default()
        })
    }
}

/// How the environment names a Kafka property: this, and then the property in capitals with _ for each dot.
const PREFIX: &str = "WALLEX_KAFKA_";
/// This one is an option of its own.
const BROKERS: &str = "WALLEX_KAFKA_BROKERS";

/// The Kafka properties that the environment sets. An empty one is as good as none.
fn properties_of(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> color_eyre::Result<BTreeMap<String, String>> {
    let mut properties = BTreeMap::new();
    for (name, value) in environment {
        let Some(variable) = name.to_str().filter(|name| *name != BROKERS) else { continue };
        let Some(property) = variable.strip_prefix(PREFIX) else { continue };
        let value = value.into_string().map_err(|_| eyre!("{variable} is not text in UTF-8"))?;
        if !value.is_empty() {
            properties.insert(property.to_lowercase().replace('_', "."), value);
        }
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_a_property_in_capitals() {
        let environment = [
            ("WALLEX_KAFKA_SASL_PASSWORD", "a=b"),
            ("WALLEX_KAFKA_BROKERS", "kafka:9092"),
            ("WALLEX_KAFKA_SSL_CA_LOCATION", ""),
            ("KAFKA_LINGER_MS", "5"),
        ];
        let found = properties_of(environment.map(|(name, value)| (name.into(), value.into()))).expect("text");
        assert_eq!(found, BTreeMap::from([("sasl.password".to_owned(), "a=b".to_owned())]));
    }
}
