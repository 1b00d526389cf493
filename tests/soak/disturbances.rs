//! What is done to a running system, drawn at random.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{Rng, RngExt};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC};
use wallex::postgres::sqlx::{self, AssertSqlSafe};

use crate::load::{WALLETS, name};
use crate::system::{Role, System};

/// Longer than the relay's lease and than a group's session: when it wakes, others have taken its place.
const LONG_HALT: std::ops::Range<u64> = 12_000..16_000;
const SHORT_HALT: std::ops::Range<u64> = 500..4_000;
const PROJECTS_MAX: usize = 4;

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    Kill(Role),
    Stop(Role),
    Halt(Role),
    AddProject,
    RemoveProject,
    KillPostgres,
    KillBroker,
    HaltBroker,
    DeleteTopic,
    Foreign,
    Poison,
    Heal,
}

impl Disturbance {
    /// How often each is drawn, beside the others.
    const WEIGHTS: [(Disturbance, u32); 18] = [
        (Disturbance::Kill(Role::Web), 6),
        (Disturbance::Kill(Role::Relay), 12),
        (Disturbance::Kill(Role::Project), 8),
        (Disturbance::Stop(Role::Web), 4),
        (Disturbance::Stop(Role::Relay), 6),
        (Disturbance::Stop(Role::Project), 6),
        (Disturbance::Halt(Role::Web), 3),
        (Disturbance::Halt(Role::Relay), 6),
        (Disturbance::Halt(Role::Project), 4),
        (Disturbance::AddProject, 4),
        (Disturbance::RemoveProject, 4),
        (Disturbance::KillPostgres, 6),
        (Disturbance::KillBroker, 4),
        (Disturbance::HaltBroker, 4),
        (Disturbance::DeleteTopic, 2),
        (Disturbance::Foreign, 5),
        (Disturbance::Poison, 6),
        (Disturbance::Heal, 6),
    ];

    pub fn draw(random: &mut impl Rng) -> Disturbance {
        let all: u32 = Self::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = random.random_range(0..all);
        for (disturbance, weight) in Self::WEIGHTS {
            match drawn.checked_sub(weight) {
                Some(rest) => drawn = rest,
                None => return disturbance,
            }
        }
        unreachable!("less than all weights was drawn")
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disturbance::Kill(role) => write!(formatter, "kill -9 of a {role:?}"),
            Disturbance::Stop(role) => write!(formatter, "SIGTERM to a {role:?}"),
            Disturbance::Halt(role) => write!(formatter, "SIGSTOP of a {role:?}"),
            Disturbance::AddProject => write!(formatter, "one more Project"),
            Disturbance::RemoveProject => write!(formatter, "one Project less"),
            Disturbance::KillPostgres => write!(formatter, "kill -9 of PostgreSQL"),
            Disturbance::KillBroker => write!(formatter, "kill -9 of the broker"),
            Disturbance::HaltBroker => write!(formatter, "SIGSTOP of the broker"),
            Disturbance::DeleteTopic => write!(formatter, "topic deleted"),
            Disturbance::Foreign => write!(formatter, "foreign records"),
            Disturbance::Poison => write!(formatter, "a wallet poisoned"),
            Disturbance::Heal => write!(formatter, "wallets healed and replayed"),
        }
    }
}

/// Refuses the events of marked wallets in the tables of the projections, as a fault of theirs would.
pub async fn prepare_poison(system: &System) {
    for statement in [
        "CREATE TABLE soak_poison (wallet_id text PRIMARY KEY)",
        "CREATE FUNCTION soak_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE wallet text := to_jsonb(NEW) ->> TG_ARGV[0];
         BEGIN
             IF NEW.position % 3 = 0 AND EXISTS (SELECT FROM soak_poison p WHERE TG_ARGV[1] || p.wallet_id = wallet) THEN
                 RAISE EXCEPTION 'poisoned' USING ERRCODE = 'check_violation';
             END IF;
             RETURN NEW;
         END $$",
        "CREATE TRIGGER soak BEFORE INSERT ON ledger_postings FOR EACH ROW EXECUTE FUNCTION soak_refuse('account', 'wallet/')",
        "CREATE TRIGGER soak BEFORE INSERT ON read_model_wallets FOR EACH ROW EXECUTE FUNCTION soak_refuse('wallet_id', '')",
        "CREATE TABLE soak_applied (place bigserial PRIMARY KEY, account text NOT NULL, position bigint NOT NULL)",
        "CREATE FUNCTION soak_note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO soak_applied (account, position) VALUES (NEW.account, NEW.position);
             RETURN NULL;
         END $$",
        "CREATE TRIGGER soak_order AFTER INSERT ON ledger_postings FOR EACH ROW WHEN (NEW.leg = 0) EXECUTE FUNCTION soak_note()",
    ] {
        sqlx::query(statement).execute(system.database.pool()).await.expect(statement);
    }
}

