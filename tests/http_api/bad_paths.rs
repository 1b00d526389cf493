//! Everything a client may get wrong in a path or a query, and what is no HTTP at all.

use std::time::Duration;

use wallex::http::Limits;

use crate::bad_input::{nothing_changed, with_two_wallets};
use crate::support::{Server, raw_request};

/// Texts that are no wallet id, and how each is written as one segment of a path.
fn no_wallet_ids() -> Vec<(String, String)> {
    let kilobyte = "x".repeat(1_024);
    let mut ids: Vec<(String, String)> = [
        ("a/b", "a%2Fb"),
        ("a\0b", "a%00b"),
        ("a\nb", "a%0Ab"),
        ("a\rb", "a%0Db"),
        ("a b", "a%20b"),
        ("💰", "%F0%9F%92%B0"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("../", "..%2F"),
        ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
        ("a%2Fb", "a%252Fb"),
        ("a%", "a%25"),
        ("a?b", "a%3Fb"),
        ("a#b", "a%23b"),
        ("a+b", "a+b"),
        ("-a", "-a"),
        ("ä", "%C3%A4"),
    ]
    .map(|(text, encoded)| (text.to_owned(), encoded.to_owned()))
    .to_vec();
    ids.push(("x".repeat(129), "x".repeat(129)));
    ids.push((kilobyte.clone(), kilobyte));
    ids
}

#[tokio::test]
async fn what_is_no_wallet_id_is_refused_in_a_body_and_named() {
    let server = with_two_wallets().await;
    for text in no_wallet_ids().into_iter().map(|(text, _)| text).chain([String::new()]) {
        let json = serde_json::to_string(&text).expect("a text");
        let create = server.client.post("/wallets", &format!(r#"{{"walletId":{json},"ownerId":"o"}}"#)).await;
        assert!(create.is_error(400, "VALIDATION").contains("walletId"), "{text:?}");
        let transfer =
            server.client.post("/wallets/w/transfer", &format!(r#"{{"toWalletId":{json},"amount":1}}"#)).await;
        assert!(transfer.is_error(400, "VALIDATION").contains("toWalletId"), "{text:?}");
    }
    nothing_changed(&server).await;
}

#[tokio::test]
async fn what_is_no_wallet_id_is_refused_in_a_path_and_named() {
    let server = with_two_wallets().await;
    let broken = ["%FF", "a%C3"].map(str::to_owned);
    for encoded in no_wallet_ids().into_iter().map(|(_, encoded)| encoded).chain(broken) {
        for (method, target) in [
            ("GET", format!("/wallets/{encoded}")),
            ("POST", format!("/wallets/{encoded}/credit")),
            ("GET", format!("/ledger/wallet/{encoded}")),
            ("GET", format!("/ledger/wallet/{encoded}/summary")),
        ] {
            // As it is: a client's library would tidy the path up.
            let answer = server.raw(raw_request(method, &target, r#"{"amount":1}"#)).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{method} {target}: {answer}");
            assert!(answer.contains("VALIDATION") && answer.contains("walletId must"), "{method} {target}: {answer}");
        }
    }
    nothing_changed(&server).await;
}

#[tokio::test]
async fn a_path_without_the_id_it_needs_says_so() {
    let server = Server::start().await;
    for (method, target) in [
        ("GET", "/wallets/"),
        ("POST", "/wallets//credit"),
        ("POST", "/wallets//transfer"),
        ("GET", "/ledger/wallet/"),
        ("GET", "/ledger/wallet//summary"),
    ] {
        let answer = server.raw(raw_request(method, target, r#"{"amount":1}"#)).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("walletId must"), "{method} {target}: {answer}");
    }
}

#[tokio::test]
async fn dots_and_slashes_lead_nowhere_else() {
    let server = with_two_wallets().await;
    for target in [
        "/wallets/../wallets/w",
        "/wallets/w/../to",
        "/./wallets",
        "//wallets",
        "/wallets/w/",
        "/wallets/a/b",
        "/WALLETS",
    ] {
        let answer = server.raw(raw_request("GET", target, "")).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("\"NOT_FOUND\""), "{target}: {answer}");
    }
    let answer = server.raw(raw_request("GET", "/wallets/..", "")).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("walletId"), "{answer}");
}

#[tokio::test]
async fn a_wallet_id_may_be_percent_encoded() {
    let server = with_two_wallets().await;
    let answer = server.raw(raw_request("GET", "/wallets/%77", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""id":"w""#), "{answer}");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_refused_in_the_same_shape() {
    let server = with_two_wallets().await;
    for path in ["/", "/wallet", "/wallets/w/burn", "/ledger", "/ledger/wallet/w/x", "/health"] {
        let answer = server.client.get(path).await;
        assert!(answer.is_error(404, "NOT_FOUND").contains(path), "{path}");
    }
    for (method, path, allow) in [
        ("DELETE", "/wallets/w", "GET,HEAD"),
        ("PUT", "/wallets", "GET,HEAD,POST"),
        ("GET", "/wallets/w/credit", "POST"),
        ("POST", "/ledger/transactions", "GET,HEAD"),
        ("OPTIONS", "/health/live", "GET,HEAD"),
        ("PATCH", "/wallets/w", "GET,HEAD"),
    ] {
        let answer = server.client.send(method, path).await;
        answer.is_error(405, "METHOD_NOT_ALLOWED");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    let head = server.client.send("HEAD", "/wallets/w").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn what_is_no_http_is_answered_by_status_alone_and_closed() {
    let limits = Limits { header_read: Duration::from_millis(500), ..Limits::default() };
    let server = Server::with_limits(limits).await;
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        ("GET /wallets/a\0b HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        ("GET / HTTP/1.1\r\nBad Header: x\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (format!("GET / HTTP/1.1\r\nLong: {}\r\n\r\n", "x".repeat(20_000)), "HTTP/1.1 431 "),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200)), "HTTP/1.1 431 "),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), "HTTP/1.1 431 "),
    ] {
        let answer = server.raw(&request).await;
        assert!(answer.starts_with(status), "{}: {answer}", &request[..30.min(request.len())]);
    }
}

#[tokio::test]
async fn a_query_that_is_malformed_is_refused_and_its_parameter_named() {
    let server = Server::start().await;
    let ledgers =
        ["/ledger/wallet/w", "/ledger/transactions", "/ledger/reference/01890a5d-ac96-774b-bcce-b302099a8057"];
    for (query, word) in [
        ("limit=-1", "limit"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=abc", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=5&limit=5", "limit is given twice"),
        ("offset=-1", "offset"),
        ("offset=abc", "offset"),
        ("offset=100001", "offset"),
        ("transactionType=FOO", "transactionType"),
        ("transactionType=credit", "transactionType"),
        ("transactionType=", "transactionType"),
        ("startDate=zzz", "startDate"),
        ("startDate=2024-02-30", "startDate"),
        ("startDate=", "startDate"),
        ("endDate=zzz", "endDate"),
        ("endDate=20240101", "endDate"),
        ("endDate=2024-01-01T00:00:00", "endDate"),
        ("startDate=%FF", "startDate"),
        ("startdate=2024-01-01", "startdate"),
        ("page=2", "page"),
    ] {
        for ledger in ledgers {
            let answer = server.client.get(&format!("{ledger}?{query}")).await;
            let message = answer.is_error(400, "VALIDATION");
            assert!(message.contains(word), "{ledger}?{query}: {message}");
        }
    }
    for (path, word) in [
        ("/wallets?limit=0", "limit"),
        ("/wallets?limit=1001", "limit"),
        ("/wallets?limit=-1", "limit"),
        ("/wallets?cursor=", "cursor"),
        ("/wallets?cursor=a%2Fb", "cursor"),
        ("/wallets?offset=1", "offset"),
        ("/ledger/reference/not-a-uuid", "UUID"),
        ("/ledger/reference/%FF", "UUID"),
        ("/ledger/wallet/w/summary?limit=1", "limit"),
        ("/wallets/w?limit=1", "limit"),
    ] {
        let answer = server.client.get(path).await;
        let message = answer.is_error(400, "VALIDATION");
        assert!(message.contains(word), "{path}: {message}");
    }
}
