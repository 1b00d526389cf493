//! The same key and body: the same answer and one effect.

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use wallex::http::Limits;
use wallex::sequencer::SequencerOptions;

use crate::support::{GatedLog, Server, fresh_database, raw_request};

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "key-1")];

#[tokio::test]
async fn the_same_key_and_body_give_the_same_answer_and_one_effect_on_every_command() {
    let server = Server::start().await;
    server.open("to", "0").await;
    for (path, body, other_body) in [
        ("/wallets", r#"{"walletId":"w","ownerId":"o","initialBalance":100}"#, r#"{"walletId":"w","ownerId":"x"}"#),
        ("/wallets/w/credit", r#"{"amount":1}"#, r#"{"amount":2}"#),
        ("/wallets/w/debit", r#"{"amount":1}"#, r#"{"amount":1,"description":"x"}"#),
        ("/wallets/w/transfer", r#"{"toWalletId":"to","amount":1}"#, r#"{"toWalletId":"to","amount":2}"#),
    ] {
        let first = server.client.post_with(path, &KEY, body).await;
        let again = server.client.post_with(path, &KEY, body).await;
        let other = server.client.post_with(path, &KEY, other_body).await;

        assert_eq!((first.status, first.header("idempotency-replayed")), (201, None), "{path}: {}", first.text);
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")), "{path}");
        assert_eq!(first.text, again.text, "{path}");
        assert!(other.is_error(422, "IDEMPOTENCY_KEY_REUSED").contains("Idempotency-Key"));
    }
    assert_eq!(server.state_of("w").await, ("99".to_owned(), 4));
    assert_eq!(server.state_of("to").await, ("1".to_owned(), 1));
}

#[tokio::test]
async fn a_retry_is_given_its_answer_though_the_command_would_now_be_refused() {
    let server = Server::start().await;
    server.open("w", "10").await;
    server.open("to", "0").await;
    let path = "/wallets/w/transfer";
    let body = r#"{"toWalletId":"to","amount":10}"#;

    let first = server.client.post_with(path, &KEY, body).await;
    let again = server.client.post_with(path, &KEY, body).await;
    let other = server.client.post_with(path, &KEY, r#"{"toWalletId":"to","amount":11}"#).await;

    assert_eq!((first.status, again.status), (201, 201), "{}", again.text);
    assert_eq!((first.text, again.header("idempotency-replayed")), (again.text.clone(), Some("true")));
    other.is_error(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(server.state_of("w").await, ("0".to_owned(), 2));
}

#[tokio::test]
async fn a_failed_attempt_does_not_burn_its_key() {
    let server = Server::start().await;
    server.open("w", "1").await;

    let path = "/wallets/w/debit";
    server.client.post_with(path, &KEY, r#"{"amount":"x"}"#).await.is_error(400, "INVALID_AMOUNT");
    server.client.post_with(path, &KEY, r#"{"amount":5}"#).await.is_error(400, "INSUFFICIENT_FUNDS");
    assert_eq!(server.client.post("/wallets/w/credit", r#"{"amount":9}"#).await.status, 201);
    let now = server.client.post_with(path, &KEY, r#"{"amount":5}"#).await;

    assert_eq!((now.status, now.header("idempotency-replayed")), (201, None));
    assert_eq!(server.state_of("w").await, ("5".to_owned(), 3));
}

#[tokio::test]
async fn the_same_key_from_many_connections_at_once_has_one_effect() {
    let server = Server::start().await;
    server.open("w", "0").await;
    let mut answers = JoinSet::new();
    for _ in 0..16 {
        let client = server.client.clone();
        answers.spawn(async move { client.post_with("/wallets/w/credit", &KEY, r#"{"amount":7}"#).await });
    }
    let answers = answers.join_all().await;

    assert!(answers.iter().all(|answer| answer.status == 201 && answer.text == answers[0].text));
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true")).count();
    assert_eq!(replayed, 15);
    assert_eq!(server.state_of("w").await, ("7".to_owned(), 1));
}

#[tokio::test]
async fn a_client_that_hangs_up_half_way_learns_from_a_retry_with_its_key_what_became_of_its_command() {
    let log = GatedLog::open();
    let server = Server::on(log.clone(), Limits::default(), SequencerOptions::default(), fresh_database().await).await;
    server.open("w", "0").await;
    let body = r#"{"amount":7}"#;
    let request =
        raw_request("POST", "/wallets/w/credit", body).replace("Host: test", "Host: t\r\nIdempotency-Key: key-1");

    // Cut at any byte, from the first to after the last.
    for sent in [1, 20, request.len() - body.len(), request.len() - 1, request.len()] {
        let mut stream = server.connect().await;
        stream.write_all(&request.as_bytes()[..sent]).await.expect("sent");
        // Closed with a reset: the client is gone, not only done with sending.
        stream.set_zero_linger().expect("an option of the socket");
        drop(stream);
    }
    let retried = server.client.post_with("/wallets/w/credit", &KEY, body).await;

    assert_eq!(retried.status, 201);
    assert_eq!(server.state_of("w").await, ("7".to_owned(), 1), "once, whether or not the whole request was taken");
}

#[tokio::test]
async fn a_command_that_was_taken_is_carried_out_though_its_client_is_gone() {
    let log = GatedLog::closed();
    let server = Server::on(log.clone(), Limits::default(), SequencerOptions::default(), fresh_database().await).await;
    let body = r#"{"walletId":"w","ownerId":"o"}"#;
    let request = raw_request("POST", "/wallets", body).replace("Host: test", "Host: t\r\nIdempotency-Key: key-1");

    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.expect("sent");
    log.an_append_waits().await;
    stream.set_zero_linger().expect("an option of the socket");
    drop(stream);
    log.let_through();
    let retried = server.client.post_with("/wallets", &KEY, body).await;

    assert_eq!((retried.status, retried.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(server.state_of("w").await.1, 0);
}
