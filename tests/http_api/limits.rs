//! Clients that are slow, silent, or many.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wallex::http::Limits;
use wallex::postgres::sqlx;
use wallex::sequencer::SequencerOptions;

use crate::support::{GatedLog, PATIENCE, Server, fresh_database, raw_request, read_to_close};

/// A limit that a test waits for.
const SHORT: Duration = Duration::from_millis(500);

/// Sends `bytes` one at a time, slower than any limit allows, until the server has had enough; returns what it said.
async fn drip(server: &Server, bytes: &str) -> (String, Duration) {
    let mut stream = server.connect().await;
    let started = Instant::now();
    let (mut receiving, mut sending) = stream.split();
    let mut received = Vec::new();
    let send = async {
        for byte in bytes.as_bytes() {
            if sending.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(SHORT / 4).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = send => {}
        _ = receiving.read_to_end(&mut received) => {}
        () = tokio::time::sleep(PATIENCE) => panic!("the server let itself be kept waiting"),
    }
    (String::from_utf8_lossy(&received).into_owned(), started.elapsed())
}

#[tokio::test]
async fn headers_that_drip_in_are_cut_off() {
    let server = Server::with_limits(Limits { header_read: SHORT, ..Limits::default() }).await;
    let request = raw_request("GET", "/health/live", "");
    let (answer, took) = drip(&server, &request).await;
    assert_eq!(answer, "");
    assert!(took >= SHORT, "{took:?}");
}

#[tokio::test]
async fn a_second_request_that_drips_in_is_cut_off_although_its_connection_may_lie_idle_for_long() {
    let server = Server::with_limits(Limits { header_read: SHORT, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    let live = "GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n";
    stream.write_all(live.as_bytes()).await.expect("sent");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.expect("an answer");
    // Longer idle than a request may take.
    tokio::time::sleep(SHORT * 2).await;
    stream.write_all(live.as_bytes()).await.expect("the connection was kept");
    stream.write_all(b"GET /hea").await.expect("sent");

    let rest = read_to_close(&mut stream).await;
    assert_eq!(rest.matches("HTTP/1.1 200 OK").count(), 1, "{rest}");
}

#[tokio::test]
async fn a_body_that_drips_in_is_408_and_cut_off() {
    let server = Server::with_limits(Limits { body_read: SHORT, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    let request = raw_request("POST", "/wallets", r#"{"walletId":"w","ownerId":"o"}"#);
    stream.write_all(&request.as_bytes()[..request.len() - 1]).await.expect("sent");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("REQUEST_TIMEOUT"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    server.client.get("/wallets/w").await.is_error(404, "WALLET_NOT_FOUND");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let limits = Limits { header_read: SHORT, keep_alive: SHORT * 2, ..Limits::default() };
    let server = Server::with_limits(limits).await;
    let mut new = server.connect().await;
    assert_eq!(read_to_close(&mut new).await, "", "before its first request");

    let mut idle = server.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n").await.expect("sent");
    let answer = read_to_close(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_cut_off() {
    let server = Server::with_limits(Limits { answer_write: SHORT, connections: 1, ..Limits::default() }).await;
    sqlx::query(
        "INSERT INTO read_model_wallets
         SELECT 'w-' || n, repeat('o', 256), 'USD', n, 'ACTIVE', n, n, now(), now() FROM generate_series(1, 1000) n",
    )
    .execute(server.database.pool())
    .await
    .expect("wallets are listed");

    // Far more in answers than the sockets' buffers hold, and none of it is read.
    let mut stream = server.connect().await;
    let request = "GET /wallets?limit=1000 HTTP/1.1\r\nHost: t\r\n\r\n".repeat(100);
    stream.write_all(request.as_bytes()).await.expect("sent");

    // The only place is taken until the server gives the first client up.
    let other = timeout(PATIENCE, server.client.get("/health/live")).await.expect("the place is free again");
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn a_client_that_is_done_sending_still_gets_its_answer() {
    let log = GatedLog::closed();
    let server = Server::on(log.clone(), Limits::default(), SequencerOptions::default(), fresh_database().await).await;
    let mut stream = server.connect().await;
    let request = raw_request("POST", "/wallets", r#"{"walletId":"w","ownerId":"o"}"#);
    stream.write_all(request.replace("Connection: close\r\n", "").as_bytes()).await.expect("sent");
    log.an_append_waits().await;
    stream.shutdown().await.expect("the sending side is closed");
    // Time for the server to see it; nothing tells when it has.
    tokio::time::sleep(SHORT / 2).await;
    log.let_through();
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
}

#[tokio::test]
async fn requests_may_be_sent_ahead_and_are_answered_in_order() {
    let server = Server::start().await;
    let create = r#"{"walletId":"w","ownerId":"o"}"#;
    let kept = |request: String| request.replace("Connection: close\r\n", "");
    let requests = kept(raw_request("POST", "/wallets", create))
        + &kept(raw_request("POST", "/wallets/w/credit", r#"{"amount":5}"#))
        + &raw_request("GET", "/wallets/w", "");
    let answer = server.raw(requests).await;
    let statuses: Vec<&str> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["201", "201", "200"], "{answer}");
    assert!(answer.ends_with('}') && answer.contains("auditTrail"), "{answer}");
}

#[tokio::test]
async fn more_connections_than_the_limit_wait_for_their_turn() {
    let server = Server::with_limits(Limits { connections: 2, ..Limits::default() }).await;
    let live = raw_request("GET", "/health/live", "");
    let (first, second) = (server.connect().await, server.connect().await);
    let mut third = server.connect().await;
    third.write_all(live.as_bytes()).await.expect("the operating system takes it");
    let answer = |stream: TcpStream| async move {
        let mut stream = stream;
        read_to_close(&mut stream).await
    };
    let mut waiting = tokio::spawn(answer(third));
    assert!(timeout(SHORT, &mut waiting).await.is_err(), "both places are taken");

    drop(first);
    let answered = waiting.await.expect("a task");
    assert!(answered.starts_with("HTTP/1.1 200 OK"), "{answered}");
    drop(second);
}