/// Does it, as far as it can be done just now; what was done, in words.
pub async fn disturb(system: &mut System, what: Disturbance, random: &mut impl Rng) -> String {
    let (short, long) = (random.random_range(SHORT_HALT), random.random_range(LONG_HALT));
    let choice: usize = random.random_range(0..1_000);
    match what {
        Disturbance::Kill(role) | Disturbance::Stop(role) | Disturbance::Halt(role) => {
            let active = if role == Role::Relay { active_relay(system).await } else { None };
            let mut of_role: Vec<_> = system.members.iter_mut().filter(|member| member.role == role).collect();
            let active = of_role.iter().position(|member| active.is_some() && member.pid() == active);
            let chosen = match active {
                Some(active) if !choice.is_multiple_of(4) => active,
                _ => choice % of_role.len(),
            };
            let others_go_on = of_role.iter().enumerate().any(|(at, member)| at != chosen && !member.is_halted());
            let member = &mut of_role[chosen];
            match what {
                Disturbance::Kill(_) => member.end(Signal::SIGKILL),
                Disturbance::Stop(_) => member.end(Signal::SIGTERM),
                _ if member.is_halted() || (role == Role::Web && !others_go_on) => return format!("({what}: not now)"),
                _ => member.halt(Duration::from_millis(if role == Role::Web { short } else { long })),
            }
            format!("{what}: {}", member.name)
        }
        Disturbance::AddProject | Disturbance::RemoveProject => {
            let projects: Vec<usize> =
                (0..system.members.len()).filter(|at| system.members[*at].role == Role::Project).collect();
            match what {
                Disturbance::AddProject if projects.len() < PROJECTS_MAX => system.add(Role::Project),
                Disturbance::RemoveProject if projects.len() > 1 => {
                    let mut removed = system.members.remove(projects[choice % projects.len()]);
                    removed.end(Signal::SIGTERM);
                }
                _ => return format!("({what}: not now)"),
            }
            what.to_string()
        }
        Disturbance::KillPostgres if system.kill_postgres() => what.to_string(),
        Disturbance::KillBroker if system.broker_answers() => {
            system.kill_broker();
            what.to_string()
        }
        Disturbance::HaltBroker if system.broker_answers() => {
            system.halt_broker(Duration::from_millis(short));
            what.to_string()
        }
        Disturbance::DeleteTopic if system.broker_answers() => {
            delete_topic(system, choice.is_multiple_of(2)).await;
            what.to_string()
        }
        Disturbance::Foreign if system.broker_answers() => {
            send_foreign(system, random);
            what.to_string()
        }
        Disturbance::Poison => {
            let wallet = name(choice % WALLETS);
            insist(system, &format!("INSERT INTO soak_poison VALUES ('{wallet}') ON CONFLICT DO NOTHING")).await;
            format!("{what}: {wallet}")
        }
        Disturbance::Heal => {
            heal(system).await;
            what.to_string()
        }
        _ => format!("({what}: not now)"),
    }
}

/// The process of the relay that is at work, as far as the database says. To disturb the one that stands by disturbs nobody.
async fn active_relay(system: &System) -> Option<u32> {
    let asked = sqlx::query_scalar("SELECT holder FROM relay_status").fetch_one(system.database.pool()).await;
    let holder: Option<String> = asked.ok()?;
    // Such as "process 4145 on host".
    holder?.split(' ').nth(1)?.parse().ok()
}

/// Nothing is refused any more, and what was is applied. Somebody may be killed meanwhile, so this need not succeed.
pub async fn heal(system: &mut System) -> std::process::Output {
    insist(system, "DELETE FROM soak_poison").await;
    system.command(&["dlq", "replay", "--all", "--execute", "--reason", "the soak has healed the wallets"])
}

/// Runs a statement however long the database is away.
async fn insist(system: &mut System, statement: &str) {
    let statement = statement.to_owned();
    system
        .until("a statement of the soak's own", async |system: &System| {
            sqlx::query(AssertSqlSafe(statement.clone())).execute(system.database.pool()).await.is_ok()
        })
        .await;
}

/// Deletes the topic, and makes it anew or leaves that to the relay.
async fn delete_topic(system: &System, make_anew: bool) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", system.kafka.address()).create().expect("a client");
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(60)));
    let deleted = admin.delete_topics(&[EVENTS_TOPIC], &options).await.expect("an answer");
    assert!(deleted.iter().all(|it| it.is_ok() || is_unknown(it)), "{deleted:?}");
    if make_anew {
        // Whoever comes first makes it; it may take a moment until the old one is gone.
        let topic = NewTopic::new(EVENTS_TOPIC, EVENTS_PARTITIONS, TopicReplication::Fixed(1));
        let _ = admin.create_topics([&topic], &options).await.expect("an answer");
    }
}

fn is_unknown(deleted: &Result<String, (String, rdkafka::types::RDKafkaErrorCode)>) -> bool {
    matches!(deleted, Err((_, rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition)))
}

/// Records that no relay has written: bytes, no key, a tombstone, claims to a position.
fn send_foreign(system: &System, random: &mut impl Rng) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", system.kafka.address())
        .set("message.timeout.ms", "10000")
        .set("allow.auto.create.topics", "false")
        .create()
        .expect("a producer");
    let count = random.random_range(1..=5);
    for _ in 0..count {
        let partition = random.random_range(0..EVENTS_PARTITIONS);
        let key = name(random.random_range(0..WALLETS));
        let record: BaseRecord<'_, str, [u8]> = BaseRecord::to(EVENTS_TOPIC).partition(partition);
        let record = match random.random_range(0..4) {
            0 => record.payload(&b"\x00\xff not ours"[..]),
            1 => record.key(key.as_str()).payload(&b"{}"[..]),
            2 => record.key(key.as_str()),
            _ => {
                let claim = Header { key: "position", value: Some("999999999999") };
                record.key(key.as_str()).payload(&b"{}"[..]).headers(OwnedHeaders::new().insert(claim))
            }
        };
        // The topic may just have been deleted.
        let _ = producer.send(record);
    }
    let _ = producer.flush(Duration::from_secs(15));
}
