//! What the earlier system left: golden files, the copy against the store, wallets that go on, and the proof over many events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::SecondsFormat;
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::value::RawValue;
use wallex::dlq::{self, Page, Selection};
use wallex::kafka::{EventRecord, OutgoingRecord};
use wallex::lag;
use wallex::log::{EventLog, PostgresLog, RecordedEvent};
use wallex::sequencer::CommandError;
use wallex::verify::Proof;
use wallex::wallet::{Command, EARLIER_SYSTEM_VERSION, Rejection, WalletId};
use wallex::{Amount, Currency, Request, Wallex};

use crate::kurrentdb_server::KurrentServer;
use crate::process::{Serve, room, run};
use crate::whole::config;
use crate::world::{PATIENCE, World, id, patiently};

const AT: &str = r#"{"occurredAt":"2024-05-06T07:08:09.123Z"}"#;

#[derive(Deserialize)]
struct Golden {
    stored: Vec<StoredEvent>,
    events: Vec<ExpectedEvent>,
}

/// An event as the earlier system left it; the JSON as it stands there.
#[derive(Deserialize)]
struct StoredEvent {
    stream: String,
    r#type: String,
    data: Box<RawValue>,
    metadata: Option<Box<RawValue>>,
}

/// The event that everybody gets; the JSON byte for byte.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExpectedEvent {
    wallet: WalletId,
    revision: i64,
    event_type: String,
    event_version: u32,
    payload: Box<RawValue>,
    metadata: Box<RawValue>,
    /// Not said where it is the server's.
    created_at: Option<String>,
    /// Why it cannot be read.
    unreadable: Option<String>,
}

fn goldens() -> Vec<(PathBuf, Golden)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/earlier");
    let mut paths: Vec<PathBuf> =
        directory.read_dir().expect("the golden files").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a golden file");
        let golden = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, golden)
    };
    paths.into_iter().map(read).collect()
}

impl ExpectedEvent {
    fn assert_is(&self, event: &RecordedEvent, place: &str) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        assert_eq!((&event.stream, event.revision), (&self.wallet, self.revision), "{place}");
        assert_eq!((&event.event_type, event.event_version), (&self.event_type, self.event_version), "{place}");
        assert_eq!(text(&event.payload), self.payload.get(), "{place}");
        assert_eq!(text(&event.metadata), self.metadata.get(), "{place}");
        if let Some(created_at) = &self.created_at {
            assert_eq!(&event.recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true), created_at, "{place}");
        }
        assert_eq!(event.decode().err().map(|error| error.to_string()), self.unreadable, "{place}");
        // As a consumer of the topic gets it.
        let record = OutgoingRecord::of(event, 0);
        let read = EventRecord::from_value(event.stream.clone(), event.position, event.revision, &record.value);
        assert_eq!(read.err().map(|error| error.to_string()), self.unreadable, "{place}");
    }
}

