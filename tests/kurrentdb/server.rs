//! The test server answers as a real one was seen to, through the real client, row by row.

use std::time::Duration;

use eventstore::{
    AppendToStreamOptions, BatchAppendOptions, Client, CurrentRevision, Error, EventData, ExpectedRevision,
    ReadAllOptions, ReadStreamOptions, RetryOptions, StreamPosition, SubscribeToAllOptions, Subscription,
    SubscriptionEvent, SubscriptionFilter,
};
use uuid::Uuid;

use crate::kurrentdb_server::{AppendFault, KurrentServer};

/// How long a test waits for what must come; never a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn client(server: &KurrentServer) -> Client {
    Client::new(server.connection_string().parse().expect("a connection string")).expect("a client")
}

fn event(id: u128) -> EventData {
    EventData::json("T", &id.to_string()).expect("JSON").id(Uuid::from_u128(id))
}

fn events(ids: &[u128]) -> Vec<EventData> {
    ids.iter().map(|id| event(*id)).collect()
}

/// How an append was answered: revision and position, or how it was refused.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Written(u64, u64),
    Wrong(Option<u64>),
}

async fn append(client: &Client, stream: &str, expected: ExpectedRevision, ids: &[u128]) -> Answer {
    let options = AppendToStreamOptions::default().expected_revision(expected);
    match client.append_to_stream(stream, &options, events(ids)).await {
        Ok(written) => {
            assert_eq!(written.position.commit, written.position.prepare);
            Answer::Written(written.next_expected_version, written.position.commit)
        }
        Err(Error::WrongExpectedVersion { current, expected: said }) => {
            assert_eq!(said, expected);
            Answer::Wrong(match current {
                CurrentRevision::Current(revision) => Some(revision),
                CurrentRevision::NoStream => None,
            })
        }
        Err(other) => panic!("{other:?}"),
    }
}

async fn batch(client: &Client, stream: &str, expected: ExpectedRevision, ids: &[u128]) -> Result<(u64, u64), Error> {
    let appends = client.batch_append(&BatchAppendOptions::default()).await.expect("a call");
    let written = appends.append_to_stream(stream, expected, events(ids)).await?;
    let position = written.current_position().expect("a position");
    Ok((written.current_revision().expect("a revision"), position.commit))
}

fn count(server: &KurrentServer) -> usize {
    server.log().len()
}

use ExpectedRevision::{Any, Exact, NoStream};

#[tokio::test]
async fn the_same_append_again_is_answered_as_the_first_time_also_after_a_restart() {
    let mut server = KurrentServer::start();
    let one = client(&server);
    let Answer::Written(0, first) = append(&one, "a", NoStream, &[1]).await else { panic!("not written") };
    let Answer::Written(2, second) = append(&one, "a", Exact(0), &[2, 3]).await else { panic!("not written") };
    assert!(first < second);
    for restart in [false, true] {
        if restart {
            server.kill();
            server.start_again();
        }
        let again = client(&server);
        assert_eq!(append(&again, "a", NoStream, &[1]).await, Answer::Written(0, first));
        assert_eq!(append(&again, "a", Exact(0), &[2, 3]).await, Answer::Written(2, second));
        // A prefix of an earlier batch, and one that spans two.
        let Answer::Written(1, between) = append(&again, "a", Exact(0), &[2]).await else { panic!("no retry") };
        assert!(first < between && between < second);
        assert_eq!(append(&again, "a", NoStream, &[1, 2, 3]).await, Answer::Written(2, second));
        assert_eq!(batch(&again, "a", Exact(0), &[2, 3]).await.expect("a retry"), (2, second));
        assert_eq!(count(&server), 3);
    }
}

#[tokio::test]
async fn a_batch_that_is_partly_new_is_a_wrong_version_and_writes_nothing() {
    let server = KurrentServer::start();
    let client = client(&server);
    append(&client, "a", NoStream, &[1, 2]).await;
    for (expected, ids) in [(NoStream, &[1, 2, 3][..]), (NoStream, &[9, 2]), (NoStream, &[1, 9]), (Exact(0), &[9])] {
        assert_eq!(append(&client, "a", expected, ids).await, Answer::Wrong(Some(1)), "{ids:?}");
    }
    assert_eq!(count(&server), 2);
}

