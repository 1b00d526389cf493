//! What `wallex loadtest` measures: the service that was named, the running `serve`, or one started for the run.

use crate::cli::loadtest::{self, Args, Verify};
use crate::cli::serve::listen;
use crate::cli::{Outcome, Output};
use crate::embedded::DataDir;
use crate::http::Limits;
use crate::kafka::KafkaConfig;
use crate::kurrentdb::KurrentLog;
use crate::loadtest::Check;
use crate::postgres::Database;
use crate::runtime::{Attachment, Config, Wallex};
use crate::verify::{VerifyOptions, verify_copy};

pub(super) async fn run(args: &Args, config: Config, output: &Output) -> Outcome {
    let data_dir = DataDir::resolve(config.data_dir.clone())?;
    let running = DataDir::find_running(&data_dir)?;
    let running_url = running.map(|serve| serve.url).filter(|url| !url.is_empty());
    match (&args.url, &running_url) {
        // Somebody else's service: only its HTTP is known, unless the operator has named its database too.
        (Some(url), running) if config.database_url.is_none() && running.as_ref() != Some(url) => {
            loadtest::run(args, url, None, output).await
        }
        (Some(url), _) | (None, Some(url)) => {
            let attachment = Attachment::find(&config).await?;
            let event_store = attachment.event_store.clone().map(KurrentLog::new);
            let verify = checks(&attachment.database, event_store.as_ref(), attachment.kafka.as_ref());
            let outcome = loadtest::run(args, url, Some(verify), output).await;
            attachment.close().await;
            outcome
        }
        (None, None) => own(args, config, output).await,
    }
}

/// Starts everything for the run, in this process and on a free port.
async fn own(args: &Args, config: Config, output: &Output) -> Outcome {
    output.note("no wallex serve runs here; starting one for this run");
    let listener = listen(([127, 0, 0, 1], 0).into()).await?;
    let event_store = config.event_store.clone().map(KurrentLog::new);
    let mut wallex = Wallex::open(config).await?;
    let url = format!("http://{}", wallex.serve_http(listener, Limits::default())?);
    wallex.announce(&url)?;
    let (database, kafka) = (wallex.database().clone(), wallex.kafka().clone());
    let verify = checks(&database, event_store.as_ref(), Some(&kafka));
    let outcome = tokio::select! {
        outcome = loadtest::run(args, &url, Some(verify), output) => outcome,
        ended = wallex.first_ended() => Err(ended.into()),
    };
    wallex.close().await;
    outcome
}

fn checks<'a>(
    database: &'a Database,
    event_store: Option<&'a KurrentLog>,
    kafka: Option<&'a KafkaConfig>,
) -> Verify<'a> {
    Box::pin(async move {
        let proof = verify_copy(database, event_store, kafka, &VerifyOptions::default(), &mut |_| {}).await;
        let proof = proof.map_err(|error| error.to_string())?;
        let named = |check: crate::verify::Check| {
            Check::new(&format!("verify: {}", check.name), check.ok, check.expected, check.actual)
        };
        Ok(proof.checks.into_iter().map(named).collect())
    })
}
