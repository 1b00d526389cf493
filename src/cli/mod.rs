//! The `wallex` command: arguments, and one file a verb. Everything it does, the library does.
//!
//! Answers go to stdout, everything else to stderr. Exit code 0: yes. 1: the answer is no. 2: wrong usage, or it could not
//! run. 130 and 143: ended by SIGINT or SIGTERM.

mod dlq;
mod file;
mod global;
mod lag;
mod loadtest;
mod migrate;
mod output;
mod part;
mod rebuild;
mod serve;
mod signals;
mod stages;
mod status;
mod target;
mod telemetry;
mod text;
mod topics;
mod transfers;
mod verify;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::kafka::KafkaConfig;
use crate::kurrentdb::KurrentLog;
use crate::postgres::Database;
use crate::runtime::{Attachment, Config};

use global::Global;
pub use output::{Format, Output};

/// What a verb works on: the running `serve` of the data directory, or what the operator named.
#[derive(Clone, Debug)]
pub struct Connections {
    /// The database.
    pub database: Database,
    /// The broker; `None` where none runs (the embedded one lives in `serve` alone).
    pub kafka: Option<KafkaConfig>,
    /// The event store that was named, or that of the running `serve`.
    pub event_store: Option<KurrentLog>,
    /// Where HTTP is served, such as `http://127.0.0.1:3000`; `None` where nothing serves.
    pub url: Option<String>,
}

/// Exit code 1: the answer is no.
pub const EXIT_NO: u8 = 1;
/// Exit code 2: wrong usage, or it could not run.
pub const EXIT_COULD_NOT_RUN: u8 = 2;

/// What a verb ends with.
pub type Outcome = color_eyre::Result<ExitCode>;

/// An event-sourced wallet that proves where every cent went.
#[derive(Debug, Parser)]
#[command(
    name = "wallex",
    version,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  wallex serve                         everything in one process, on http://127.0.0.1:3000
  wallex loadtest --wallets 1000       20,000 operations, and the proof that every balance is right
  wallex lag --watch                   what is behind, and by how much
  wallex verify                        log = outbox = topic = ledger = read model

Options stand in the environment too (WALLEX_DATA_DIR and so on), or in wallex.toml; a flag wins over the environment,
the environment over the file. With nothing set, wallex runs a PostgreSQL and a broker of its own in the data directory."
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::Args),
    Relay(part::RelayArgs),
    Project(part::ProjectArgs),
    Lag(lag::Args),
    Dlq(dlq::Args),
    Transfers(transfers::Args),
    Status(status::Args),
    Verify(verify::Args),
    Loadtest(loadtest::Args),
    Migrate(migrate::Args),
    Topics(topics::Args),
}

/// Runs the command that the arguments name, and says how it ended.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match parse(&arguments) {
        Ok((arguments, kafka)) => run(arguments, kafka),
        Err(Refused::Usage(error)) => {
            // Help and version are asked for and go to stdout; the rest is wrong usage. A closed pipe is no error.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
        Err(Refused::File(error)) => could_not_run(&error),
    }
}

enum Refused {
    Usage(clap::Error),
    File(file::FileError),
}

/// The arguments, and the Kafka properties that the file sets.
fn parse(arguments: &[OsString]) -> Result<(Arguments, BTreeMap<String, String>), Refused> {
    let (command, kafka) = file::with_defaults(Arguments::command(), arguments).map_err(Refused::File)?;
    let matches = command.try_get_matches_from(arguments).map_err(Refused::Usage)?;
    Ok((Arguments::from_arg_matches(&matches).map_err(Refused::Usage)?, kafka))
}

fn run(arguments: Arguments, kafka: BTreeMap<String, String>) -> ExitCode {
    telemetry::start(&arguments.global.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return could_not_run(&error),
    };
    let outcome = runtime.block_on(dispatch(arguments, kafka));
    // A blocking call into a broker that is away must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(report) => could_not_run(&in_one_line(&report)),
    }
}

/// What failed, and of its causes those that it does not name itself.
fn in_one_line(report: &color_eyre::Report) -> String {
    report.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        named if named.contains(&cause) => said,
        named => format!("{named}: {cause}"),
    })
}

fn could_not_run(error: &dyn std::fmt::Display) -> ExitCode {
    Output { format: Format::Table }.note(format!("wallex: {error}"));
    ExitCode::from(EXIT_COULD_NOT_RUN)
}

async fn dispatch(arguments: Arguments, kafka: BTreeMap<String, String>) -> Outcome {
    let config = arguments.global.config(kafka)?;
    let output = Output { format: arguments.global.output };
    match arguments.verb {
        Verb::Serve(args) => serve::run(&args, config, &output).await,
        Verb::Relay(args) => part::run_relay(&args, config, &output).await,
        Verb::Project(args) => match args.maintenance() {
            None => part::run_project(&args, config, &output).await,
            Some(what) => attached(config, async |connections| rebuild::run(what, connections, &output).await).await,
        },
        Verb::Loadtest(args) => target::run(&args, config, &output).await,
        Verb::Migrate(args) => migrate::run(&args, config, &output).await,
        Verb::Topics(args) => topics::run(&args, &config, &output).await,
        Verb::Status(args) => status::run(&args, config, &output).await,
        Verb::Lag(args) => attached(config, async |connections| lag::run(&args, connections, &output).await).await,
        Verb::Dlq(args) => attached(config, async |connections| dlq::run(&args, connections, &output).await).await,
        Verb::Transfers(args) => {
            attached(config, async |connections| transfers::run(&args, connections, &output).await).await
        }
        Verb::Verify(args) => {
            attached(config, async |connections| verify::run(&args, connections, &output).await).await
        }
    }
}

/// Runs a verb on what is there: the running `serve`, the database that was named, or the data directory's own.
async fn attached(config: Config, verb: impl AsyncFnOnce(&Connections) -> Outcome) -> Outcome {
    let attachment = Attachment::find(&config).await?;
    let connections = Connections {
        database: attachment.database.clone(),
        kafka: attachment.kafka.clone(),
        event_store: attachment.event_store.clone().map(KurrentLog::new),
        url: attachment.serve.as_ref().map(|serve| serve.url.clone()).filter(|url| !url.is_empty()),
    };
    let outcome = match connections.database.check_schema().await {
        Ok(()) => verb(&connections).await,
        Err(error) => Err(error.into()),
    };
    attachment.close().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("wallex "), "{} has no example", command.get_name());
        }
    }
}
