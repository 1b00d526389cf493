//! Can the load test be trusted? It must pass against a right service, and fail against each of many wrong ones.

mod service;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use service::{Fault, Service};
use wallex::loadtest::{
    self, Check, Distribution, LoadTestError, OnProgress, Options, Patience, Phase, Progress, Report,
};

const WALLETS: u32 = 20;
const OPERATIONS: u64 = 600;

fn options(url: &str) -> Options {
    Options {
        address: url.to_owned(),
        wallets: WALLETS,
        operations: OPERATIONS,
        workers: 8,
        seed: 1,
        distribution: Distribution::Uniform,
        patience: Patience {
            answer: Duration::from_millis(500),
            operation: Duration::from_secs(10),
            drain: Duration::from_millis(300),
        },
    }
}

fn unseen() -> OnProgress {
    Arc::new(|_| {})
}

async fn run(options: &Options) -> Report {
    loadtest::run(options, unseen()).await.expect("the service answers")
}

async fn run_against(fault: Fault) -> Report {
    let service = Service::start(fault, Duration::ZERO).await;
    run(&options(&service.url)).await
}

fn check<'a>(report: &'a Report, name: &str) -> &'a Check {
    report.proof.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {report:#?}"))
}

fn wrong(report: &Report) -> Vec<&str> {
    report.proof.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect()
}

