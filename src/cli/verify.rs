//! `wallex verify`: whether log, outbox, topic, ledger and read model tell the same story.

use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, ColumnConstraint, ContentArrangement, Width};

use crate::cli::stages::Stages;
use crate::cli::{Connections, EXIT_NO, Format, Outcome, Output};
use crate::verify::{Check, Proof, VerifyOptions, VerifyProgress, verify_copy};

/// Characters of a cell before it is broken into lines: four columns of it fit a wide terminal.
const CELL_WIDTH_MAX: u16 = 64;

/// Computes everything again from the log, and compares: log = outbox = topic = ledger = read model.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex verify                 compare everything; exit code 1 if anything differs
  wallex verify --wait 0        do not wait for the projections: what is behind is a difference
  wallex verify -o json | jq '.checks[] | select(.ok | not)'

It may run while money moves: it compares as of the position that the log has when it begins, once the relay and both \
projections have come through it. Of each check the first difference is named, and the others are counted. It only reads.")]
pub struct Args {
    /// How long the relay and the projections may take to come through the position
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub wait: u64,
}

/// Runs it.
///
/// # Errors
/// Where the database does not answer, or stdout cannot be written.
pub async fn run(args: &Args, connections: &Connections, output: &Output) -> Outcome {
    let options = VerifyOptions { wait_max: Duration::from_secs(args.wait) };
    let mut stages = Stages::new(output);
    let mut progress = |now: VerifyProgress| stages.show(now.stage, now.done, now.total);
    let Connections { database, kafka, event_store, .. } = connections;
    let proof = verify_copy(database, event_store.as_ref(), kafka.as_ref(), &options, &mut progress).await;
    stages.clear();
    let proof = proof?;
    match output.format {
        Format::Json => output.json(&proof)?,
        Format::Table => show(&proof, output)?,
    }
    Ok(if proof.ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn show(proof: &Proof, output: &Output) -> color_eyre::Result<()> {
    let mut table = output.table(&["check", "", "expected", "found"]);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::MAX);
    table.set_constraints([
        ColumnConstraint::ContentWidth,
        ColumnConstraint::ContentWidth,
        ColumnConstraint::UpperBoundary(Width::Fixed(CELL_WIDTH_MAX)),
        ColumnConstraint::UpperBoundary(Width::Fixed(CELL_WIDTH_MAX)),
    ]);
    for Check { name, ok, expected, actual } in &proof.checks {
        table.add_row([name.as_str(), if *ok { "ok" } else { "NO" }, expected, actual].map(Cell::new));
    }
    output.line(table.to_string())?;
    let failed: Vec<&Check> = proof.checks.iter().filter(|check| !check.ok).collect();
    output.line(match failed.first() {
        None => format!("Everything agrees as of position {}.", proof.position),
        Some(first) => {
            let count = failed.len();
            let checks = if count == 1 { "check" } else { "checks" };
            format!(
                "{count} {checks} failed as of position {}. First, {}: {}",
                proof.position, first.name, first.actual
            )
        }
    })?;
    Ok(())
}
