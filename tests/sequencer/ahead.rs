//! Where many wait, the next batch is decided while the one before it becomes durable. Nobody may notice but by the clock.

use std::sync::atomic::Ordering;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use wallex::log::MemoryLog;
use wallex::sequencer::{Answer, CommandError, CommandService, Request, SequencerOptions};
use wallex::wallet::Command;

use crate::faulty::{Fault, FaultyLog};
use crate::{assert_sound, id, ok, opening, start, with_key};

/// More than have to wait before anything is decided ahead.
const MANY: usize = 100;

type Answers = JoinSet<Result<Answer, CommandError>>;

/// A log, and a service on it that has opened wallet `a` with so much.
async fn opened(minor: i64) -> (FaultyLog<MemoryLog>, CommandService) {
    opened_with(SequencerOptions::default(), minor).await
}

async fn opened_with(options: SequencerOptions, minor: i64) -> (FaultyLog<MemoryLog>, CommandService) {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, options);
    ok(&service, opening("a", minor)).await;
    (log, service)
}

/// Some commands on their way into the log, which does not answer until what is returned is dropped, and others that wait for
/// that, decided ahead as far as they can be. The answers come in no order.
async fn held_up(
    log: &FaultyLog<MemoryLog>,
    service: &CommandService,
    under_way: impl IntoIterator<Item = Request>,
    waiting: impl IntoIterator<Item = Request>,
) -> (OwnedSemaphorePermit, Answers) {
    let closed = log.gate.clone().acquire_owned().await.expect("an open gate");
    let mut answers = JoinSet::new();
    let mut execute = |request| {
        let service = service.clone();
        answers.spawn(async move { service.execute(request).await });
    };
    under_way.into_iter().for_each(&mut execute);
    everybody_has_a_turn().await;
    waiting.into_iter().for_each(&mut execute);
    everybody_has_a_turn().await;
    (closed, answers)
}

/// On the one thread of such a test, whoever can run does so each time that another yields.
async fn everybody_has_a_turn() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn repeated(command: Command, times: usize) -> impl Iterator<Item = Request> {
    (0..times).map(move |_| Request::new(command.clone()))
}

#[tokio::test]
async fn what_was_decided_ahead_is_durable_with_one_more_append() {
    let (log, service) = opened(0).await;
    let appends = log.appends.load(Ordering::SeqCst);
    let cent = Command::credit(id("a"), "0.01");
    let (closed, answers) = held_up(&log, &service, repeated(cent.clone(), 1), repeated(cent, MANY)).await;
    drop(closed);
    let mut versions: Vec<i64> = Vec::new();
    for answer in answers.join_all().await {
        let wallet = answer.expect("an answer").wallet;
        assert_eq!(wallet.balance.minor(), wallet.version, "each answer is the state that its own command made");
        versions.push(wallet.version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=1 + MANY as i64).collect::<Vec<_>>());
    assert_eq!(log.appends.load(Ordering::SeqCst) - appends, 2);
    assert_sound(&log, 1 + MANY as i64).await;
}

/// Decided ahead, every one of these would be refused: the batch before them, which never happens, takes all.
#[tokio::test]
async fn what_was_decided_ahead_on_a_batch_that_lost_is_decided_anew() {
    let (log, service) = opened(10_000).await;
    let all = repeated(Command::debit(id("a"), "100"), 1);
    let (closed, answers) = held_up(&log, &service, all, repeated(Command::debit(id("a"), "1"), MANY)).await;
    // Another process is faster, and leaves too little for the first and enough for 40 of the others.
    let (other, _) = start(&log.log, SequencerOptions::default());
    ok(&other, Command::debit(id("a"), "60")).await;
    drop(closed);
    let answers = answers.join_all().await;
    let refused = |answer: &&Result<Answer, CommandError>| matches!(answer, Err(CommandError::Rejected(rejection)) if rejection.code() == "INSUFFICIENT_FUNDS");
    assert_eq!(answers.iter().filter(refused).count(), 1 + MANY - 40);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 40);
    assert_sound(&log, 0).await;
}