/// Every shape and every surprise: the store's readers and the copy come to the same bytes, wherever a read begins.
#[tokio::test]
async fn events_of_the_earlier_system_come_out_as_the_golden_files_say() {
    let goldens = goldens();
    assert!(goldens.len() >= 13, "the golden files are where this test looks for them");
    let world = World::new().await;
    for event in goldens.iter().flat_map(|(_, golden)| &golden.stored) {
        let metadata = event.metadata.as_ref().map_or("", |metadata| metadata.get());
        world.store.keep(&event.stream, &event.r#type, event.data.get(), metadata);
    }
    world.copy().await;
    world.assert_copy_is_true().await;
    let copy = PostgresLog::new(world.database.database.clone());
    let mut copied = copy.read(0, 1_000).await.expect("the copy").into_iter();
    let reader = world.log();
    for (path, golden) in &goldens {
        for expected in &golden.events {
            let (wallet, revision) = (&expected.wallet, expected.revision);
            let place = format!("{}, wallet {wallet}, revision {revision}", path.display());
            expected.assert_is(&copied.next().expect("an event in the copy"), &place);
            let whole = patiently(async || reader.read_stream(wallet, 0, 1_000).await).await;
            expected.assert_is(&whole[revision as usize], &place);
            let alone = patiently(async || reader.read_stream(wallet, revision, 1).await).await;
            expected.assert_is(&alone[0], &place);
            let newest = whole.len() - revision as usize;
            let end = patiently(async || reader.read_stream_end(wallet, newest).await).await;
            expected.assert_is(&end[0], &place);
        }
    }
    // Nothing else was taken for a wallet.
    assert!(copied.next().is_none());
}

/// Movements of some wallets in turn, as the earlier system would have left them, with what each wallet then holds.
struct Left {
    balances: BTreeMap<String, i64>,
    random: ChaCha8Rng,
}

/// Cents as a binary floating point number is written that has been calculated with.
#[expect(clippy::float_arithmetic, reason = "so the earlier system came to its amounts")]
fn as_a_float(minor: i64, part: i64) -> String {
    let major = |minor: i64| minor as f64 / 100.0;
    (major(minor - part) + major(part)).to_string()
}

impl Left {
    fn new(seed: u64) -> Self {
        Left { balances: BTreeMap::new(), random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A wallet with an opening balance: two events.
    fn open(&mut self, store: &KurrentServer, wallet: &str, minor: i64) {
        let stream = format!("wallet-{wallet}");
        let amount = as_a_float(minor, 0);
        store.keep(&stream, "WalletCreated", &format!(r#"{{"ownerId":"owner","initialBalance":{amount}}}"#), AT);
        let data = format!(r#"{{"amount":{amount},"description":"Initial balance"}}"#);
        store.keep(&stream, "WalletCredited", &data, AT);
        self.balances.insert(wallet.to_owned(), minor);
    }

    /// One event on a wallet that is open.
    fn move_money(&mut self, store: &KurrentServer, wallet: &str) {
        let held = self.balances.get_mut(wallet).expect("an open wallet");
        let is_debit = *held > 100 && self.random.random_bool(0.5);
        let minor = self.random.random_range(1..=if is_debit { *held } else { 50_000 });
        let amount = as_a_float(minor, self.random.random_range(0..minor));
        let (kind, words) = if is_debit { ("WalletDebited", "to") } else { ("WalletCredited", "from") };
        *held += if is_debit { -minor } else { minor };
        let data = match self.random.random_range(0..3) {
            0 => format!(r#"{{"amount":{amount},"description":"Transfer {words} wallet-1"}}"#),
            _ => format!(r#"{{"amount":{amount}}}"#),
        };
        store.keep(&format!("wallet-{wallet}"), kind, &data, AT);
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("wallet-{number}")).collect()
}

/// However often the copy begins again, and wherever: it takes up each wallet where it has left it.
#[tokio::test]
async fn a_copy_that_goes_on_in_the_midst_of_them_is_the_same() {
    let world = World::new().await;
    let (mut left, names) = (Left::new(1), names(7));
    for name in &names {
        left.open(&world.store, name, 10_000);
    }
    world.store.keep("wallet-broken", "WalletCreated", r#"{"ownerId":"u"}"#, AT);
    world.store.keep("wallet-broken", "WalletCredited", r#"{"amount":0.001}"#, AT);
    for _ in 0..4 {
        for turn in 0..300 {
            left.move_money(&world.store, &names[turn % names.len()]);
        }
        world.store.keep("wallet-broken", "WalletCredited", r#"{"amount":1}"#, AT);
        world.copy().await;
        world.assert_copy_is_true().await;
    }
    let half =
        "UPDATE ingest_checkpoint SET commit_position = commit_position / 2, prepare_position = prepare_position / 2";
    for begin_again in [half, "DELETE FROM ingest_checkpoint"] {
        world.database.run(begin_again).await;
        left.move_money(&world.store, &names[3]);
        world.copy().await;
        world.assert_copy_is_true().await;
    }
    for name in &names {
        assert_eq!(world.balance(name).await, left.balances[name], "{name}");
    }
    let kept = format!("SELECT count(*) FROM events WHERE event_version = {EARLIER_SYSTEM_VERSION}");
    assert_eq!(world.database.number(&kept).await, 5);
}

/// The write path reads from the store what the copy does not have, also more of it than is read at once.
#[tokio::test]
async fn commands_go_on_from_what_the_earlier_system_left_before_anything_is_copied() {
    let world = World::new().await;
    let mut left = Left::new(2);
    for name in ["wallet-long", "wallet-short"] {
        left.open(&world.store, name, 10_000);
    }
    for _ in 0..2_500 {
        left.move_money(&world.store, "wallet-long");
    }
    let held = |left: &Left, name: &str| left.balances[name];
    let writer = world.writer();
    let answer = writer.ok(Command::credit(id("wallet-long"), "1.00")).await;
    assert_eq!((answer.wallet.version, answer.wallet.balance.minor()), (2_502, held(&left, "wallet-long") + 100));
    writer.ok(Command::transfer(id("wallet-long"), id("wallet-short"), "0.40")).await;
    assert_eq!(world.balance("wallet-short").await, 10_040);
    // It writes on, beside us.
    left.move_money(&world.store, "wallet-short");
    let answer = writer.ok(Command::debit(id("wallet-short"), "0.01")).await;
    assert_eq!(answer.wallet.balance.minor(), held(&left, "wallet-short") + 40 - 1);
    world.copy().await;
    world.assert_copy_is_true().await;
    assert_eq!(world.in_transit().await, 0);
    // And again by those who know the copy only.
    writer.stop().await;
    let writer = world.writer();
    let answer = writer.ok(Command::credit(id("wallet-long"), "0.01")).await;
    assert_eq!(answer.wallet.balance.minor(), held(&left, "wallet-long") + 100 - 40 + 1);
    writer.stop().await;
}

fn unreadable(answer: Result<impl std::fmt::Debug, CommandError>) -> (WalletId, String) {
    match answer {
        Err(CommandError::Unreadable { wallet_id, reason }) => (wallet_id, reason),
        other => panic!("{other:?}"),
    }
}

/// A wallet with an amount that is not exact is refused by name, and takes no money with it.
#[tokio::test]
async fn commands_on_a_wallet_that_cannot_be_read_say_so_and_change_nothing() {
    let world = World::new().await;
    let mut left = Left::new(3);
    left.open(&world.store, "wallet-good", 10_000);
    left.open(&world.store, "wallet-bad", 10_000);
    world.store.keep("wallet-wallet-bad", "WalletDebited", r#"{"amount":10.005}"#, AT);
    world.store.keep("wallet-wallet-bad", "WalletCredited", r#"{"amount":1}"#, AT);
    for is_copied in [false, true] {
        if is_copied {
            world.copy().await;
        }
        let writer = world.writer();
        let before = world.store.log().len();
        let (wallet, reason) =
            unreadable(writer.service.execute(request(Command::credit(id("wallet-bad"), "1"))).await);
        assert_eq!(wallet, id("wallet-bad"));
        assert!(reason.contains("WalletDebited of 10.005 is not exact"), "{reason}");
        let to_bad = Command::transfer(id("wallet-good"), id("wallet-bad"), "1");
        let (wallet, _) = unreadable(writer.service.execute(request(to_bad)).await);
        assert_eq!(wallet, id("wallet-bad"));
        assert_eq!(world.store.log().len(), before);
        // What shares its turn with it is not concerned.
        let (refused, taken) = tokio::join!(
            writer.service.execute(request(Command::transfer(id("wallet-good"), id("wallet-bad"), "1"))),
            writer.service.execute(request(Command::credit(id("wallet-good"), "1"))),
        );
        unreadable(refused);
        taken.expect("a credit");
        writer.stop().await;
    }
    assert_eq!(world.balance("wallet-good").await, 10_200);
}

fn request(command: Command) -> Request {
    Request::new(command)
}

async fn opened(world: &World, directory: &tempfile::TempDir) -> Wallex {
    Wallex::open(config(world, directory, true)).await.expect("a wallex")
}

async fn projected(world: &World, wallex: &Wallex) {
    let end = world.store.log().last().expect("events").position as i64;
    wallex.projected(end, PATIENCE).await.expect("ledger and read model in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn wallets_that_the_earlier_system_left_are_shown_rightly_and_go_on() {
    let world = World::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut left = Left::new(4);
    left.open(&world.store, "wallet-1", 30);
    left.open(&world.store, "wallet-2", 10_010);
    world.store.keep("wallet-wallet-1", "WalletCredited", r#"{"amount":0.30000000000000004}"#, AT);
    let legs =
        [("wallet-wallet-2", "WalletDebited", "to wallet-1"), ("wallet-wallet-1", "WalletCredited", "from wallet-2")];
    for (stream, kind, words) in legs {
        world.store.keep(stream, kind, &format!(r#"{{"amount":0.1,"description":"Transfer {words}"}}"#), AT);
    }
    world.store.keep("snapshot-wallet-wallet-1", "WalletSnapshot", r#"{"balance":0.7}"#, AT);
    let wallex = opened(&world, &directory).await;
    projected(&world, &wallex).await;
    let balance = "SELECT balance FROM read_model_wallets WHERE wallet_id = 'wallet-1'";
    assert_eq!(world.database.number(balance).await, 70);
    let postings = "SELECT count(*) FROM ledger_postings WHERE leg = 0 AND account = 'wallet/wallet-1' AND amount > 0
                       AND transaction_type = 'CREDIT' AND balance_after IN (30, 60, 70)";
    assert_eq!(world.database.number(postings).await, 3);
    assert_eq!(world.database.number("SELECT count(*) FROM read_model_wallets").await, 2);
    assert_eq!(world.in_transit().await, 0);
    let view = wallex.wallet(&id("wallet-1")).await.expect("a read").expect("a wallet");
    assert_eq!((view.wallet.balance.minor(), view.trail.len()), (70, 4));
    assert_eq!(view.trail[0].1.to_rfc3339(), "2024-05-06T07:08:09.123+00:00");

    wallex.execute(Command::debit(id("wallet-1"), "0.70")).await.expect("all that there is");
    let too_much = wallex.execute(Command::debit(id("wallet-1"), "0.01")).await;
    assert!(matches!(too_much, Err(CommandError::Rejected(Rejection::InsufficientFunds { .. }))), "{too_much:?}");
    wallex.execute(Command::transfer(id("wallet-2"), id("wallet-1"), "100")).await.expect("a transfer");
    projected(&world, &wallex).await;
    assert_eq!(world.database.number(balance).await, 10_000);
    let proof = wallex.verify().await.expect("a proof");
    assert!(proof.ok, "{proof:?}");
    wallex.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_exact_is_parked_and_named() {
    let world = World::new().await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut left = Left::new(5);
    left.open(&world.store, "wallet-1", 10_000);
    left.open(&world.store, "wallet-2", 10_000);
    world.store.keep("wallet-wallet-1", "WalletCredited", r#"{"amount":10.005}"#, AT);
    world.store.keep("wallet-wallet-1", "WalletCredited", r#"{"amount":1}"#, AT);
    left.move_money(&world.store, "wallet-2");
    let wallex = opened(&world, &directory).await;
    projected(&world, &wallex).await;
    let named = "WalletCredited of 10.005 is not exact";

    let queues =
        dlq::list(wallex.database(), &Selection::default(), Page { limit: 100, offset: 0 }).await.expect("queues");
    let shown: BTreeSet<_> = queues.iter().map(|queue| (queue.group.as_str(), queue.wallet_id.as_deref())).collect();
    assert_eq!(shown, [("ledger-projector", Some("wallet-1")), ("read-model-projector", Some("wallet-1"))].into());
    for queue in &queues {
        assert_eq!((queue.records, queue.error_class.as_str()), (2, "DECODE"));
        assert!(queue.error.contains(named), "{}", queue.error);
    }
    let report = lag::report(wallex.database(), Some(wallex.kafka())).await.expect("a report");
    assert_eq!(report.parked.len(), 2);
    assert!(report.parked.iter().all(|parked| parked.error.contains(named)), "{:?}", report.parked);
    // What came before it is there, and the other wallet is whole.
    let balance = |wallet: &str| format!("SELECT balance FROM read_model_wallets WHERE wallet_id = '{wallet}'");
    assert_eq!(world.database.number(&balance("wallet-1")).await, 10_000);
    assert_eq!(world.database.number(&balance("wallet-2")).await, left.balances["wallet-2"]);
    // The proof does not hide it.
    let proof = wallex.verify().await.expect("a proof");
    let log = proof.checks.iter().find(|check| check.name == "log").expect("a check");
    assert!(!proof.ok && !log.ok && log.actual.contains(named), "{log:?}");
    wallex.close().await;
}

/// A wallet as HTTP answers it.
#[derive(Deserialize)]
struct AnsweredWallet {
    balance: Box<RawValue>,
    version: usize,
}

/// A hundred thousand events of a thousand wallets: copied, published and projected by `wallex serve`, and proven to the cent by
/// `wallex verify`; and the wallets go on.
#[tokio::test(flavor = "multi_thread")]
async fn slow_verify_over_100_000_events_of_the_earlier_system_ends_well() {
    const EVENTS: usize = 100_000;
    const WALLETS: usize = 1_000;
    let world = World::new().await;
    let room = room();
    let (mut left, names) = (Left::new(6), names(WALLETS));
    for name in &names {
        left.open(&world.store, name, 10_010);
    }
    for turn in 2 * WALLETS..EVENTS {
        left.move_money(&world.store, &names[turn % WALLETS]);
        if turn % 100 == 0 {
            let stream = format!("snapshot-wallet-{}", names[turn % WALLETS]);
            world.store.keep(&stream, "WalletSnapshot", r#"{"balance":1}"#, AT);
        }
    }
    let begun = Instant::now();
    let at = ["--event-store", &world.store.connection_string(), "--database-url", &world.database.url];
    let serve = Serve::start_with(room.path(), &at);
    let through = async {
        while !patiently(async || lag::progress(&world.database.database).await).await.is_through(EVENTS as i64) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(3 * PATIENCE, through).await.expect("copied and projected in time");
    println!("copied and projected after {:?}", begun.elapsed());
    let verified = run(&["verify", "-o", "json", "--data-dir", serve.data_dir(), at[2], at[3], at[0], at[1]]);
    println!("proven after {:?}", begun.elapsed());
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{said}{}", String::from_utf8_lossy(&verified.stderr));
    let proof: Proof = serde_json::from_slice(&verified.stdout).expect("a proof");
    assert!(proof.ok && proof.position == EVENTS as i64, "{proof:?}");
    let held = "SELECT sum(balance)::bigint FROM read_model_wallets";
    assert_eq!(world.database.number(held).await, left.balances.values().sum::<i64>());

    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for name in names.iter().step_by(100) {
        let credit = client.post(format!("{}/wallets/{name}/credit", serve.info.url));
        let credited = credit.json(&serde_json::json!({"amount": "0.01"})).send().await.expect("an answer");
        assert_eq!(credited.status(), 201);
        let wallet: AnsweredWallet = credited.json().await.expect("a wallet");
        let expected = Amount::from_minor(left.balances[name] + 1).expect("an amount").to_json_number(Currency::USD);
        assert_eq!((wallet.balance.get(), wallet.version), (expected.as_str(), EVENTS / WALLETS), "{name}");
    }
    assert_eq!(serve.stop(Signal::SIGTERM), 143);
}