fn answered(report: &Report) -> (u64, u64) {
    let kinds = report.operations.by_kind();
    (kinds.iter().map(|(_, row)| row.ok).sum(), kinds.iter().map(|(_, row)| row.rejected).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_service_is_proven_right() {
    let report = run_against(Fault::None).await;
    assert!(report.ok(), "{report:#?}");
    let (ok, rejected) = answered(&report);
    assert_eq!(ok + rejected, OPERATIONS);
    assert!(rejected > 0, "this seed asks too much of some wallets");
    assert_eq!(report.rejections.get("INSUFFICIENT_FUNDS"), Some(&rejected));
    assert_eq!((report.failures, report.retries), (0, 0));
    assert!(report.ops_per_second > 0.0 && report.drained_ops_per_second.is_some_and(|rate| rate > 0.0));
    for (kind, row) in report.operations.by_kind() {
        let latency = row.latency_ms;
        let ascending = [latency.p50, latency.p95, latency.p99, latency.max];
        assert!(ascending.is_sorted() && latency.p50.is_some_and(|p50| p50 > 0.0), "{kind:?}: {latency:?}");
    }
    let checks: Vec<_> = report.proof.checks.iter().map(|check| check.name.as_str()).collect();
    let expected = [
        "operations answered",
        "rejections",
        "projections",
        "wallet balances",
        "wallet versions",
        "ledger totals",
        "read model",
        "money conserved",
    ];
    assert_eq!(checks, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_wallet_is_proven_right_too() {
    let service = Service::start(Fault::None, Duration::ZERO).await;
    let report = run(&Options { distribution: Distribution::Hot, ..options(&service.url) }).await;
    assert!(report.ok(), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_of_the_same_seed_finds_its_own_wallets() {
    let service = Service::start(Fault::None, Duration::ZERO).await;
    let (first, second) = (run(&options(&service.url)).await, run(&options(&service.url)).await);
    assert!(first.ok() && second.ok(), "{first:#?} {second:#?}");
    assert_ne!(first.wallet_prefix, second.wallet_prefix);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_sends_the_same_commands() {
    // One worker, so that the order is the plan's.
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let service = Service::start(Fault::None, Duration::ZERO).await;
        let report = run(&Options { workers: 1, seed, ..options(&service.url) }).await;
        let sent: Vec<_> = service
            .received()
            .into_iter()
            .map(|(path, body, _)| format!("{path} {body}").replace(&report.wallet_prefix, "run"))
            .collect();
        runs.push((sent, answered(&report)));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_has_a_key_of_its_own() {
    let service = Service::start(Fault::None, Duration::ZERO).await;
    run(&options(&service.url)).await;
    let received = service.received();
    let keys: HashSet<_> = received.iter().map(|(_, _, key)| key).collect();
    assert_eq!(keys.len(), received.len());
    assert_eq!(received.len() as u64, u64::from(WALLETS) + OPERATIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_is_waited_for_and_measured() {
    let lag = Duration::from_millis(200);
    let service = Service::start(Fault::None, lag).await;
    let report = run(&options(&service.url)).await;
    assert!(report.ok(), "{report:#?}");
    let waited = report.drain_ms.expect("it drained");
    assert!((150.0..1_000.0).contains(&waited), "{waited} ms");
    assert!(report.drained_ops_per_second < Some(report.ops_per_second));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_sum_is_found_and_named() {
    for (fault, expected) in [
        (
            Fault::LosesACredit,
            &["wallet balances", "wallet versions", "ledger totals", "read model", "money conserved"][..],
        ),
        (
            Fault::LosesASecondLeg,
            &["wallet balances", "wallet versions", "ledger totals", "read model", "money conserved"],
        ),
        (Fault::MiscountsAVersion, &["wallet versions"]),
        (Fault::LosesACentInTheLedger, &["ledger totals", "money conserved"]),
        (Fault::MiscountsTheLedger, &["ledger totals"]),
        (Fault::HasAStaleReadModel, &["read model", "money conserved"]),
        (Fault::LacksAWalletInTheReadModel, &["read model", "money conserved"]),
        (Fault::LinksNoPages, &["read model", "money conserved"]),
        (Fault::LinksPagesInACircle, &["read model", "money conserved"]),
        (Fault::AnswersAFloat, &["wallet balances", "wallet versions", "money conserved"]),
        (Fault::RefusesWithoutReason, &["rejections"]),
    ] {
        let report = run_against(fault).await;
        assert_eq!(wrong(&report), expected, "{fault:?}: {report:#?}");
        assert!(!report.ok() && report.failures == 0, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_difference_says_which_wallet_and_what_it_holds() {
    let report = run_against(Fault::LosesACentInTheLedger).await;
    let found = &check(&report, "ledger totals").actual;
    assert!(found.starts_with("19 of 20; loadtest-"), "{found}");
    assert!(found.contains("-000002: expected credits ") && found.contains(".00 USD"), "{found}");
    assert!(found.contains(".99 USD"), "{found}");
    let money = check(&report, "money conserved");
    assert!(money.actual.contains(&format!("wallets {}, ledger ", money.expected)), "{money:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_service_is_asked_again_until_it_answers() {
    let report = run_against(Fault::IsBusyNowAndThen).await;
    assert!(report.ok(), "{report:#?}");
    assert!(report.retries >= OPERATIONS / 4, "{}", report.retries);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_a_busy_service_asks_for_is_given() {
    let service = Service::start(Fault::AsksForASecond, Duration::ZERO).await;
    let report = run(&options(&service.url)).await;
    assert!(report.ok() && report.retries == 1, "{report:#?}");
    let longest = report.operations.by_kind().iter().filter_map(|(_, row)| row.latency_ms.max).fold(0.0, f64::max);
    assert!((1_000.0..2_000.0).contains(&longest), "{longest} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_answer_was_lost_is_settled_by_its_key() {
    let report = run_against(Fault::AnswersTooLate).await;
    assert!(report.ok() && report.retries == 1, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_forgets_keys_is_found_to_double_money() {
    let report = run_against(Fault::AnswersTooLateAndForgetsKeys).await;
    assert!(wrong(&report).contains(&"wallet balances"), "{report:#?}");
    assert_eq!((report.failures, report.retries), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_500_is_a_failure_and_never_a_rejection() {
    let report = run_against(Fault::AnswersOnceWith500).await;
    assert_eq!(report.failures, 1);
    let failed: u64 = report.operations.by_kind().iter().map(|(_, row)| row.failed).sum();
    let (ok, rejected) = answered(&report);
    assert_eq!((failed, ok + rejected), (1, OPERATIONS - 1));
    assert!(!report.ok());
    let answered = check(&report, "operations answered");
    assert!(!answered.ok && answered.actual.contains("599, 1 failed: request "), "{answered:?}");
    assert!(answered.actual.contains("answered 500"), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_is_not_the_contracts_is_a_failure() {
    let report = run_against(Fault::RefusesInPlainText).await;
    assert_eq!(report.failures, 1, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_only_fails_is_given_up() {
    let service = Service::start(Fault::AnswersAlwaysWith500, Duration::ZERO).await;
    let report = run(&options(&service.url)).await;
    assert!((100..110).contains(&report.failures), "{}", report.failures);
    assert!(service.received().len() < 200, "{} commands", service.received().len());
    assert!(check(&report, "operations answered").actual.contains("given up"), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_never_has_time_fails_within_the_bound() {
    let service = Service::start(Fault::IsAlwaysBusy, Duration::ZERO).await;
    let mut options = options(&service.url);
    options.patience.operation = Duration::from_millis(300);
    let report = run(&options).await;
    assert_eq!(report.failures, u64::from(WALLETS));
    assert_eq!(wrong(&report), ["operations answered", "projections", "wallets opened"]);
    let opened = check(&report, "wallets opened");
    assert!(opened.actual.starts_with("0, 20 failed: request ") && opened.actual.contains("503"), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_wallets_that_could_not_be_opened() {
    let mut wallets = options("");
    let service = Service::start(Fault::KnowsAWalletBefore, Duration::ZERO).await;
    wallets.address.clone_from(&service.url);
    wallets.wallets = 30;
    let report = run(&wallets).await;
    assert!(!report.ok());
    assert_eq!(check(&report, "wallets opened").actual, "29, 1 refused with WALLET_EXISTS");
    assert_eq!(service.received().len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_stands_still_is_given_up_and_named() {
    let report = run_against(Fault::HasAStuckProjection).await;
    assert_eq!(wrong(&report), ["projections"]);
    assert!(check(&report, "projections").actual.contains("read-model-projector at 3"), "{report:#?}");
    assert_eq!((report.drain_ms, report.drained_ops_per_second), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_progress_is_not_taken_for_drained() {
    let report = run_against(Fault::TellsNoProgress).await;
    assert_eq!(wrong(&report), ["projections"]);
    assert!(check(&report, "projections").actual.contains("404"), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_phase_reports_its_progress_to_its_end() {
    let service = Service::start(Fault::None, Duration::ZERO).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let tell: OnProgress = Arc::new(move |step| told.lock().expect("no panic").push(step));
    let report = loadtest::run(&options(&service.url), tell).await.expect("the service answers");
    assert!(report.ok(), "{report:#?}");
    let seen: Vec<Progress> = seen.lock().expect("no panic").clone();
    for (phase, total) in
        [(Phase::Wallets, u64::from(WALLETS)), (Phase::Operations, OPERATIONS), (Phase::Proof, u64::from(WALLETS) * 3)]
    {
        let of_phase: Vec<_> = seen.iter().filter(|step| step.phase == phase).collect();
        assert!(of_phase.is_sorted_by_key(|step| step.done), "{phase:?}");
        assert_eq!(of_phase.last().map(|step| (step.done, step.total)), Some((total, total)), "{phase:?}");
    }
    assert!(seen.iter().any(|step| step.phase == Phase::Drain && step.done == step.total));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_has_exactly_the_keys_of_its_schema() {
    let report = serde_json::to_value(run_against(Fault::None).await).expect("JSON");
    let keys = |value: &Value| {
        let mut keys: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(
        keys(&report),
        [
            "drainMs",
            "drainedOpsPerSecond",
            "durationMs",
            "failures",
            "operations",
            "opsPerSecond",
            "proof",
            "rejections",
            "seed",
            "wallets"
        ]
    );
    assert_eq!(keys(&report["operations"]), ["credit", "debit", "transfer"]);
    for row in report["operations"].as_object().expect("an object").values() {
        assert_eq!(keys(row), ["failed", "latencyMs", "ok", "rejected"]);
        assert_eq!(keys(&row["latencyMs"]), ["max", "p50", "p95", "p99"]);
    }
    assert_eq!(keys(&report["rejections"]), ["INSUFFICIENT_FUNDS"]);
    assert_eq!(keys(&report["proof"]), ["checks", "ok"]);
    for check in report["proof"]["checks"].as_array().expect("a list") {
        assert_eq!(keys(check), ["actual", "expected", "name", "ok"]);
    }
}

#[tokio::test]
async fn what_cannot_run_says_why_in_one_line() {
    let message = async |options: Options| {
        let error = loadtest::run(&options, unseen()).await.expect_err("it cannot run");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        (error, text)
    };
    let somewhere = || options("http://127.0.0.1:9");
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("the port"));
    drop(listener);

    let (error, text) = message(options(&url)).await;
    assert!(matches!(error, LoadTestError::Unreachable { .. }), "{error:?}");
    assert!(text.contains(&url) && text.contains("refused"), "{text}");
    assert!(message(options("http://no-such-host.invalid")).await.1.contains("no-such-host.invalid"));
    assert!(message(options("127.0.0.1:3000")).await.1.contains("http://127.0.0.1:3000"));
    assert!(message(Options { wallets: 1, ..somewhere() }).await.1.contains("wallets must be 2 to 1000000"));
    assert!(message(Options { operations: 0, ..somewhere() }).await.1.contains("operations must be 1 to"));
    assert!(message(Options { workers: 1_025, ..somewhere() }).await.1.contains("workers must be 1 to 1024"));
}
