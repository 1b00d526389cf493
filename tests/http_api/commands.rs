//! Commands: what they answer, exactly, and what they are refused with.

use serde_json::json;
use tokio::task::JoinSet;
use wallex::http::Limits;
use wallex::sequencer::SequencerOptions;

use crate::support::{GatedLog, Server, fresh_database};

#[tokio::test]
async fn a_wallet_created_empty_is_at_version_zero_and_one_with_an_opening_balance_at_one() {
    let server = Server::start().await;

    let empty = server.client.post("/wallets", r#"{"walletId":"wallet-1","ownerId":"Zoë 💶"}"#).await;
    let opened = server
        .client
        .post("/wallets", r#"{"walletId":"wallet-2","ownerId":"o","initialBalance":100.5,"currency":"EUR"}"#)
        .await;

    assert_eq!((empty.status, opened.status), (201, 201));
    let fields: Vec<&String> = empty.json.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["balance", "createdAt", "currency", "id", "ownerId", "status", "updatedAt", "version"]);
    assert_eq!(empty.json["id"], "wallet-1");
    assert_eq!(empty.json["ownerId"], "Zoë 💶");
    assert_eq!(empty.json["currency"], "USD");
    assert_eq!(empty.json["balance"], 0);
    assert_eq!(empty.json["status"], "ACTIVE");
    assert_eq!(empty.json["version"], 0);
    assert_eq!(empty.json["createdAt"], empty.json["updatedAt"]);
    let created_at = empty.json["createdAt"].as_str().expect("text");
    assert!(created_at.ends_with('Z') && created_at.parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{created_at}");
    assert_eq!(opened.json["version"], 1);
    assert_eq!(opened.json["currency"], "EUR");
    assert!(opened.text.contains(r#""balance":100.5,"#), "{}", opened.text);
    assert_eq!(empty.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn amounts_are_read_and_written_exactly() {
    let server = Server::start().await;
    for (id, currency) in [("usd", "USD"), ("jpy", "JPY"), ("bhd", "BHD")] {
        let body = format!(r#"{{"walletId":"{id}","ownerId":"o","currency":"{currency}"}}"#);
        assert_eq!(server.client.post("/wallets", &body).await.status, 201);
    }
    for (id, amount, balance) in [
        ("usd", "0.1", "0.1"),
        ("usd", "\"0.2\"", "0.3"),
        ("usd", "900.0", "900.3"),
        ("usd", "1e1", "910.3"),
        ("usd", "\"89.70\"", "1000"),
        // One more digit than a binary float of 64 bits holds.
        ("usd", "90071992547409.93", "90071992548409.93"),
        ("usd", "\"92143648375999348.14\"", "92233720368547758.07"),
        ("jpy", "9223372036854775807", "9223372036854775807"),
        ("bhd", "0.001", "0.001"),
        ("bhd", "\"1.100\"", "1.101"),
    ] {
        let answer = server.client.post(&format!("/wallets/{id}/credit"), &format!(r#"{{"amount":{amount}}}"#)).await;
        let expected = format!(r#""balance":{balance},"#);
        assert!(answer.status == 201 && answer.text.contains(&expected), "{id} {amount}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_transfer_answers_with_both_wallets_and_its_id() {
    let server = Server::start().await;
    server.open("from", "100").await;
    server.open("to", "1").await;

    let body = r#"{"toWalletId":"to","amount":40.25,"description":"rent"}"#;
    let answer = server.client.post("/wallets/from/transfer", body).await;

    assert_eq!(answer.status, 201);
    let fields: Vec<&String> = answer.json.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["fromWallet", "toWallet", "transferId"]);
    assert_eq!(answer.json["fromWallet"]["id"], "from");
    assert_eq!(answer.json["fromWallet"]["balance"], json!(59.75));
    assert_eq!(answer.json["fromWallet"]["version"], 2);
    assert_eq!(answer.json["toWallet"]["balance"], json!(41.25));
    assert!(answer.json["fromWallet"].get("auditTrail").is_none());
    assert!(uuid::Uuid::parse_str(answer.json["transferId"].as_str().expect("text")).is_ok());
}

#[tokio::test]
async fn a_command_that_breaks_a_rule_is_refused_with_its_code_and_changes_nothing() {
    let server = Server::start().await;
    server.open("a", "10").await;
    server.open("b", "10").await;
    let yen = r#"{"walletId":"yen","ownerId":"o","currency":"JPY","initialBalance":10}"#;
    assert_eq!(server.client.post("/wallets", yen).await.status, 201);
    let full = r#"{"walletId":"full","ownerId":"o","initialBalance":"92233720368547758.07"}"#;
    assert_eq!(server.client.post("/wallets", full).await.status, 201);

    for (path, body, status, code, word) in [
        ("/wallets", r#"{"walletId":"a","ownerId":"o"}"#, 409, "WALLET_EXISTS", "a exists"),
        ("/wallets/none/credit", r#"{"amount":1}"#, 404, "WALLET_NOT_FOUND", "none"),
        ("/wallets/none/debit", r#"{"amount":1}"#, 404, "WALLET_NOT_FOUND", "none"),
        ("/wallets/a/debit", r#"{"amount":10.01}"#, 400, "INSUFFICIENT_FUNDS", "10.00 USD"),
        ("/wallets/a/transfer", r#"{"toWalletId":"b","amount":11}"#, 400, "INSUFFICIENT_FUNDS", "11.00 USD"),
        ("/wallets/a/transfer", r#"{"toWalletId":"a","amount":1}"#, 400, "VALIDATION", "toWalletId"),
        ("/wallets/a/transfer", r#"{"toWalletId":"yen","amount":1}"#, 400, "VALIDATION", "JPY"),
        ("/wallets/a/transfer", r#"{"toWalletId":"none","amount":1}"#, 404, "WALLET_NOT_FOUND", "none"),
        ("/wallets/a/transfer", r#"{"toWalletId":"full","amount":1}"#, 400, "INVALID_AMOUNT", "full"),
        ("/wallets/full/credit", r#"{"amount":0.01}"#, 400, "INVALID_AMOUNT", "full"),
    ] {
        let answer = server.client.post(path, body).await;
        let message = answer.is_error(status, code);
        assert!(message.contains(word), "{path} {body}: {message}");
    }

    for id in ["a", "b", "yen"] {
        assert_eq!(server.state_of(id).await, ("10".to_owned(), 1), "{id}");
    }
    assert_eq!(server.state_of("full").await.1, 1);
}

#[tokio::test]
async fn a_correlation_id_is_echoed_on_every_answer_or_made() {
    let server = Server::start().await;
    let body = r#"{"walletId":"w","ownerId":"o"}"#;

    for (path, body, status) in
        [("/wallets", body, 201), ("/wallets", body, 409), ("/wallets/w/credit", "{}", 400), ("/nowhere", "{}", 404)]
    {
        let answer = server.client.post_with(path, &[("X-Correlation-Id", "mine-42")], body.to_owned()).await;
        assert_eq!((answer.status, answer.header("x-correlation-id")), (status, Some("mine-42")), "{path}");
    }

    let (one, other) = (server.client.get("/wallets/w").await, server.client.get("/wallets/w").await);
    let made = one.header("x-correlation-id").expect("one is made");
    assert!(uuid::Uuid::parse_str(made).is_ok(), "{made}");
    assert_ne!(Some(made), other.header("x-correlation-id"));
}

#[tokio::test]
async fn a_correlation_id_that_is_no_visible_ascii_is_refused_and_another_one_made() {
    let server = Server::start().await;
    let long = "x".repeat(129);

    for wrong in ["two words", long.as_str(), ""] {
        let headers = [("X-Correlation-Id", wrong)];
        let answer =
            server.client.post_with("/wallets", &headers, r#"{"walletId":"w","ownerId":"o"}"#.to_owned()).await;
        assert!(answer.is_error(400, "VALIDATION").contains("X-Correlation-Id"));
        let made = answer.header("x-correlation-id").expect("one is made");
        assert!(uuid::Uuid::parse_str(made).is_ok(), "{made}");
    }

    let longest = "x".repeat(128);
    let answer = server
        .client
        .post_with("/wallets", &[("X-Correlation-Id", &longest)], r#"{"walletId":"w","ownerId":"o"}"#.to_owned())
        .await;
    assert_eq!((answer.status, answer.header("x-correlation-id")), (201, Some(longest.as_str())));
}

#[tokio::test]
async fn a_full_queue_is_503_and_nothing_was_done() {
    let log = GatedLog::closed();
    let options = SequencerOptions { queue_max: 1, batch_max: 1, ..SequencerOptions::default() };
    let server = Server::on(log.clone(), Limits::default(), options, fresh_database().await).await;
    let mut answers = JoinSet::new();
    for number in 0..8 {
        let client = server.client.clone();
        answers.spawn(async move {
            let id = format!("w-{number}");
            let body = format!(r#"{{"walletId":"{id}","ownerId":"o"}}"#);
            (id, client.post("/wallets", &body).await)
        });
    }

    // While the gate is shut nothing can succeed, so the first answer is one of no.
    let mut answered = vec![answers.join_next().await.expect("eight were sent").expect("a task")];
    let message = answered[0].1.is_error(503, "BUSY");
    assert!(message.contains("nothing was done"), "{message}");
    log.let_through();
    while let Some(next) = answers.join_next().await {
        answered.push(next.expect("a task"));
    }

    for (id, answer) in answered {
        let read = server.client.get(&format!("/wallets/{id}")).await;
        if answer.status == 201 {
            assert_eq!(read.status, 200, "{id}");
        } else {
            answer.is_error(503, "BUSY");
            read.is_error(404, "WALLET_NOT_FOUND");
        }
    }
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_503_and_says_that_the_command_may_have_happened() {
    let log = GatedLog::closed();
    let options =
        SequencerOptions { command_deadline: std::time::Duration::from_millis(100), ..SequencerOptions::default() };
    let server = Server::on(log.clone(), Limits::default(), options, fresh_database().await).await;

    let answer = server.client.post("/wallets", r#"{"walletId":"w","ownerId":"o"}"#).await;

    let message = answer.is_error(503, "UNAVAILABLE");
    assert!(message.contains("may have been carried out") && message.contains("Idempotency-Key"), "{message}");
}

#[tokio::test]
async fn what_is_wrong_inside_is_500_and_stays_inside() {
    let log = GatedLog::open();
    let server = Server::on(log.clone(), Limits::default(), SequencerOptions::default(), fresh_database().await).await;
    server.open("w", "1").await;
    log.break_with("relation \"events\" at /var/lib/wallex is broken");

    for answer in
        [server.client.post("/wallets/x/credit", r#"{"amount":1}"#).await, server.client.get("/wallets/w").await]
    {
        let message = answer.is_error(500, "INTERNAL");
        assert!(!message.contains("events") && !message.contains("/var"), "{message}");
    }
}