#[tokio::test]
async fn a_known_id_at_a_new_revision_or_in_another_stream_is_written_again() {
    let server = KurrentServer::start();
    let client = client(&server);
    append(&client, "a", NoStream, &[1]).await;
    assert!(matches!(append(&client, "a", Exact(0), &[1]).await, Answer::Written(1, _)));
    assert!(matches!(append(&client, "b", NoStream, &[1]).await, Answer::Written(0, _)));
    assert_eq!(count(&server), 3);
}

#[tokio::test]
async fn any_knows_an_id_until_the_server_restarts() {
    let mut server = KurrentServer::start();
    let Answer::Written(0, position) = append(&client(&server), "a", Any, &[1]).await else { panic!("not written") };
    assert_eq!(append(&client(&server), "a", Any, &[1]).await, Answer::Written(0, position));
    server.kill();
    server.start_again();
    assert!(matches!(append(&client(&server), "a", Any, &[1]).await, Answer::Written(1, _)));
}

#[tokio::test]
async fn a_wrong_revision_is_told_with_the_current_one_and_by_the_batch_call_without() {
    let server = KurrentServer::start();
    let client = client(&server);
    assert_eq!(append(&client, "a", Exact(0), &[1]).await, Answer::Wrong(None));
    append(&client, "a", NoStream, &[1]).await;
    assert_eq!(append(&client, "a", Exact(7), &[2]).await, Answer::Wrong(Some(0)));
    assert_eq!(append(&client, "a", NoStream, &[2]).await, Answer::Wrong(Some(0)));
    match batch(&client, "a", Exact(7), &[2]).await {
        Err(Error::Grpc { code, message }) => {
            assert_eq!((i32::from(code), message.as_str()), (6, "WrongExpectedVersion"));
        }
        other => panic!("{other:?}"),
    }
}

