//! The `wallex` command: arguments, and one file a verb. Everything it does, the library does.

pub mod loadtest;
mod output;

use std::process::ExitCode;

use crate::kafka::KafkaConfig;
use crate::postgres::Database;

pub use output::{Format, Output};

/// What a verb works on: the running `serve` of the data directory, or what the operator named.
#[derive(Clone, Debug)]
pub struct Connections {
    /// The database.
    pub database: Database,
    /// The broker; `None` where none runs (the embedded one lives in `serve` alone).
    pub kafka: Option<KafkaConfig>,
    /// Where HTTP is served, such as `http://127.0.0.1:3000`; `None` where nothing serves.
    pub url: Option<String>,
}

/// Exit code 1: the answer is no.
pub const EXIT_NO: u8 = 1;
/// Exit code 2: wrong usage, or it could not run.
pub const EXIT_COULD_NOT_RUN: u8 = 2;

/// What a verb ends with.
pub type Outcome = color_eyre::Result<ExitCode>;
