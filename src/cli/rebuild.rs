//! `wallex project … --rebuild` and `--drop-previous`: a projection's table made anew, and the one that it has replaced.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::stages::Stages;
use crate::cli::{Connections, EXIT_NO, Format, Outcome, Output};
use crate::projection::rebuild::{RebuildProgress, Rebuildable, Rebuilt, drop_previous, rebuild};

/// What is to be done to a projection's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maintenance {
    pub(super) projection: Rebuildable,
    pub(super) task: Task,
    pub(super) execute: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    Rebuild,
    DropPrevious,
}

pub(super) async fn run(what: Maintenance, connections: &Connections, output: &Output) -> Outcome {
    match what.task {
        Task::Rebuild => make_anew(what, connections, output).await,
        Task::DropPrevious => drop_kept(what, connections, output).await,
    }
}

async fn make_anew(what: Maintenance, connections: &Connections, output: &Output) -> Outcome {
    let mut stages = Stages::new(output);
    let mut progress = |now: RebuildProgress| stages.show(now.stage, now.done, now.total);
    let rebuilt = rebuild(&connections.database, what.projection, what.execute, &mut progress).await;
    stages.clear();
    let rebuilt = rebuilt?;
    match output.format {
        Format::Json => output.json(&rebuilt)?,
        Format::Table => show(&rebuilt, output)?,
    }
    Ok(if rebuilt.swapped { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn show(rebuilt: &Rebuilt, output: &Output) -> std::io::Result<()> {
    let Rebuilt { projection, events, parked, rows, differing, position, .. } = rebuilt;
    if rebuilt.began_again {
        output.note("a rebuild that was not finished had left its table; it was dropped");
    }
    let seconds = rebuilt.took_ms / 1_000;
    output.line(format!(
        "{projection}: made anew of {events} events up to position {position}, in {seconds}.{} s; {rows} rows compared.",
        rebuilt.took_ms % 1_000 / 100
    ))?;
    if *parked > 0 {
        output.line(format!("{parked} events were left out, before as after: they are parked or were discarded; see `wallex dlq list` and `history`."))?;
    }
    if !rebuilt.differences.is_empty() {
        let mut table = output.table(&["wallet", "row", "column", "live", "from the log"]);
        for difference in &rebuilt.differences {
            for change in &difference.changes {
                let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
                table.add_row([
                    difference.wallet.clone(),
                    difference.row.clone(),
                    change.column.clone(),
                    value(&change.live),
                    value(&change.rebuilt),
                ]);
            }
        }
        output.line(table.to_string())?;
    }
    let shown = rebuilt.differences.len();
    output.line(match (&rebuilt.kept, differing) {
        (Some(kept), 0) => format!("No row differs. The new table is in place; the old one is kept as {kept}."),
        (Some(kept), _) => format!(
            "{differing} rows differed ({shown} shown). The new table is in place; the old one is kept as {kept}."
        ),
        (None, _) => format!(
            "{differing} rows differ ({shown} shown). Nothing was changed; with --execute the new table takes the place of the \
             live one."
        ),
    })
}

/// What is kept, and whether it is gone now.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Previous {
    kept: Option<String>,
    note: Option<String>,
    bytes: Option<i64>,
    dropped: bool,
}

async fn drop_kept(what: Maintenance, connections: &Connections, output: &Output) -> Outcome {
    let kept = drop_previous(&connections.database, what.projection, what.execute).await?;
    if output.format == Format::Json {
        output.json(&Previous {
            kept: kept.as_ref().map(|kept| kept.name.clone()),
            note: kept.as_ref().and_then(|kept| kept.note.clone()),
            bytes: kept.as_ref().map(|kept| kept.bytes),
            dropped: kept.is_some() && what.execute,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(match kept {
        None => "No table of a rebuild is kept.".to_owned(),
        Some(kept) => {
            let (name, note, size) =
                (&kept.name, kept.note.as_deref().unwrap_or("of unknown origin"), kept.bytes >> 20);
            match what.execute {
                true => format!("{name} ({note}, {size} MiB) was dropped."),
                false => format!("{name} ({note}, {size} MiB) would be dropped; with --execute it is."),
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
