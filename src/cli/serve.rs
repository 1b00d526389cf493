//! `wallex serve`: HTTP, relay and projections in one process, unless told otherwise.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::ValueEnum;
use color_eyre::eyre::{WrapErr, eyre};
use tokio::net::TcpListener;

use crate::cli::part::Member;
use crate::cli::signals::stop_signal;
use crate::cli::{EXIT_COULD_NOT_RUN, Outcome, Output, topics};
use crate::http::Limits;
use crate::kurrentdb::STREAM_PREFIX;
use crate::lease::RedisConfig;
use crate::runtime::{Config, Parts, Wallex};

/// Serve the wallet over HTTP, publish its events, and keep ledger and read model
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex serve                                        everything in one process, on a database and a broker of its own
  wallex serve --listen 127.0.0.1:8080                on another port; port 0 takes a free one
  wallex serve --only http --data-dir /srv/wallex-2   one of several web processes on one database
  wallex serve --event-store esdb://localhost:2113?tls=false   the events in a KurrentDB, and a copy of them in the database
  WALLEX_DATABASE_URL=postgres://wallex@db/wallex WALLEX_KAFKA_BROKERS=kafka:9092 wallex serve")]
pub(super) struct Args {
    /// Where HTTP is served
    #[arg(long, env = "WALLEX_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = listen_address)]
    listen: SocketAddr,

    /// Run only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,…")]
    only: Vec<Part>,

    /// A Redis in which servers that share wallets of an event store queue for them: redis://user:password@host:6379/0
    ///
    /// For speed alone: with Redis away everything goes on without queueing. Only with --event-store.
    #[arg(long, env = "WALLEX_REDIS", value_name = "URL", hide_env_values = true)]
    redis: Option<String>,

    #[command(flatten)]
    member: Member,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// HTTP and the write path
    Http,
    /// From the log to Kafka
    Relay,
    /// Ledger and read model
    Project,
}

impl Args {
    fn parts(&self) -> Parts {
        if self.only.is_empty() {
            return Parts::ALL;
        }
        let has = |part| self.only.contains(&part);
        Parts {
            commands: has(Part::Http),
            relay: has(Part::Relay),
            ledger: has(Part::Project),
            read_model: has(Part::Project),
        }
    }
}

pub(super) async fn run(args: &Args, config: Config, output: &Output) -> Outcome {
    let parts = args.parts();
    let redis = args.redis.as_deref().filter(|address| !address.is_empty()).map(RedisConfig::new).transpose()?;
    let queue = redis.as_ref().map(|redis| redis.shown().to_owned());
    // The port first: whether it is free is known at once.
    let listener = match parts.commands {
        true => Some(listen(args.listen).await?),
        false => None,
    };
    let embedded = (config.database_url.is_none(), config.kafka_brokers.is_none());
    let (instance_id, parked_max) = (args.member.instance_id(), Some(args.member.parked_max()));
    let config = Config { parts, instance_id, parked_max, redis, ..config };
    let mut wallex = Wallex::open(config).await?;
    let url = match listener {
        Some(listener) => format!("http://{}", wallex.serve_http(listener, Limits::default())?),
        None => String::new(),
    };
    wallex.announce(&url)?;
    explain(output, embedded, wallex.database().masked_url(), &wallex.kafka().brokers);
    if let Some(store) = wallex.event_store() {
        output.note(format!("events: in KurrentDB at {}; the database has a copy", place(store)));
    }
    if let Some(redis) = queue {
        output.note(format!("redis: {redis}; servers that share a wallet queue there, for speed alone"));
    }
    match url.as_str() {
        "" => output.note("running; stop with Ctrl-C"),
        url => output.note(format!("serving {url}; stop with Ctrl-C")),
    }
    topics::check_at_start(wallex.kafka(), *output);
    until_stopped(wallex).await
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "it must be an IP address and a port, such as 127.0.0.1:3000 or [::1]:3000")
}

/// Binds the address that HTTP is served on.
pub(super) async fn listen(address: SocketAddr) -> color_eyre::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .wrap_err_with(|| format!("cannot listen on {address}; name another address with --listen or WALLEX_LISTEN"))
}

fn explain(output: &Output, (postgres, broker): (bool, bool), database_url: &str, brokers: &str) {
    output.note(match postgres {
        true => format!("database: a PostgreSQL of wallex's own, durable, in the data directory: {database_url}"),
        false => format!("database: {database_url}"),
    });
    output.note(match broker {
        true => format!(
            "broker: embedded, on {brokers}; it forgets its records when wallex ends (the log does not: what the projections \
             lack is published again)"
        ),
        false => format!("broker: {brokers}"),
    });
}

/// Where the events are, in an event store, and in which streams where that is not the usual.
pub(super) fn place((address, prefix): (&str, &str)) -> String {
    if prefix == STREAM_PREFIX { address.to_owned() } else { format!("{address}, streams {prefix}…") }
}

/// Goes on until a signal comes or a part ends by itself, and then closes in order.
pub(super) async fn until_stopped(mut wallex: Wallex) -> Outcome {
    let outcome = tokio::select! {
        code = stop_signal() => Ok(ExitCode::from(code?)),
        ended = wallex.first_ended() => Err(eyre!("{ended}")),
    };
    // A second signal ends it at once: whoever sends it does not want to wait.
    tokio::select! {
        () = wallex.close() => {}
        code = stop_signal() => std::process::exit(i32::from(code.unwrap_or(EXIT_COULD_NOT_RUN))),
    }
    outcome
}
