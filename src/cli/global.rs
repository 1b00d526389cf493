//! Options that every verb has, turned once into what they mean.

use std::path::PathBuf;

use color_eyre::eyre::eyre;

use crate::cli::Format;
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

    /// Kafka brokers of your own: host:port, separated by commas
    #[arg(long, global = true, env = "WALLEX_KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,

    /// Anything librdkafka can be told, by its own name; may be given more than once
    #[arg(long, global = true, env = "WALLEX_KAFKA_CONFIG", value_name = "NAME=VALUE", hide_env_values = true)]
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
    pub(super) fn config(&self) -> color_eyre::Result<Config> {
        let mut config = Config {
            data_dir: self.data_dir.clone(),
            database_url: self.database_url.clone().filter(|url| !url.is_empty()),
            kafka_brokers: self.kafka_brokers.clone().filter(|brokers| !brokers.is_empty()),
            ..Config::default()
        };
        for property in &self.kafka_config {
            // The value may be a secret, so only the name is ever repeated.
            let (name, value) = property
                .split_once('=')
                .ok_or_else(|| eyre!("--kafka-config must be NAME=VALUE, such as security.protocol=ssl"))?;
            config.kafka_properties.insert(name.trim().to_owned(), value.to_owned());
        }
        Ok(config)
    }
}
