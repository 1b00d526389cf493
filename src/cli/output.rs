//! Where a command's words go: answers to stdout, everything else to stderr, bars only where a person looks.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document with a stable schema.
    Json,
}

/// The one owner of stdout and stderr in a command.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// How answers are written.
    pub format: Format,
}

impl Output {
    /// Writes one line of the answer. A reader that has gone away is no error.
    ///
    /// # Errors
    /// Where stdout cannot be written for another reason.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        ignore_broken_pipe(writeln!(io::stdout(), "{}", text.as_ref()))
    }

    /// Writes the answer as one JSON document.
    ///
    /// # Errors
    /// Where stdout cannot be written.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(serde_json::to_string_pretty(value).map_err(io::Error::other)?)
    }

    /// Says something that is not the answer, on stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        // Where stderr is gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{}", text.as_ref());
    }

    /// An empty table in the one style that wallex has.
    pub fn table(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.iter().copied());
        table
    }

    /// A bar on stderr; invisible where stderr is no terminal.
    pub fn bar(&self, length: u64, what: &'static str) -> ProgressBar {
        let target =
            if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target).with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{msg:<22} [{bar:32}] {human_pos}/{human_len} {per_sec} {eta}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

fn ignore_broken_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
