//! Told to stop: nothing new is taken, and what was taken is answered.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wallex::http::Limits;
use wallex::sequencer::SequencerOptions;

use crate::support::{GatedLog, PATIENCE, Server, fresh_database, read_to_close};

#[tokio::test]
async fn a_command_under_way_is_answered_and_the_idle_are_sent_home() {
    let log = GatedLog::closed();
    let server = Server::on(log.clone(), Limits::default(), SequencerOptions::default(), fresh_database().await).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n").await.expect("sent");
    idle.read_exact(&mut [0; 16]).await.expect("an answer");
    let mut silent = server.connect().await;
    let client = server.client.clone();
    let command = tokio::spawn(async move { client.post("/wallets", r#"{"walletId":"w","ownerId":"o"}"#).await });
    log.an_append_waits().await;

    server.stop.cancel();
    read_to_close(&mut idle).await;
    read_to_close(&mut silent).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "nothing new is accepted");
    assert!(!server.serving.is_finished(), "it waits for the command");
    log.let_through();

    let answer = command.await.expect("a task");
    assert_eq!((answer.status, answer.header("connection")), (201, Some("close")));
    let served = timeout(PATIENCE, server.serving).await.expect("it ends").expect("a task");
    assert!(served.is_ok());
}

#[tokio::test]
async fn a_stop_that_takes_too_long_cuts_what_is_left() {
    let log = GatedLog::closed();
    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let server = Server::on(log.clone(), limits, SequencerOptions::default(), fresh_database().await).await;
    let mut stream = server.connect().await;
    let body = r#"{"walletId":"w","ownerId":"o"}"#;
    stream.write_all(crate::support::raw_request("POST", "/wallets", body).as_bytes()).await.expect("sent");
    log.an_append_waits().await;

    server.stop.cancel();

    timeout(PATIENCE, server.serving).await.expect("it ends").expect("a task").expect("no error");
    assert_eq!(read_to_close(&mut stream).await, "");
}

#[tokio::test]
async fn a_server_that_is_dropped_leaves_no_connection_behind() {
    let server = Server::start().await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n").await.expect("sent");
    idle.read_exact(&mut [0; 16]).await.expect("an answer");
    server.serving.abort();
    read_to_close(&mut idle).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is free");
}
