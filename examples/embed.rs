//! From nothing to a proven transfer, on a PostgreSQL and a broker that wallex starts itself: `cargo run --example embed`.

use std::{error::Error, fs::Permissions, os::unix::fs::PermissionsExt, time::Duration};

use wallex::{Amount, Command, Config, Currency, OwnerId, WalletId, Wallex};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A folder of yours in real use. Under root, PostgreSQL runs as another user, who must be let through (711).
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir()?;
    let wallex = Wallex::open(Config::embedded(folder.path())).await?;

    let (alice, bob) = (WalletId::new("alice")?, WalletId::new("bob")?);
    let opening = Amount::parse("100", Currency::USD)?;
    wallex.execute(Command::create(alice.clone(), OwnerId::new("owner-1")?, Currency::USD, opening)).await?;
    wallex.execute(Command::create(bob.clone(), OwnerId::new("owner-2")?, Currency::USD, Amount::ZERO)).await?;

    // Both legs or neither; on disk by the time it is answered.
    let answer = wallex.execute(Command::transfer(alice.clone(), bob.clone(), "12.34")).await?;

    // Read from the log, so never older than an answer.
    for id in [&alice, &bob] {
        let view = wallex.wallet(id).await?.ok_or("no such wallet")?;
        println!("{id}: {} {}", view.wallet.balance.to_text(Currency::USD), view.wallet.currency);
    }

    // Ledger and read model follow through Kafka; then everything is computed again from the log, and compared.
    wallex.projected(answer.position, Duration::from_secs(30)).await?;
    let proof = wallex.verify().await?;
    for check in &proof.checks {
        println!("{} {}: {}", if check.ok { "ok   " } else { "WRONG" }, check.name, check.actual);
    }
    wallex.close().await;
    if proof.ok { Ok(()) } else { Err("something differs".into()) }
}