/// The client ends its long call on the first error: why a store that shares one must send the others' appends again.
#[tokio::test]
async fn one_refused_append_ends_the_batch_call_for_the_others() {
    let server = KurrentServer::start();
    let client = client(&server);
    let appends = client.batch_append(&BatchAppendOptions::default()).await.expect("a call");
    appends.append_to_stream("a", Exact(7), events(&[1])).await.expect_err("a wrong version");
    match appends.append_to_stream("b", NoStream, events(&[2])).await {
        Err(Error::ServerError(message)) => {
            assert!(message.contains("Batch-append stream has been closed"), "{message}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn streams_and_the_whole_log_are_read_from_either_end() {
    let server = KurrentServer::start();
    let client = client(&server);
    append(&client, "a", NoStream, &[1, 2]).await;
    append(&client, "b", NoStream, &[3]).await;
    append(&client, "a", Exact(1), &[4]).await;
    let missing = client.read_stream("nobody", &ReadStreamOptions::default()).await;
    assert!(matches!(missing.expect("a read").next().await, Err(Error::ResourceNotFound)));

    let all = async |options: ReadAllOptions| {
        let mut read = client.read_all(&options.max_count(10)).await.expect("a read");
        let mut found = Vec::new();
        while let Some(event) = read.next().await.expect("an event") {
            let event = event.get_original_event();
            assert_eq!(event.position.commit, event.position.prepare);
            found.push((event.id.as_u128(), event.position));
        }
        found
    };
    let forwards = all(ReadAllOptions::default().forwards().position(StreamPosition::Start)).await;
    assert_eq!(forwards.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(forwards.windows(2).all(|two| two[0].1.commit + 1 < two[1].1.commit), "positions grow, with gaps");
    // Forwards from a position begins with the event there.
    let from = ReadAllOptions::default().forwards().position(StreamPosition::Position(forwards[2].1));
    assert_eq!(all(from).await, forwards[2..]);
    let mut backwards = all(ReadAllOptions::default().backwards().position(StreamPosition::End)).await;
    backwards.reverse();
    assert_eq!(backwards, forwards);

    let stream = async |options: ReadStreamOptions| {
        let mut read = client.read_stream("a", &options.max_count(2)).await.expect("a read");
        let mut found = Vec::new();
        while let Some(event) = read.next().await.expect("an event") {
            found.push(event.get_original_event().revision);
        }
        found
    };
    assert_eq!(stream(ReadStreamOptions::default().forwards().position(StreamPosition::Position(1))).await, [1, 2]);
    assert_eq!(stream(ReadStreamOptions::default().forwards().position(StreamPosition::Position(3))).await, [0; 0]);
    assert_eq!(stream(ReadStreamOptions::default().backwards().position(StreamPosition::End)).await, [2, 1]);
}

#[tokio::test]
async fn an_append_that_is_cut_was_written_or_not_as_the_switch_says() {
    let server = KurrentServer::start();
    for (fault, written) in [(AppendFault::CutBefore, 0), (AppendFault::CutAfter, 1)] {
        let client = client(&server);
        client.server_info().await.expect("a first contact");
        server.fail_next_append(fault);
        let options = AppendToStreamOptions::default().expected_revision(NoStream);
        let error = client.append_to_stream("a", &options, events(&[1])).await.expect_err("no answer");
        assert!(matches!(&error, Error::ServerError(_)), "{error:?}");
        assert_eq!(count(&server), written);
    }
    let client = client(&server);
    client.server_info().await.expect("a first contact");
    server.fail_next_append(AppendFault::CutAfter);
    let error = batch(&client, "b", NoStream, &[2]).await.expect_err("no answer");
    assert!(matches!(&error, Error::ServerError(_)), "{error:?}");
    assert_eq!(count(&server), 2);
}

#[tokio::test]
async fn a_client_whose_first_contact_failed_stays_dead() {
    let mut server = KurrentServer::start();
    server.kill();
    let dead = client(&server);
    assert!(matches!(dead.server_info().await, Err(Error::GrpcConnectionError(_))));
    server.start_again();
    assert!(matches!(dead.server_info().await, Err(Error::ConnectionClosed)));
    client(&server).server_info().await.expect("another client lives");
}

#[tokio::test]
async fn a_follower_sends_the_client_to_the_leader() {
    let leader = KurrentServer::start();
    let follower = leader.another_node();
    follower.follow(Some(leader.address()));
    let client = client(&follower);
    let options = AppendToStreamOptions::default().expected_revision(NoStream).requires_leader(true);
    let error = client.append_to_stream("a", &options, events(&[1])).await.expect_err("not here");
    assert!(
        matches!(&error, Error::NotLeaderException(leader_is) if leader_is.port == u32::from(leader.address().port()))
    );
    client.append_to_stream("a", &options, events(&[1])).await.expect("the client goes there by itself");
    assert_eq!(count(&follower), 1, "they have the same data");
}

fn subscribe_options() -> SubscribeToAllOptions {
    let filter = SubscriptionFilter::on_stream_name().add_prefix("wallet-");
    SubscribeToAllOptions::default()
        .position(StreamPosition::Start)
        .filter(filter)
        .retry_options(RetryOptions::default().retry_forever())
}

async fn next(subscription: &mut Subscription) -> SubscriptionEvent {
    let next = tokio::time::timeout(PATIENCE, subscription.next_subscription_event()).await;
    next.expect("in time").expect("a message")
}

#[tokio::test]
async fn a_subscription_is_confirmed_catches_up_and_goes_on_with_what_comes() {
    let server = KurrentServer::start();
    server.begin_with_no_position(true);
    let client = client(&server);
    append(&client, "wallet-a", NoStream, &[1]).await;
    append(&client, "snapshot-wallet-a", NoStream, &[2]).await;
    let mut subscription = client.subscribe_to_all(&subscribe_options()).await;
    assert!(matches!(next(&mut subscription).await, SubscriptionEvent::Confirmed(_)));
    match next(&mut subscription).await {
        SubscriptionEvent::Checkpoint(position) => assert_eq!(position.commit, u64::MAX, "no position at all"),
        other => panic!("{other:?}"),
    }
    let mut events = Vec::new();
    let mut checkpoints = Vec::new();
    while events.len() < 2 {
        match next(&mut subscription).await {
            SubscriptionEvent::EventAppeared(event) => events.push(event.get_original_event().id.as_u128()),
            SubscriptionEvent::Checkpoint(position) => checkpoints.push(position.commit),
            SubscriptionEvent::CaughtUp => {
                append(&client, "wallet-b", NoStream, &[3]).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(events, [1, 3]);
    assert_eq!(checkpoints[0], server.log()[1].position, "over what the filter passes over");

    // Cut, it comes back and resumes after the last event that it handed out.
    server.deliver_twice(true);
    server.cut_connections();
    append(&self::client(&server), "wallet-c", NoStream, &[4]).await;
    let mut again = Vec::new();
    while again.len() < 2 {
        if let SubscriptionEvent::EventAppeared(event) = next(&mut subscription).await {
            again.push(event.get_original_event().id.as_u128());
        }
    }
    assert_eq!(again, [4, 4], "delivered twice, as the switch says");
}

/// The trap because of which wallex reads pages: whoever gives up waiting for the next event subscribes again without a word.
#[tokio::test]
async fn a_wait_for_the_next_event_that_is_given_up_subscribes_again() {
    let server = KurrentServer::start();
    let client = client(&server);
    let mut subscription = client.subscribe_to_all(&subscribe_options()).await;
    let mut confirmed = 0;
    for _ in 0..2 {
        loop {
            match next(&mut subscription).await {
                SubscriptionEvent::Confirmed(_) => confirmed += 1,
                SubscriptionEvent::CaughtUp => break,
                _ => {}
            }
        }
        // Nothing comes: polled once, and dropped.
        let given_up = tokio::time::timeout(Duration::ZERO, subscription.next_subscription_event()).await;
        assert!(given_up.is_err());
    }
    assert_eq!(confirmed, 2);
}

#[tokio::test]
async fn a_server_that_is_slow_or_silent_answers_late_or_when_it_speaks_again() {
    let server = KurrentServer::start();
    let client = client(&server);
    client.server_info().await.expect("a first contact");
    let delay = Duration::from_millis(300);
    server.answer_after(delay);
    let begun = std::time::Instant::now();
    append(&client, "a", NoStream, &[1]).await;
    assert!(begun.elapsed() >= delay);
    server.answer_after(Duration::ZERO);
    server.be_silent(true);
    let waiting = tokio::spawn(async move { append(&client, "a", Exact(0), &[2]).await });
    tokio::time::sleep(delay).await;
    assert!(!waiting.is_finished());
    assert_eq!(count(&server), 1);
    server.be_silent(false);
    let answered = tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect("no panic");
    assert!(matches!(answered, Answer::Written(1, _)));
}

#[tokio::test]
async fn a_connection_that_is_muted_is_never_answered_and_a_new_one_is() {
    let server = KurrentServer::start();
    let muted = client(&server);
    muted.server_info().await.expect("a first contact");
    server.mute_connections();
    let asked = tokio::time::timeout(Duration::from_millis(300), append(&muted, "a", NoStream, &[1])).await;
    assert!(asked.is_err(), "{asked:?}");
    assert!(matches!(append(&client(&server), "b", NoStream, &[2]).await, Answer::Written(0, _)));
    assert_eq!(count(&server), 1, "what was sent on the other one was not heard");
}

#[tokio::test]
async fn what_is_put_back_or_taken_away_is_gone_and_the_rest_lies_where_it_lay() {
    let server = KurrentServer::start();
    let client = client(&server);
    append(&client, "a", NoStream, &[1]).await;
    append(&client, "b", NoStream, &[2, 3]).await;
    let before: Vec<u64> = server.log().iter().map(|kept| kept.position).collect();
    server.scavenge("a");
    assert_eq!(server.log().iter().map(|kept| kept.position).collect::<Vec<_>>(), before[1..]);
    server.put_back(1);
    assert_eq!(append(&client, "b", Exact(1), &[4]).await, Answer::Wrong(Some(0)));
    // Another event comes to lie where one has lain.
    assert_eq!(append(&client, "b", Exact(0), &[4]).await, Answer::Written(1, before[2]));
    let other = KurrentServer::start();
    server.exchange_with(&other);
    assert_eq!((count(&server), count(&other)), (0, 2));
    assert!(matches!(append(&client, "b", NoStream, &[5]).await, Answer::Written(0, _)));
}
