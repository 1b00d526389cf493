//! `wallex topics`: what the topics should be, what they are, and the difference.

use std::process::ExitCode;

use crate::cli::{EXIT_NO, Format, Outcome, Output};
use crate::kafka::{
    DLQ_TOPIC, KafkaConfig, Setting, TopicsReport, Verdict, apply_topics, ensure_topic, inspect_topics,
};
use crate::runtime::{Attachment, Config};

/// What the topics should be, what they are, and the difference; --apply makes what is missing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex topics                                  exit code 0 if they are as they should be, 1 if not
  wallex topics --apply                          make what is missing, set what can be set
  wallex topics -o json --kafka-brokers kafka:9092 | jq '.topics[] | select(.ok | not)'

--apply never deletes, shrinks or repartitions: where only that would help, it says what an operator can do.")]
pub(super) struct Args {
    /// Make topics that are missing, and set what can be set without losing anything
    #[arg(long)]
    apply: bool,
}

pub(super) async fn run(args: &Args, config: &Config, output: &Output) -> Outcome {
    let kafka = Attachment::find_broker(config)?;
    if kafka.embedded {
        output.note(
            "the embedded broker makes its topics as it starts and keeps them in memory only; it has no settings to compare",
        );
    }
    let report = if args.apply {
        let (done, report) = apply_topics(&kafka).await?;
        for line in done {
            output.note(line);
        }
        report
    } else {
        inspect_topics(&kafka).await?
    };
    match output.format {
        Format::Json => output.json(&report)?,
        Format::Table => show(&report, output)?,
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn show(report: &TopicsReport, output: &Output) -> std::io::Result<()> {
    let mut table = output.table(&["topic", "setting", "should be", "is", ""]);
    for topic in &report.topics {
        for setting in &topic.settings {
            let is = setting.is.as_deref().unwrap_or("-");
            table.add_row([topic.topic, setting.name, &setting.should_be, is, verdict(setting)]);
        }
    }
    output.line(table.to_string())?;
    for topic in &report.topics {
        for setting in &topic.settings {
            if let Some(advice) = setting.advice {
                output.line(format!("{} of {}: {advice}.", setting.name, topic.topic))?;
            }
        }
    }
    output.line(if report.ok { "Everything is as it should be." } else { "There is a difference." })
}

fn verdict(setting: &Setting) -> &'static str {
    match setting.verdict {
        Verdict::Ok => "ok",
        Verdict::Missing => "missing; --apply makes it",
        Verdict::Settable => "differs; --apply sets it",
        Verdict::ByHand => "differs; see below",
    }
}

/// Looks at the topics beside everything else, once, and says what is not as it should be. A broker that is away is the
/// relay's and the projections' to wait for and to tell of.
pub(super) fn check_at_start(kafka: &KafkaConfig, output: Output) {
    if kafka.embedded {
        return;
    }
    let kafka = kafka.clone();
    tokio::spawn(async move {
        if let Err(error) = ensure_topic(&kafka, DLQ_TOPIC).await {
            output.note(format!("topics: {error}"));
        }
        let Ok(report) = inspect_topics(&kafka).await else { return };
        // One that is missing is the relay's to make, and it is at it.
        for topic in report.topics.iter().filter(|topic| topic.exists) {
            for setting in topic.settings.iter().filter(|setting| setting.verdict != Verdict::Ok) {
                let is = setting.is.as_deref().unwrap_or("-");
                output.note(format!(
                    "topic {}: {} is {is} and should be {}; see `wallex topics`",
                    topic.topic, setting.name, setting.should_be
                ));
            }
        }
    });
}
