//! Reading wallets: one from the log, many from the read model.

use wallex::postgres::sqlx;

use crate::support::Server;

#[tokio::test]
async fn a_wallet_is_never_read_older_than_an_answer_already_given() {
    let server = Server::start().await;
    server.open("w", "0").await;
    for number in 2..=120_i64 {
        let answer = server.client.post("/wallets/w/credit", r#"{"amount":"0.10"}"#).await;
        let read = server.client.get("/wallets/w").await;
        for field in ["balance", "version", "updatedAt", "createdAt", "ownerId", "currency", "status", "id"] {
            assert_eq!(read.json[field], answer.json[field], "{field} of number {number}");
        }
    }
}

#[tokio::test]
async fn the_trail_is_the_newest_hundred_events_oldest_first() {
    let server = Server::start().await;
    server.open("w", "100").await;
    server.open("other", "0").await;
    let trail = server.client.get("/wallets/w").await.json["auditTrail"].clone();
    assert_eq!(trail.as_array().expect("an array").len(), 2);
    assert_eq!(trail[0]["type"], "WalletCreated");
    assert!(trail[0].get("amount").is_none() && trail[0].get("description").is_none(), "{trail}");
    assert_eq!(trail[1]["type"], "WalletCredited");
    assert_eq!(trail[1]["amount"], 100);
    assert!(trail[1]["occurredAt"].as_str().expect("text").ends_with('Z'));

    for cents in 1..=120 {
        let (dollars, cents_left) = (cents / 100, cents % 100);
        let body = format!(r#"{{"amount":"{dollars}.{cents_left:02}","description":"number {cents}"}}"#);
        assert_eq!(server.client.post("/wallets/w/credit", &body).await.status, 201, "{body}");
    }
    let body = r#"{"toWalletId":"other","amount":"3"}"#;
    assert_eq!(server.client.post("/wallets/w/transfer", body).await.status, 201);

    let answer = server.client.get("/wallets/w").await;
    let trail = answer.json["auditTrail"].as_array().expect("an array");
    assert_eq!(trail.len(), 100);
    assert_eq!(trail[0]["description"], "number 22");
    assert!(answer.text.contains(r#"{"type":"WalletCredited","amount":0.22,"description":"number 22","#));
    assert_eq!(trail[98]["description"], "number 120");
    assert_eq!(trail[99]["type"], "WalletDebited");
    assert_eq!(trail[99]["amount"], 3);
}

#[tokio::test]
async fn a_wallet_that_is_not_there_is_404() {
    let server = Server::start().await;
    let answer = server.client.get("/wallets/nobody").await;
    assert!(answer.is_error(404, "WALLET_NOT_FOUND").contains("nobody"));
}

#[tokio::test]
async fn the_list_of_wallets_comes_from_the_read_model_page_by_page() {
    let server = Server::start().await;
    let empty = server.client.get("/wallets").await;
    assert_eq!((empty.status, empty.text.as_str(), empty.header("link")), (200, "[]", None));

    sqlx::query(
        "INSERT INTO read_model_wallets
         SELECT 'w-' || lpad(n::text, 3, '0'), 'owner ' || n, CASE n WHEN 7 THEN 'JPY' ELSE 'USD' END, n * 1050, 'ACTIVE', n, n,
                '2024-05-01T10:00:00.123456Z', '2024-05-02T10:00:00Z'
           FROM generate_series(1, 230) n",
    )
    .execute(server.database.pool())
    .await
    .expect("wallets are listed");

    let (mut pages, mut path) = (Vec::new(), Some("/wallets".to_owned()));
    while let Some(next) = path {
        let answer = server.client.get(&next).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        pages.push(answer.json.as_array().expect("a bare array").clone());
        path = answer.header("link").map(|link| {
            let (target, rest) = link.strip_prefix('<').expect("a link").split_once('>').expect("a target");
            assert_eq!(rest, "; rel=\"next\"");
            target.to_owned()
        });
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 30]);
    let ids: Vec<&str> = pages.iter().flatten().map(|wallet| wallet["id"].as_str().expect("text")).collect();
    assert_eq!(ids, (1..=230).map(|number| format!("w-{number:03}")).collect::<Vec<_>>());

    let exact = server.client.get("/wallets?limit=10&cursor=w-220").await;
    assert_eq!(
        (exact.json.as_array().expect("an array").len(), exact.header("link")),
        (10, None),
        "exactly the last page"
    );
    let page = server.client.get("/wallets?limit=1&cursor=w-000").await;
    assert_eq!(
        page.text,
        r#"[{"id":"w-001","ownerId":"owner 1","currency":"USD","balance":10.5,"status":"ACTIVE","version":1,"createdAt":"2024-05-01T10:00:00.123456Z","updatedAt":"2024-05-02T10:00:00Z"}]"#
    );
    assert_eq!(page.header("link"), Some("</wallets?limit=1&cursor=w-001>; rel=\"next\""));
    let yen = server.client.get("/wallets?limit=1&cursor=w-006").await;
    assert!(yen.text.contains(r#""currency":"JPY","balance":7350,"#), "{}", yen.text);
}
