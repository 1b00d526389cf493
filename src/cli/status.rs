//! `wallex status`: is there a `serve`, is it well, and where is everything.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::cli::serve::place;
use crate::cli::{EXIT_NO, Format, Outcome, Output};
use crate::embedded::DataDir;
use crate::postgres::masked;
use crate::runtime::Config;

/// How long the running `serve` is given to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Say whether a serve runs in the data directory, whether it is ready, and where everything is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex status                        exit code 0 if it is ready, 1 if it is not
  wallex status -o json | jq -r .url
  psql \"$(wallex status -o json | jq -r .databaseUrl)\"     (where the URL has no password to mask)")]
pub(super) struct Args {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    data_dir: String,
    running: bool,
    ready: bool,
    pid: Option<u32>,
    url: Option<String>,
    database_url: Option<String>,
    event_store: Option<String>,
    event_store_prefix: Option<String>,
    embedded_postgres: Option<bool>,
    kafka_brokers: Option<String>,
    embedded_kafka: Option<bool>,
    started_at: Option<chrono::DateTime<chrono::Utc>>,
    version: Option<String>,
}

pub(super) async fn run(_args: &Args, config: Config, output: &Output) -> Outcome {
    let data_dir = DataDir::resolve(config.data_dir)?;
    let serve = DataDir::find_running(&data_dir)?;
    let ready = match &serve {
        // A serve without HTTP is as ready as it can say: it runs.
        Some(serve) => serve.url.is_empty() || is_ready(&serve.url).await,
        None => false,
    };
    let status = Status {
        data_dir: data_dir.display().to_string(),
        running: serve.is_some(),
        ready,
        pid: serve.as_ref().map(|serve| serve.pid),
        url: serve.as_ref().map(|serve| serve.url.clone()).filter(|url| !url.is_empty()),
        database_url: serve.as_ref().map(|serve| masked(&serve.database_url)),
        event_store: serve.as_ref().and_then(|serve| serve.event_store.as_deref().map(masked)),
        event_store_prefix: serve.as_ref().and_then(|serve| serve.event_store_prefix.clone()),
        embedded_postgres: serve.as_ref().map(|serve| serve.embedded_postgres),
        kafka_brokers: serve.as_ref().map(|serve| serve.kafka_brokers.clone()),
        embedded_kafka: serve.as_ref().map(|serve| serve.embedded_kafka),
        started_at: serve.as_ref().map(|serve| serve.started_at),
        version: serve.map(|serve| serve.version),
    };
    match output.format {
        Format::Json => output.json(&status)?,
        Format::Table => show(&status, output)?,
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

async fn is_ready(url: &str) -> bool {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build();
    let Ok(client) = client else { return false };
    matches!(client.get(format!("{url}/health/ready")).send().await, Ok(answer) if answer.status().is_success())
}

fn show(status: &Status, output: &Output) -> std::io::Result<()> {
    if !status.running {
        return output.line(format!("no wallex serve runs in {}; start one with `wallex serve`", status.data_dir));
    }
    let mut table = output.table(&["what", "is"]);
    let started_at = status.started_at.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    let own = |own: Option<bool>| if own == Some(true) { " (embedded)" } else { "" };
    for (what, is) in [
        ("ready", Some(if status.ready { "yes" } else { "no" }.to_owned())),
        ("HTTP", status.url.clone()),
        ("process", status.pid.map(|pid| pid.to_string())),
        ("running since", started_at),
        ("version", status.version.clone()),
        ("data directory", Some(status.data_dir.clone())),
        ("database", status.database_url.as_ref().map(|url| format!("{url}{}", own(status.embedded_postgres)))),
        (
            "events",
            Some(match (&status.event_store, &status.event_store_prefix) {
                (Some(store), Some(prefix)) => format!("in KurrentDB at {}", place((store, prefix))),
                (Some(store), None) => format!("in KurrentDB at {store}"),
                (None, _) => "in the database".to_owned(),
            }),
        ),
        ("broker", status.kafka_brokers.as_ref().map(|brokers| format!("{brokers}{}", own(status.embedded_kafka)))),
    ] {
        table.add_row([what.to_owned(), is.unwrap_or_else(|| "-".to_owned())]);
    }
    output.line(table.to_string())
}
