//! Everything a client may get wrong in a body or a header: each is refused in words that name it, and changes nothing.

use wallex::http::Limits;

use crate::support::{Server, raw_request};

pub async fn with_two_wallets() -> Server {
    let server = Server::start().await;
    server.open("w", "100").await;
    server.open("to", "100").await;
    server
}

pub async fn nothing_changed(server: &Server) {
    for id in ["w", "to"] {
        assert_eq!(server.state_of(id).await, ("100".to_owned(), 1), "{id}");
    }
}

/// JSON for `amount` that is no amount in US dollars. `None` leaves the field out.
const NO_AMOUNTS: [Option<&str>; 30] = [
    None,
    Some("0"),
    Some("0.00"),
    Some("-1"),
    Some("-0"),
    Some("-0.0"),
    Some("null"),
    Some("[]"),
    Some("[1]"),
    Some("{}"),
    Some("true"),
    Some("false"),
    Some("1e999"),
    Some("1e-3"),
    Some("0.001"),
    Some("9223372036854775807"),
    Some("9223372036854775808"),
    Some("1234567890123456789012345678901234567890"),
    Some("\"\""),
    Some("\"abc\""),
    Some("\"0\""),
    Some("\"-1\""),
    Some("\"-0\""),
    Some("\"NaN\""),
    Some("\"Infinity\""),
    Some("\"1e999\""),
    Some("\"1,5\""),
    Some("\"٣\""),
    Some("\"\\ud800\""),
    Some("\"1234567890123456789012345678901234567890\""),
];