#[tokio::test]
async fn what_was_decided_ahead_on_an_append_with_an_unknown_outcome_happens_once() {
    for fault in [Fault::AwayBeforeWriting, Fault::AwayAfterWriting] {
        let (log, service) = opened(0).await;
        log.meets(&[fault]);
        let cent = Command::credit(id("a"), "0.01");
        let (closed, answers) = held_up(&log, &service, repeated(cent.clone(), 1), repeated(cent, MANY)).await;
        drop(closed);
        assert!(answers.join_all().await.iter().all(Result::is_ok), "{fault:?}");
        assert_sound(&log, 1 + MANY as i64).await;
    }
}

/// The batch under way is halved and tried again; those decided ahead come after both halves.
#[tokio::test]
async fn what_was_decided_ahead_on_a_batch_that_the_log_refuses_comes_after_its_parts() {
    let (log, service) = opened(0).await;
    log.meets(&[Fault::Refused]);
    let credits = repeated(Command::credit(id("a"), "25"), 4);
    let (closed, answers) = held_up(&log, &service, credits, repeated(Command::debit(id("a"), "1"), MANY)).await;
    drop(closed);
    for answer in answers.join_all().await {
        answer.expect("enough money, in this order");
    }
    assert_sound(&log, 0).await;
}

/// The key of the batch under way is not in the log yet when the same comes again.
#[tokio::test]
async fn a_key_that_is_under_way_has_one_effect_where_it_comes_again() {
    let (log, service) = opened(0).await;
    let again = || [with_key(Command::credit(id("a"), "5"), "k")];
    let others = repeated(Command::credit(id("a"), "0.01"), MANY).chain(again());
    let (closed, answers) = held_up(&log, &service, again(), others).await;
    drop(closed);
    let answers: Vec<Answer> = answers.join_all().await.into_iter().map(|answer| answer.expect("an answer")).collect();
    let replayed: Vec<&Answer> = answers.iter().filter(|answer| answer.replayed).collect();
    assert_eq!(replayed.len(), 1);
    assert_eq!((replayed[0].wallet.balance.minor(), replayed[0].wallet.version), (500, 1));
    assert_sound(&log, 500 + MANY as i64).await;
}

/// A refusal with a key is not believed before the log was asked: here it has the command already.
#[tokio::test]
async fn a_command_that_was_done_before_is_not_refused_ahead() {
    let (log, service) = opened(500).await;
    let paid = || with_key(Command::debit(id("a"), "5"), "k");
    service.execute(paid()).await.expect("a payment");
    let cent = repeated(Command::credit(id("a"), "0.01"), 1);
    let (closed, answers) = held_up(&log, &service, cent, (0..MANY).map(|_| paid())).await;
    drop(closed);
    let answers = answers.join_all().await;
    let replayed = answers.iter().filter(|answer| answer.as_ref().is_ok_and(|answer| answer.replayed)).count();
    assert_eq!(replayed, MANY);
    assert_sound(&log, 1).await;
}

/// A wallet that is not in memory has to be loaded: what is behind it waits, and keeps its order.
#[tokio::test]
async fn a_wallet_that_has_to_be_loaded_is_not_decided_ahead_and_nothing_overtakes_it() {
    let (log, service) =
        opened_with(SequencerOptions { cached_wallets_max: 1, ..SequencerOptions::default() }, 0).await;
    ok(&service, opening("cold", 100)).await;
    ok(&service, Command::credit(id("a"), "0.01")).await;
    let (before, behind) = (MANY / 2, MANY / 2);
    // Half a hundred credits, then all of it goes into the cold wallet; whoever takes from that before finds too little.
    let first = repeated(Command::credit(id("a"), "1"), 1);
    let gather = repeated(Command::credit(id("a"), "1"), before);
    let move_all = Command::transfer(id("a"), id("cold"), format!("{}.01", 1 + before).as_str());
    let take = repeated(Command::debit(id("cold"), "1"), behind);
    let (closed, answers) = held_up(&log, &service, first, gather.chain(repeated(move_all, 1)).chain(take)).await;
    drop(closed);
    for answer in answers.join_all().await {
        answer.expect("enough money, in this order");
    }
    assert_sound(&log, 1 + 100 + 100).await;
}
