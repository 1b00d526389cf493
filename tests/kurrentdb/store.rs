//! The store: what a log over KurrentDB promises though servers, connections and clients fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use eventstore::{AppendToStreamOptions, Client, EventData, ExpectedRevision};
use uuid::Uuid;
use wallex::kurrentdb::{KurrentConfig, KurrentLog, event_id};
use wallex::log::{Appended, Atomicity, Batch, EventLog, LogError, NewEvent};
use wallex::wallet::WalletId;

use crate::kurrentdb_server::{AppendFault, KurrentServer};

fn log(server: &KurrentServer) -> KurrentLog {
    KurrentLog::new(KurrentConfig::new(&server.connection_string()).expect("a connection string"))
}

pub fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a wallet id")
}

fn at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 123_456_000).expect("a time")
}

pub fn batch(stream: &str, revisions: std::ops::Range<i64>) -> Batch {
    let event = |revision| NewEvent {
        stream: id(stream),
        stream_key: None,
        revision,
        event_id: event_id("a command", &id(stream), revision),
        event_type: "WalletCredited",
        payload: br#"{"amount":  "1.00"}"#.to_vec(),
        metadata: Arc::from(&br#"{"correlationId":"c","causationId":"d"}"#[..]),
    };
    Batch { recorded_at: at(), events: revisions.map(event).collect(), ..Batch::default() }
}

/// As a writer does it: the same batch until its outcome is known.
pub async fn settle(log: &KurrentLog, batch: &Batch) -> Appended {
    loop {
        match log.append(batch).await {
            Ok(appended) => return appended,
            Err(LogError::Away(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_settled_by_the_same_bytes() {
    let server = KurrentServer::start();
    let log = log(&server);
    settle(&log, &batch("a", 0..1)).await;
    for (revision, fault) in [(1, AppendFault::CutBefore), (2, AppendFault::CutAfter)] {
        server.fail_next_append(fault);
        let lost = batch("a", revision..revision + 1);
        assert!(matches!(settle(&log, &lost).await, Appended::At(_)), "{fault:?}");
        assert_eq!(server.log().len() as i64, revision + 1, "once");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_is_found_again() {
    let mut server = KurrentServer::start();
    let log = log(&server);
    server.kill();
    // The very first contact: the client that it made is dead for ever.
    assert!(matches!(log.append(&batch("a", 0..1)).await, Err(LogError::Away(_))));
    server.start_again();
    let Appended::At(position) = settle(&log, &batch("a", 0..1)).await else { panic!("not written") };
    server.kill();
    assert!(matches!(log.append(&batch("a", 1..2)).await, Err(LogError::Away(_))));
    assert!(matches!(log.read_stream(&id("a"), 0, 10).await, Err(LogError::Away(_))));
    server.start_again();
    assert!(matches!(settle(&log, &batch("a", 1..2)).await, Appended::At(_)));
    assert_eq!(settle(&log, &batch("a", 0..1)).await, Appended::At(position), "the first answer again");
    assert_eq!(server.log().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_silent_is_said_to_be_away_in_time() {
    let server = KurrentServer::start();
    let log = log(&server);
    settle(&log, &batch("a", 0..1)).await;
    server.be_silent(true);
    let (append, read) = (batch("a", 1..2), id("a"));
    let both = async { tokio::join!(log.append(&append), log.read_stream(&read, 0, 10)) };
    let (appended, read) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("in time");
    assert!(matches!(appended, Err(LogError::Away(_))) && matches!(read, Err(LogError::Away(_))));
    server.be_silent(false);
    assert!(matches!(settle(&log, &append).await, Appended::At(_)));
    assert_eq!(server.log().len(), 2);
}

#[tokio::test]
async fn a_leader_that_moves_is_followed() {
    let first = KurrentServer::start();
    let second = first.another_node();
    let log = log(&first);
    settle(&log, &batch("a", 0..1)).await;
    first.follow(Some(second.address()));
    first.cut_connections();
    settle(&log, &batch("a", 1..2)).await;
    assert_eq!(first.log().len(), 2);
    // And reads never come from one that may be behind.
    let mut read = log.read_stream(&id("a"), 0, 10).await;
    if read.is_err() {
        read = log.read_stream(&id("a"), 0, 10).await;
    }
    assert_eq!(read.expect("events").len(), 2);
}

/// One conflict ends the call that all appends share; the others must not notice.
#[tokio::test]
async fn conflicts_of_some_do_not_fail_the_appends_of_others() {
    const WRITERS: usize = 16;
    const EACH: i64 = 20;
    let server = KurrentServer::start();
    let log = log(&server);
    settle(&log, &batch("contended", 0..1)).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let log = log.clone();
        writers.spawn(async move {
            for revision in 0..EACH {
                if writer == 0 {
                    let wrong = batch("contended", revision + 5..revision + 6);
                    assert_eq!(settle(&log, &wrong).await, Appended::Conflict);
                } else {
                    let own = batch(&format!("w{writer}"), revision..revision + 1);
                    assert!(matches!(settle(&log, &own).await, Appended::At(_)));
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer that went well");
    }
    assert_eq!(server.log().len() as i64, 1 + (WRITERS as i64 - 1) * EACH);
}

/// The call that all appends share ends with one that is refused, so a stream at which that happens is left out of it for a while.
#[tokio::test]
async fn a_stream_that_others_write_to_does_not_end_the_call_of_all_again_and_again() {
    const REFUSED: i64 = 20;
    let server = KurrentServer::start();
    let log = log(&server);
    settle(&log, &batch("contended", 0..1)).await;
    for revision in 0..REFUSED {
        settle(&log, &batch("quiet", revision..revision + 1)).await;
        assert_eq!(settle(&log, &batch("contended", revision + 5..revision + 6)).await, Appended::Conflict);
    }
    // On a machine that is busy enough some come after that while.
    assert!(server.append_calls() < REFUSED as u64 / 2, "{}", server.append_calls());
    // And what is sent by itself is settled as well.
    for (revision, fault) in [(1, None), (2, Some(AppendFault::CutBefore)), (3, Some(AppendFault::CutAfter))] {
        assert_eq!(settle(&log, &batch("contended", 99..100)).await, Appended::Conflict);
        if let Some(fault) = fault {
            server.fail_next_append(fault);
        }
        assert!(
            matches!(settle(&log, &batch("contended", revision..revision + 1)).await, Appended::At(_)),
            "{fault:?}"
        );
        assert_eq!(server.log().len() as i64, 1 + REFUSED + revision, "once");
    }
}

#[tokio::test]
async fn what_a_single_stream_cannot_do_is_refused_and_not_half_done() {
    let server = KurrentServer::start();
    let log = log(&server);
    assert_eq!(log.atomicity(), Atomicity::Stream);
    let two_streams = Batch { events: [batch("a", 0..1).events, batch("b", 0..1).events].concat(), ..batch("a", 0..0) };
    let on_head = Batch { expected_head: Some(0), ..batch("a", 0..1) };
    for refused in [two_streams, on_head, Batch::default()] {
        assert!(matches!(log.append(&refused).await, Err(LogError::Unsupported(_))));
    }
    assert!(matches!(log.find_keys(&[]).await, Err(LogError::Unsupported(_))));
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn the_whole_log_is_scanned_page_by_page_and_streams_of_others_are_passed_over() {
    let server = KurrentServer::start();
    let log = log(&server);
    let client = Client::new(server.connection_string().parse().expect("a connection string")).expect("a client");
    let mut written = Vec::new();
    for number in 0..5 {
        let stream = format!("wallet-{number}");
        settle(&log, &batch(&stream, 0..2)).await;
        written.extend([(stream.clone(), 0), (stream, 1)]);
        for foreign in ["snapshot-wallet-1", "other", "$$wallet-1", "wallet-", "wallet-no such id"] {
            let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
            let event = EventData::json("X", &number).expect("JSON").id(Uuid::now_v7());
            client.append_to_stream(foreign, &options, event).await.expect("a foreign event");
        }
    }
    for early in [false, true] {
        server.end_reads_early(early);
        let (mut found, mut place, mut strays) = (Vec::new(), None, 0);
        loop {
            let page = log.scan(place, 4).await.expect("a page");
            let Some(looked_to) = page.looked_to else { break };
            assert!(place.is_none_or(|place| place < looked_to.place));
            let kept = server.log().into_iter().find(|kept| kept.position == looked_to.place.commit);
            assert_eq!(kept.expect("an event there").id, looked_to.event_id);
            place = Some(looked_to.place);
            for (_, name) in page.strays {
                assert!(["wallet-", "wallet-no such id"].contains(&name.as_str()), "{name}");
                strays += 1;
            }
            for (place, event) in page.events {
                assert_eq!((event.position as u64, place.commit), (place.commit, place.prepare));
                assert_eq!((event.recorded_at, event.event_version), (at(), 1));
                found.push((event.stream.as_str().to_owned(), event.revision));
            }
        }
        // Each wallet is called wallet-N itself, so its stream is wallet-wallet-N.
        assert_eq!(found, written);
        // The last ones are not seen where a page ends before them.
        assert!(if early { strays >= 2 * 4 } else { strays == 2 * 5 }, "{strays}");
    }
}

/// A lone caller waits for its own append or read only, not for the kernel's delayed acknowledgement of the half before it, which
/// costs a call of the client's some 45 ms. The best of some rounds: others may be using the machine.
#[tokio::test]
async fn slow_a_lone_caller_does_not_wait_for_delayed_acknowledgements() {
    let mut server = KurrentServer::start();
    let log = log(&server);
    let client = Client::new(server.connection_string().parse().expect("a connection string")).expect("a client");
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (mut appends, mut reads, mut of_its_own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..6 {
        if round == 3 {
            // New connections are no slower.
            server.kill();
            server.start_again();
            settle(&log, &batch("again", 0..1)).await;
        }
        let stream = format!("r{round}");
        let (mut append, mut read, mut unary) = (Vec::new(), Vec::new(), Vec::new());
        for revision in 0..30 {
            let begun = Instant::now();
            settle(&log, &batch(&stream, revision..revision + 1)).await;
            append.push(begun.elapsed());
            let begun = Instant::now();
            assert_eq!(log.read_stream(&id(&stream), revision, 1).await.expect("events").len(), 1);
            read.push(begun.elapsed());
            if round == 0 {
                let options = AppendToStreamOptions::default().expected_revision(ExpectedRevision::Any);
                let event = EventData::json("X", &revision).expect("JSON").id(Uuid::now_v7());
                let begun = Instant::now();
                client.append_to_stream("unary", &options, event).await.expect("an append");
                unary.push(begun.elapsed());
            }
        }
        appends.push(median(append));
        reads.push(median(read));
        of_its_own.extend((round == 0).then(|| median(unary)));
    }
    println!("medians of a lone caller: appends {appends:?}, reads {reads:?}; the client by itself {of_its_own:?}");
    // Held against what it would be otherwise, in the same minute: an idle machine answers within one or two milliseconds.
    let by_itself = of_its_own[0];
    for medians in [&appends[..3], &appends[3..], &reads[..3], &reads[3..]] {
        assert!(medians.iter().min().is_some_and(|best| *best < by_itself / 3), "{medians:?}, by itself {by_itself:?}");
    }
}
