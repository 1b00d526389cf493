//! `wallex loadtest`: a measured run, and the proof of what it left behind.

use std::collections::HashMap;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use color_eyre::eyre::eyre;
use comfy_table::CellAlignment;
use indicatif::ProgressBar;

use crate::cli::{EXIT_NO, Format, Outcome, Output};
use crate::loadtest::{
    self, Check, Distribution, LoadTestError, OPERATIONS_MAX, OnProgress, Options, Patience, Phase, Progress, Report,
    WALLETS_MAX, WORKERS_MAX,
};

const EXAMPLES: &str = "\
Examples:
  wallex loadtest                                        1000 wallets, 20000 operations, 20 at a time
  wallex loadtest --seed 7 --distribution hot            the same operations each time, most of them on one wallet
  wallex loadtest --url http://10.0.0.5:3000 -o json     another machine's service, for a program to read

Exit code: 0 if nothing failed and every balance is proven, 1 if not, 2 if it could not run.";

/// Measure credits, debits and transfers over HTTP, then prove every balance to the cent
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Wallets to open, each with 100 to 5000; at least 2, as a transfer needs two
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, allow_negative_numbers = true, value_parser = wallets)]
    pub wallets: u32,

    /// Operations to send: credits (10-500), debits (10-200) and transfers (10-300), a third each
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, allow_negative_numbers = true, value_parser = operations)]
    pub operations: u64,

    /// Operations under way at a time, each on a connection of its own
    #[arg(long, value_name = "COUNT", default_value_t = 20, allow_negative_numbers = true, value_parser = workers)]
    pub workers: usize,

    /// Draws the operations: the same seed sends the same ones [default: drawn, and printed]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = seed)]
    pub seed: Option<u64>,

    /// The service to measure [default: the running `serve` of the data directory, or one started for the run]
    #[arg(long, value_name = "URL", value_parser = address)]
    pub url: Option<String>,

    /// Which wallets are drawn
    #[arg(long, value_enum, default_value_t)]
    pub distribution: Distribution,
}

/// The checks of `wallex verify`, made when the future is polled, or why they could not be made.
pub type Verify<'a> = Pin<Box<dyn Future<Output = Result<Vec<Check>, String>> + Send + 'a>>;

/// Runs against the service at `target_url`. `verify` is asked after the load test's own proof; `None` where there is no
/// database to look into.
///
/// # Errors
/// Where the service does not answer at all, or stdout cannot be written.
pub async fn run(args: &Args, target_url: &str, verify: Option<Verify<'_>>, output: &Output) -> Outcome {
    let options = Options {
        address: target_url.to_owned(),
        wallets: args.wallets,
        operations: args.operations,
        workers: args.workers,
        // Of 32 bits, so that it can be read out and survives any JSON reader.
        seed: args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
        distribution: args.distribution,
        patience: Patience::default(),
    };
    let bars = Arc::new(Bars { output: *output, bars: Mutex::default() });
    let mut report = loadtest::run(&options, bars.on_progress()).await.map_err(|error| explain(error, args))?;
    bars.finish();

    let verified = verify.is_some();
    if let Some(checks) = verify {
        report.add_checks(checks.await.unwrap_or_else(|reason| vec![Check::new("verify", false, "an answer", reason)]));
    }
    tell_failures(&report, output);
    match output.format {
        Format::Json => output.json(&report)?,
        Format::Table => print_tables(&report, &options, output)?,
    }
    if !verified {
        output.note("verify was not run: it needs the service's database (WALLEX_DATABASE_URL)");
    }
    Ok(ExitCode::from(if report.ok() { 0 } else { EXIT_NO }))
}

fn wallets(text: &str) -> Result<u32, String> {
    whole_number(text, 2, u64::from(WALLETS_MAX))
}

fn operations(text: &str) -> Result<u64, String> {
    whole_number(text, 1, OPERATIONS_MAX)
}

fn workers(text: &str) -> Result<usize, String> {
    whole_number(text, 1, WORKERS_MAX as u64)
}

fn seed(text: &str) -> Result<u64, String> {
    whole_number(text, 0, u64::MAX)
}

fn whole_number<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| format!("a whole number of {min} to {max} is due"))
}

fn address(text: &str) -> Result<String, LoadTestError> {
    loadtest::parse_address(text).map(|_| text.to_owned())
}

fn explain(error: LoadTestError, args: &Args) -> color_eyre::Report {
    match error {
        LoadTestError::Unreachable { .. } if args.url.is_some() => {
            eyre!("{error} (--url must name a running `wallex serve`)")
        }
        other => other.into(),
    }
}

