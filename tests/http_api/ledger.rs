//! The ledger routes, on rows as the ledger's projection writes them.

use serde_json::Value;
use uuid::Uuid;
use wallex::postgres::sqlx;

use crate::support::Server;

/// One row of the ledger, and its counter-posting.
struct Posting<'a> {
    position: i64,
    wallet: &'a str,
    currency: &'a str,
    transaction_type: &'a str,
    amount: i64,
    balance_after: i64,
    reference: Option<Uuid>,
    related: Option<&'a str>,
    at: &'a str,
}

const PLAIN: Posting<'static> = Posting {
    position: 0,
    wallet: "w",
    currency: "USD",
    transaction_type: "CREDIT",
    amount: 0,
    balance_after: 0,
    reference: None,
    related: None,
    at: "2024-05-01T10:00:00Z",
};

async fn post(server: &Server, posting: Posting<'_>) {
    let (other, sign) = (if posting.reference.is_some() { "clearing" } else { "external" }, -1);
    for (leg, account, amount) in [
        (0_i16, format!("wallet/{}", posting.wallet), posting.amount),
        (1, format!("{other}/{}", posting.currency), sign * posting.amount),
    ] {
        let leg_0 = leg == 0;
        sqlx::query(
            "INSERT INTO ledger_postings (position, leg, account, currency, amount, balance_after, event_id, transaction_type,
                                          description, reference_id, related_wallet_id, metadata, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::timestamptz)",
        )
        .bind(posting.position)
        .bind(leg)
        .bind(account)
        .bind(posting.currency)
        .bind(amount)
        .bind(leg_0.then_some(posting.balance_after))
        .bind(leg_0.then_some(Uuid::from_u128(posting.position as u128)))
        .bind(leg_0.then_some(posting.transaction_type))
        .bind((leg_0 && posting.position % 2 == 0).then(|| format!("number {}", posting.position)))
        .bind(posting.reference.filter(|_| leg_0))
        .bind(posting.related.filter(|_| leg_0))
        .bind(leg_0.then_some(br#"{"correlationId":"c","causationId":"k"}"#.as_slice()))
        .bind(posting.at)
        .execute(server.database.pool())
        .await
        .expect("a posting is written");
    }
}

/// Positions of an answer's rows, in its order; `count` must agree.
async fn positions(server: &Server, path: &str) -> Vec<u128> {
    let answer = server.client.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    let rows = answer.json["transactions"].as_array().expect("an array");
    assert_eq!(answer.json["count"], rows.len(), "{path}");
    let position = |row: &Value| Uuid::parse_str(row["id"].as_str().expect("text")).expect("a uuid").as_u128();
    rows.iter().map(position).collect()
}

/// Four movements of `w` on four days, one of them a transfer to `x`.
async fn with_four_days() -> (Server, Uuid) {
    let server = Server::start().await;
    let reference = Some(Uuid::from_u128(77));
    post(&server, Posting { position: 2, amount: 10_000, balance_after: 10_000, at: "2024-05-01T00:00:00Z", ..PLAIN })
        .await;
    let debit = Posting { transaction_type: "DEBIT", amount: -1_005, balance_after: 8_995, ..PLAIN };
    post(&server, Posting { position: 3, at: "2024-05-02T12:30:00.5Z", ..debit }).await;
    let day = "2024-05-03T23:59:59.999999Z";
    let out = Posting {
        transaction_type: "TRANSFER_OUT",
        amount: -8_000,
        balance_after: 995,
        reference,
        related: Some("x"),
        ..PLAIN
    };
    post(&server, Posting { position: 5, at: day, ..out }).await;
    let into = Posting {
        wallet: "x",
        transaction_type: "TRANSFER_IN",
        amount: 8_000,
        balance_after: 8_000,
        reference,
        ..PLAIN
    };
    post(&server, Posting { position: 6, at: day, related: Some("w"), ..into }).await;
    post(&server, Posting { position: 8, amount: 5, balance_after: 1_000, at: "2024-05-04T00:00:00Z", ..PLAIN }).await;
    (server, Uuid::from_u128(77))
}

#[tokio::test]
async fn rows_are_shown_newest_first_with_text_amounts_and_both_balances() {
    let (server, reference) = with_four_days().await;

    let answer = server.client.get("/ledger/wallet/w").await;

    assert_eq!(answer.status, 200);
    assert_eq!((answer.json["walletId"].as_str(), answer.json["count"].as_i64()), (Some("w"), Some(4)));
    let rows = &answer.json["transactions"];
    assert_eq!(
        rows[0],
        serde_json::json!({
            "id": Uuid::from_u128(8), "walletId": "w", "transactionType": "CREDIT", "amount": "0.05",
            "balanceBefore": "9.95", "balanceAfter": "10.00", "description": "number 8", "referenceId": null,
            "relatedWalletId": null, "metadata": {"correlationId": "c", "causationId": "k"},
            "createdAt": "2024-05-04T00:00:00Z",
        })
    );
    assert_eq!(rows[1]["transactionType"], "TRANSFER_OUT");
    assert_eq!(rows[1]["amount"], "80.00");
    assert_eq!(rows[1]["balanceBefore"], "89.95");
    assert_eq!(rows[1]["balanceAfter"], "9.95");
    assert_eq!(rows[1]["referenceId"], reference.to_string());
    assert_eq!(rows[1]["relatedWalletId"], "x");
    assert_eq!(rows[1]["description"], Value::Null);
    assert_eq!(rows[1]["createdAt"], "2024-05-03T23:59:59.999999Z");
    assert_eq!(rows[2]["transactionType"], "DEBIT");
    assert_eq!(rows[3]["balanceBefore"], "0.00");
}

#[tokio::test]
async fn rows_have_their_currencys_digits() {
    let server = Server::start().await;
    post(
        &server,
        Posting { position: 2, wallet: "yen", currency: "JPY", amount: 1_050, balance_after: 1_050, ..PLAIN },
    )
    .await;
    post(
        &server,
        Posting { position: 4, wallet: "bhd", currency: "BHD", amount: 1_050, balance_after: 1_050, ..PLAIN },
    )
    .await;
    let amount = async |path: &str| server.client.get(path).await.json["transactions"][0]["amount"].clone();
    assert_eq!(amount("/ledger/wallet/yen").await, "1050");
    assert_eq!(amount("/ledger/wallet/bhd").await, "1.050");
}

#[tokio::test]
async fn both_legs_of_a_transfer_share_their_reference() {
    let (server, reference) = with_four_days().await;
    assert_eq!(positions(&server, &format!("/ledger/reference/{reference}")).await, [6, 5]);
    assert_eq!(positions(&server, &format!("/ledger/reference/{reference}?transactionType=TRANSFER_IN")).await, [6]);
    assert_eq!(positions(&server, &format!("/ledger/reference/{}", Uuid::from_u128(78))).await, []);
    let answer = server.client.get(&format!("/ledger/reference/{reference}")).await;
    assert!(answer.json.get("walletId").is_none(), "{}", answer.text);
}

#[tokio::test]
async fn a_filter_lets_through_what_it_says_on_every_route() {
    let (server, _) = with_four_days().await;
    for (query, of_wallet, of_all) in [
        ("", &[8, 5, 3, 2][..], &[8, 6, 5, 3, 2][..]),
        ("transactionType=CREDIT", &[8, 2], &[8, 2]),
        ("transactionType=DEBIT", &[3], &[3]),
        ("transactionType=TRANSFER_OUT", &[5], &[5]),
        ("transactionType=TRANSFER_IN", &[], &[6]),
        ("limit=2", &[8, 5], &[8, 6]),
        ("limit=2&offset=2", &[3, 2], &[5, 3]),
        ("offset=3", &[2], &[3, 2]),
        ("offset=100000", &[], &[]),
        ("limit=1000", &[8, 5, 3, 2], &[8, 6, 5, 3, 2]),
        // A date is the whole day, its last microsecond included and the next day's first not.
        ("startDate=2024-05-03", &[8, 5], &[8, 6, 5]),
        ("endDate=2024-05-03", &[5, 3, 2], &[6, 5, 3, 2]),
        ("startDate=2024-05-03&endDate=2024-05-03", &[5], &[6, 5]),
        ("startDate=2024-05-05", &[], &[]),
        ("startDate=2024-05-04&endDate=2024-05-01", &[], &[]),
        // A time is exact at both ends.
        ("startDate=2024-05-02T12:30:00.5Z&endDate=2024-05-02T12:30:00.5Z", &[3], &[3]),
        ("startDate=2024-05-02T12:30:00.500001Z", &[8, 5], &[8, 6, 5]),
        ("endDate=2024-05-02T12:30:00.499999Z", &[2], &[2]),
        ("endDate=2024-05-02T14:30:00.5%2B02:00", &[3, 2], &[3, 2]),
        ("endDate=2024-05-02T14:30:00.5+02:00", &[3, 2], &[3, 2]),
        ("transactionType=CREDIT&startDate=2024-05-02&limit=5&offset=0", &[8], &[8]),
    ] {
        assert_eq!(positions(&server, &format!("/ledger/wallet/w?{query}")).await, of_wallet, "of w: {query}");
        assert_eq!(positions(&server, &format!("/ledger/transactions?{query}")).await, of_all, "of all: {query}");
    }
}

#[tokio::test]
async fn a_page_without_a_limit_has_fifty_rows() {
    let server = Server::start().await;
    sqlx::query(
        "INSERT INTO ledger_postings (position, leg, account, currency, amount, balance_after, event_id, transaction_type, created_at)
         SELECT n, 0, 'wallet/w', 'USD', 1, n, lpad(to_hex(n), 32, '0')::uuid, 'CREDIT', now() FROM generate_series(1, 120) n",
    )
    .execute(server.database.pool())
    .await
    .expect("rows are written");
    assert_eq!(positions(&server, "/ledger/wallet/w").await, (71..=120).rev().collect::<Vec<_>>());
    assert_eq!(positions(&server, "/ledger/wallet/w?offset=100").await, (1..=20).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_wallet_that_is_not_known_has_an_empty_ledger() {
    let server = Server::start().await;
    let ledger = server.client.get("/ledger/wallet/nobody").await;
    assert_eq!((ledger.status, ledger.text.as_str()), (200, r#"{"walletId":"nobody","count":0,"transactions":[]}"#));
    let summary = server.client.get("/ledger/wallet/nobody/summary").await;
    assert_eq!(summary.status, 200);
    assert_eq!(
        summary.text,
        r#"{"walletId":"nobody","totalCredits":0,"totalDebits":0,"transactionCount":0,"lastTransaction":null}"#
    );
    let all = server.client.get("/ledger/transactions").await;
    assert_eq!((all.status, all.text.as_str()), (200, r#"{"count":0,"transactions":[]}"#));
}

#[tokio::test]
async fn a_summary_adds_up_what_came_in_and_what_went_out() {
    let (server, _) = with_four_days().await;
    let summary = server.client.get("/ledger/wallet/w/summary").await;
    assert!(
        summary.text.starts_with(r#"{"walletId":"w","totalCredits":100.05,"totalDebits":90.05,"transactionCount":4,"#),
        "{}",
        summary.text
    );
    let newest = server.client.get("/ledger/wallet/w?limit=1").await.json["transactions"][0].clone();
    assert_eq!(summary.json["lastTransaction"], newest);
}

#[tokio::test]
async fn a_summary_beyond_what_one_amount_can_hold_is_exact() {
    let server = Server::start().await;
    for turn in 0..3 {
        let full = Posting { wallet: "full", amount: i64::MAX, balance_after: i64::MAX, ..PLAIN };
        post(&server, Posting { position: 2 * turn + 1, ..full }).await;
        let empty = Posting { wallet: "full", transaction_type: "DEBIT", amount: -i64::MAX, balance_after: 0, ..PLAIN };
        post(&server, Posting { position: 2 * turn + 2, ..empty }).await;
    }
    let summary = server.client.get("/ledger/wallet/full/summary").await;
    // 3 * 92233720368547758.07
    let expected = r#""totalCredits":276701161105643274.21,"totalDebits":276701161105643274.21,"transactionCount":6,"#;
    assert!(summary.text.contains(expected), "{}", summary.text);
    let rows = server.client.get("/ledger/wallet/full?limit=2").await;
    assert_eq!(rows.json["transactions"][0]["balanceBefore"], "92233720368547758.07");
    assert_eq!(rows.json["transactions"][0]["amount"], "92233720368547758.07");
}

#[tokio::test]
async fn a_row_that_must_not_be_is_500_and_stays_inside() {
    let server = Server::start().await;
    post(&server, Posting { position: 1, amount: 5, balance_after: 1, ..PLAIN }).await;
    let message = server.client.get("/ledger/wallet/w").await.is_error(500, "INTERNAL").to_owned();
    assert!(!message.contains("ledger"), "{message}");
}