#[tokio::test]
async fn what_is_no_amount_is_refused_by_every_command() {
    let server = with_two_wallets().await;
    for amount in NO_AMOUNTS {
        let field = amount.map(|json| format!(r#""amount":{json}"#));
        for (path, other) in [
            ("/wallets/w/credit", None),
            ("/wallets/w/debit", None),
            ("/wallets/w/transfer", Some(r#""toWalletId":"to""#)),
        ] {
            let fields: Vec<&str> = field.as_deref().into_iter().chain(other).collect();
            let answer = server.client.post(path, &format!("{{{}}}", fields.join(","))).await;
            let message = answer.is_error(400, "INVALID_AMOUNT");
            assert!(message.contains("amount"), "{path} {amount:?}: {message}");
        }
    }
    nothing_changed(&server).await;
}

#[tokio::test]
async fn a_fraction_of_a_yen_is_no_amount() {
    let server = Server::start().await;
    let body = r#"{"walletId":"yen","ownerId":"o","currency":"JPY"}"#;
    assert_eq!(server.client.post("/wallets", body).await.status, 201);
    for amount in ["0.1", "\"0.1\"", "9223372036854775808"] {
        let answer = server.client.post("/wallets/yen/credit", &format!(r#"{{"amount":{amount}}}"#)).await;
        answer.is_error(400, "INVALID_AMOUNT");
    }
    assert_eq!(server.state_of("yen").await, ("0".to_owned(), 0));
}

#[tokio::test]
async fn what_is_no_opening_balance_is_refused_but_zero_is_one() {
    let server = Server::start().await;
    for amount in NO_AMOUNTS.into_iter().flatten() {
        let is_zero = ["0", "0.00", "\"0\""].contains(&amount);
        let body = format!(r#"{{"walletId":"zero-{}","ownerId":"o","initialBalance":{amount}}}"#, amount.len());
        let answer = server.client.post("/wallets", &body).await;
        if is_zero {
            assert_eq!((answer.status, &answer.json["version"]), (201, &serde_json::json!(0)), "{amount}");
        } else {
            let message = answer.is_error(400, "INVALID_AMOUNT");
            assert!(message.contains("initialBalance"), "{amount}: {message}");
        }
    }
}

#[tokio::test]
async fn a_number_that_json_does_not_have_is_no_json() {
    let server = with_two_wallets().await;
    for amount in ["NaN", "Infinity", "+1", "01", ".5", "5.", "1,5", "٣", "0x10"] {
        let answer = server.client.post("/wallets/w/credit", &format!(r#"{{"amount":{amount}}}"#)).await;
        answer.is_error(400, "VALIDATION");
    }
    nothing_changed(&server).await;
}

#[tokio::test]
async fn a_body_that_is_not_the_object_it_should_be_is_refused_in_words_that_say_why() {
    let server = with_two_wallets().await;
    let deep_array = "[".repeat(10_000);
    let deep_field = format!(r#"{{"description":{}1{},"amount":1}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let deep_unknown = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    let deep_amount = format!(r#"{{"amount":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    for (body, code, word) in [
        ("", "VALIDATION", "empty"),
        ("   ", "VALIDATION", "empty"),
        ("not json", "VALIDATION", "object"),
        ("amount=1", "VALIDATION", "object"),
        ("null", "VALIDATION", "object"),
        ("1", "VALIDATION", "object"),
        ("\"text\"", "VALIDATION", "object"),
        ("[]", "VALIDATION", "array"),
        (r#"["1", null]"#, "VALIDATION", "array"),
        ("{", "VALIDATION", "JSON"),
        (r#"{"amount":1"#, "VALIDATION", "JSON"),
        (r#"{"amount":"#, "VALIDATION", "JSON"),
        (r#"{"amount":"1"#, "VALIDATION", "JSON"),
        (r#"{"amount":1}}"#, "VALIDATION", "JSON"),
        (r#"{"amount":1}{"amount":1}"#, "VALIDATION", "JSON"),
        (r#"{"amount":1,}"#, "VALIDATION", "JSON"),
        (r#"{amount:1}"#, "VALIDATION", "JSON"),
        (r#"{'amount':1}"#, "VALIDATION", "JSON"),
        (r#"{"amount":1 /* one */}"#, "VALIDATION", "JSON"),
        ("\u{feff}{\"amount\":1}", "VALIDATION", "object"),
        (r#"{"amount":1,"amount":1}"#, "VALIDATION", "duplicate field `amount`"),
        (r#"{"amount":1,"\u0061mount":2}"#, "VALIDATION", "duplicate field `amount`"),
        (r#"{"amount":1,"currency":"USD"}"#, "VALIDATION", "unknown field `currency`"),
        (r#"{"Amount":1}"#, "VALIDATION", "unknown field `Amount`"),
        (r#"{"amount":1,"description":7}"#, "VALIDATION", "description: expected text, found a number"),
        (r#"{"amount":1,"description":["x"]}"#, "VALIDATION", "description: expected text, found an array"),
        (r#"{"amount":1,"description":"a\u0000b"}"#, "VALIDATION", "description"),
        (r#"{"amount":1,"description":"\ud800"}"#, "VALIDATION", "description"),
        (r#"{"amount":true}"#, "INVALID_AMOUNT", "amount: expected a number or decimal text, found a boolean"),
        (deep_array.as_str(), "VALIDATION", "array"),
        (deep_field.as_str(), "VALIDATION", "description"),
        (deep_unknown.as_str(), "VALIDATION", "unknown field `a`"),
        (deep_amount.as_str(), "INVALID_AMOUNT", "array"),
    ] {
        let shown = &body[..body.len().min(60)];
        let answer = server.client.post("/wallets/w/credit", body).await;
        let message = answer.is_error(400, code);
        assert!(message.contains(word), "{shown}: {message}");
        assert!(message.chars().count() <= 401, "{shown}: {} characters", message.chars().count());
    }
    let no_utf_8 = server.client.post_with("/wallets/w/credit", &[], b"{\"amount\":\"\xff\"}".to_vec()).await;
    assert!(no_utf_8.is_error(400, "VALIDATION").contains("UTF-8"));
    let long_name = format!(r#"{{"{}":1}}"#, "x".repeat(60_000));
    server.client.post("/wallets/w/credit", &long_name).await.is_error(400, "VALIDATION");
    let long_description = format!(r#"{{"amount":1,"description":"{}"}}"#, "x".repeat(1_025));
    server.client.post("/wallets/w/credit", &long_description).await.is_error(400, "VALIDATION");
    nothing_changed(&server).await;
}

#[tokio::test]
async fn a_description_of_null_counts_as_none() {
    let server = with_two_wallets().await;
    let answer = server.client.post("/wallets/w/credit", r#"{"amount":1,"description":null}"#).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let trail = server.client.get("/wallets/w").await.json["auditTrail"].clone();
    assert!(trail[2].get("description").is_none(), "{trail}");
}

#[tokio::test]
async fn fields_of_a_new_wallet_are_named_where_they_are_wrong() {
    let server = Server::start().await;
    for (body, word) in [
        (r#"{}"#, "walletId is missing"),
        (r#"{"ownerId":"o"}"#, "walletId is missing"),
        (r#"{"walletId":"w"}"#, "ownerId is missing"),
        (r#"{"walletId":"w","ownerId":null}"#, "ownerId: expected text, found null"),
        (r#"{"walletId":7,"ownerId":"o"}"#, "walletId: expected text, found a number"),
        (r#"{"walletId":{},"ownerId":"o"}"#, "walletId: expected text, found an object"),
        (r#"{"walletId":"w","ownerId":""}"#, "ownerId"),
        (r#"{"walletId":"w","ownerId":"a\nb"}"#, "ownerId"),
        (r#"{"walletId":"w","ownerId":"o","currency":"usd"}"#, "currency"),
        (r#"{"walletId":"w","ownerId":"o","currency":"XAU"}"#, "currency"),
        (r#"{"walletId":"w","ownerId":"o","currency":""}"#, "currency"),
        (r#"{"walletId":"w","ownerId":"o","currency":840}"#, "currency: expected text, found a number"),
        (r#"{"walletId":"w","ownerId":"o","owner":"o"}"#, "unknown field `owner`"),
        (r#"{"walletId":"w","ownerId":"o","walletId":"w"}"#, "duplicate field `walletId`"),
    ] {
        let answer = server.client.post("/wallets", body).await;
        let message = answer.is_error(400, "VALIDATION");
        assert!(message.contains(word), "{body}: {message}");
    }
    server.client.get("/wallets/w").await.is_error(404, "WALLET_NOT_FOUND");
}

#[tokio::test]
async fn an_idempotency_key_that_is_no_key_is_refused_by_every_command() {
    let server = with_two_wallets().await;
    let long = "k".repeat(10 * 1_024);
    let too_long = "k".repeat(256);
    for key in ["", "two words", "tab\tbed", long.as_str(), too_long.as_str()] {
        for (path, body) in [
            ("/wallets", r#"{"walletId":"new","ownerId":"o"}"#),
            ("/wallets/w/credit", r#"{"amount":1}"#),
            ("/wallets/w/debit", r#"{"amount":1}"#),
            ("/wallets/w/transfer", r#"{"toWalletId":"to","amount":1}"#),
        ] {
            let answer = server.client.post_with(path, &[("Idempotency-Key", key)], body).await;
            assert!(answer.is_error(400, "VALIDATION").contains("Idempotency-Key"), "{path}");
        }
    }
    let body = r#"{"amount":1}"#;
    let twice = raw_request("POST", "/wallets/w/credit", body)
        .replace("Host: test", "Idempotency-Key: a\r\nIdempotency-Key: b");
    let answer = server.raw(twice).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Idempotency-Key must be given once"), "{answer}");
    nothing_changed(&server).await;

    let longest = "k".repeat(255);
    let answer = server.client.post_with("/wallets/w/credit", &[("Idempotency-Key", &longest)], body).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_body_that_is_not_said_to_be_json_is_415() {
    let server = with_two_wallets().await;
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/xml", "", "application/json; charset=utf-16"]
    {
        let answer =
            server.client.post_with("/wallets/w/credit", &[("Content-Type", content_type)], r#"{"amount":1}"#).await;
        assert!(answer.is_error(415, "UNSUPPORTED_MEDIA_TYPE").contains("application/json"), "{content_type}");
    }
    let compressed =
        server.client.post_with("/wallets/w/credit", &[("Content-Encoding", "gzip")], r#"{"amount":1}"#).await;
    assert!(compressed.is_error(415, "UNSUPPORTED_MEDIA_TYPE").contains("Content-Encoding"));
    let without =
        raw_request("POST", "/wallets/w/credit", r#"{"amount":1}"#).replace("Content-Type: application/json\r\n", "");
    let answer = server.raw(without).await;
    assert!(answer.starts_with("HTTP/1.1 415 ") && answer.contains("Content-Type is missing"), "{answer}");
    nothing_changed(&server).await;

    let answer = server
        .client
        .post_with("/wallets/w/credit", &[("Content-Type", "Application/JSON; charset=UTF-8")], r#"{"amount":1}"#)
        .await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_and_the_connection_goes_on() {
    let server = with_two_wallets().await;
    let ten_megabytes = format!(r#"{{"amount":1,"description":"{}"}}"#, "x".repeat(10 * 1_024 * 1_024));
    let just_over = format!(r#"{{"amount":1{}}}"#, " ".repeat(64 * 1_024));
    for body in [ten_megabytes, just_over] {
        for path in ["/wallets/w/credit", "/nowhere"] {
            let answer = server.client.post_with(path, &[], body.clone()).await;
            assert!(answer.is_error(413, "BODY_TOO_LARGE").contains("65536 bytes"));
        }
    }
    let large = raw_request("POST", "/wallets/w/credit", &"x".repeat(1_000_000)).replace("Connection: close\r\n", "");
    let both = server.raw(large + &raw_request("GET", "/health/live", "")).await;
    assert!(both.starts_with("HTTP/1.1 413 ") && both.contains("HTTP/1.1 200 OK"), "{both}");
    nothing_changed(&server).await;

    let largest = format!(r#"{{"amount":1{}}}"#, " ".repeat(64 * 1_024 - r#"{"amount":1}"#.len()));
    assert_eq!(server.client.post("/wallets/w/credit", &largest).await.status, 201);
}

#[tokio::test]
async fn a_body_larger_than_is_worth_reading_is_413_at_once_and_the_connection_is_closed() {
    let limits = Limits { body_discard_bytes: 100_000, ..Limits::default() };
    let server = Server::with_limits(limits).await;
    let head = |length: &str| {
        format!("POST /wallets HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n{length}\r\n\r\n")
    };
    // Not a byte of the body is sent: the answer does not wait for it.
    for length in ["Content-Length: 100001", "Content-Length: 70000\r\nExpect: 100-continue"] {
        let answer = server.raw(head(length)).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{length}: {answer}");
    }
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let answer = server.raw(head("Transfer-Encoding: chunked") + &chunk.repeat(4)).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_body_in_many_chunks_is_one_body() {
    let server = with_two_wallets().await;
    let chunks: String = r#"{"amount":1}"#.chars().map(|character| format!("1\r\n{character}\r\n")).collect();
    let answer = server
        .raw(format!(
            "POST /wallets/w/credit HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n{chunks}0\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}