/// A bar for each phase, made when the phase begins.
struct Bars {
    output: Output,
    bars: Mutex<HashMap<Phase, ProgressBar>>,
}

impl Bars {
    fn on_progress(self: &Arc<Self>) -> OnProgress {
        let bars = Arc::clone(self);
        Arc::new(move |progress| bars.show(progress))
    }

    fn show(&self, progress: Progress) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(progress.phase).or_insert_with(|| self.output.bar(progress.total, title(progress.phase)));
        bar.set_position(progress.done);
        if progress.done >= progress.total {
            bar.finish();
        }
    }

    /// What has not come to its end stays as it is: the report says why.
    fn finish(&self) {
        for bar in self.bars.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Wallets => "opening wallets",
        Phase::Operations => "operations",
        Phase::Drain => "draining (events)",
        Phase::Proof => "proof",
    }
}

fn tell_failures(report: &Report, output: &Output) {
    for failure in &report.first_failures {
        output.note(format!("failed: {failure}"));
    }
    let untold = report.failures.saturating_sub(report.first_failures.len() as u64);
    if untold > 0 {
        output.note(format!("and {untold} more failures"));
    }
}

fn print_tables(report: &Report, options: &Options, output: &Output) -> std::io::Result<()> {
    output.line(format!(
        "seed {}, {} wallets ({}-…), {} operations, {} at a time",
        report.seed, report.wallets, report.wallet_prefix, options.operations, options.workers
    ))?;
    let mut kinds = output.table(&["operation", "ok", "rejected", "failed", "p50 ms", "p95 ms", "p99 ms", "max ms"]);
    for (kind, row) in report.operations.by_kind() {
        let latency = row.latency_ms;
        let counts = [row.ok, row.rejected, row.failed].map(|count| count.to_string());
        let times = [latency.p50, latency.p95, latency.p99, latency.max].map(milliseconds);
        kinds.add_row([kind.name().to_owned()].into_iter().chain(counts).chain(times));
    }
    for column in kinds.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    output.line(kinds.to_string())?;
    for (code, count) in &report.rejections {
        output.line(format!("rejected       {count} {code}: an answer, no failure"))?;
    }
    if report.retries > 0 {
        output.line(format!("sent again     {} requests, for want of an answer", report.retries))?;
    }
    output.line(format!("issuing        {:.1} operations/s, {:.0} ms", report.ops_per_second, report.duration_ms))?;
    output.line(match (report.drained_ops_per_second, report.drain_ms) {
        (Some(rate), Some(waited)) => {
            format!("drained        {rate:.1} operations/s, until both projections held the last event, {waited:.0} ms later")
        }
        _ => "drained        never: the projections did not come to the last event".to_owned(),
    })?;
    let mut proof = output.table(&["proof", "", "expected", "actual"]);
    for check in &report.proof.checks {
        proof.add_row([check.name.as_str(), if check.ok { "ok" } else { "WRONG" }, &check.expected, &check.actual]);
    }
    output.line(proof.to_string())?;
    output.line(if report.ok() { "proven: every balance is right to the cent" } else { "NOT proven" })
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, String> {
        let line = Line::try_parse_from([&["loadtest"], words].concat());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_earlier_systems_workload() {
        let args = parse(&[]).expect("no argument is needed");
        assert_eq!((args.wallets, args.operations, args.workers), (1_000, 20_000, 20));
        assert_eq!((args.seed, args.url, args.distribution), (None, None, Distribution::Uniform));
    }

    #[test]
    fn a_wrong_argument_is_named_with_what_would_be_right() {
        for (words, named, right) in [
            (["--wallets", "1"], "--wallets", "2 to 1000000"),
            (["--wallets", "abc"], "--wallets", "2 to 1000000"),
            (["--wallets", "-5"], "--wallets", "2 to 1000000"),
            (["--operations", "0"], "--operations", "1 to 10000000"),
            (["--workers", "0"], "--workers", "1 to 1024"),
            (["--workers", "1025"], "--workers", "1 to 1024"),
            (["--seed", "-1"], "--seed", "0 to 18446744073709551615"),
            (["--seed", "18446744073709551616"], "--seed", "0 to 18446744073709551615"),
            (["--distribution", "zipf"], "--distribution", "uniform, hot"),
            (["--url", "localhost"], "--url", "http://127.0.0.1:3000"),
            (["--url", "localhost:3000"], "--url", "http://127.0.0.1:3000"),
            (["--url", "https://example.org"], "--url", "not http"),
            (["--url", "http://"], "--url", "http://127.0.0.1:3000"),
        ] {
            let error = parse(&words).expect_err("a wrong argument");
            assert!(error.contains(named) && error.contains(right), "{words:?}: {error}");
        }
    }
}
