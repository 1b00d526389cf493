//! `wallex migrate`: the database's schema, brought up to this program's version.

use std::process::ExitCode;

use crate::cli::{Format, Outcome, Output};
use crate::runtime::{Attachment, Config};

/// Bring the database's schema up to this version of wallex (serve does so by itself)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex migrate --database-url postgres://wallex@db/wallex
  wallex migrate -o json")]
pub(super) struct Args {}

pub(super) async fn run(_args: &Args, config: Config, output: &Output) -> Outcome {
    let attachment = Attachment::find(&config).await?;
    let migrated = attachment.database.migrate().await;
    let version = attachment.database.schema_version().await;
    attachment.close().await;
    migrated?;
    let version = version?;
    match output.format {
        Format::Json => output.json(&serde_json::json!({ "schemaVersion": version }))?,
        Format::Table => output.line(format!("the schema is at version {version}"))?,
    }
    Ok(ExitCode::SUCCESS)
}
