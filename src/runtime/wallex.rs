//! A wallex in this process: what an embedding program holds, and what `wallex serve` runs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::dlq::copy_dead_letters;
use crate::http::{self, Api, Limits};
use crate::ingest::Ingest;
use crate::kafka::KafkaConfig;
use crate::kurrentdb::KurrentLog;
use crate::lag::{self, LagError};
use crate::lanes::{CopiedLog, Lanes};
use crate::lease::Leases;
use crate::log::{EventLog, LogError, Position, PostgresLog, ViewError, WalletView, read_wallet};
use crate::postgres::Database;
use crate::projection::{
    BUILT_IN, LedgerProjection, PARKED_MAX, Projection, ProjectionRunner, ReadModelProjection, RunnerOptions,
};
use crate::relay::{Bell, Relay, RelayOptions};
use crate::runtime::{Attachment, Config, OpenError, Parts, Platform, Stage, Supervisor, TaskEnded, home};
use crate::sequencer::{Answer, CommandError, CommandService, Request, Sequencer, forget_old_keys};
use crate::verify::{Proof, VerifyError, VerifyOptions, verify_copy};
use crate::wallet::{Command, WalletId};

/// How many of a wallet's newest events [`Wallex::wallet`] reads.
const TRAIL_MAX: usize = 100;
/// How long each stage is given to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How often [`Wallex::projected`] looks: progress is made in other tasks or processes, which do not tell.
const PROGRESS_POLL: Duration = Duration::from_millis(5);

/// A running wallex. [`Wallex::open`] starts it, [`Wallex::close`] ends it in order.
pub struct Wallex {
    database: Database,
    kafka: KafkaConfig,
    log: PostgresLog,
    /// Where the events are, if not in the database; `log` is then the copy.
    store: Option<CopiedLog<KurrentLog>>,
    commands: Option<CommandService>,
    leases: Option<Leases>,
    /// The projections that [`Wallex::projected`] waits for: wallex's own, wherever they run, and those that run here.
    projections: Vec<String>,
    /// Whether the task runs that copies what is parked to its topic: where a projection does.
    copies_dead_letters: bool,
    instance_id: Option<String>,
    parked_max: i64,
    supervisor: Supervisor,
    foundation: Foundation,
}

/// What a wallex stands on, to be given back when it ends.
enum Foundation {
    Own(Box<Platform>),
    Attached(Box<Attachment>),
}

/// Why [`Wallex::projected`] gave up.
#[derive(Debug, Error)]
pub enum ProjectedError {
    /// It took longer than the caller would wait.
    #[error("the projections have not come as far as position {position} within {waited:?}")]
    TimedOut {
        /// The position waited for.
        position: Position,
        /// How long.
        waited: Duration,
    },
    /// The database did not answer.
    #[error(transparent)]
    Lag(#[from] LagError),
    /// The copy of the event store did not answer.
    #[error(transparent)]
    Copy(#[from] LogError),
}

impl Wallex {
    /// Starts a wallex on its data directory: database, broker, and the parts that the configuration names.
    ///
    /// # Errors
    /// [`OpenError`], by what could not be had.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        if config.redis.is_some() && config.event_store.is_none() {
            return Err(OpenError::NothingToQueueFor);
        }
        let platform = Platform::start(&config).await?;
        let (database, kafka) = (platform.database.clone(), platform.kafka.clone());
        let store = config.event_store.clone().map(KurrentLog::new);
        if let Err(error) = home::claim(&config, store.as_ref(), &database).await {
            platform.stop().await;
            return Err(error);
        }
        // Other processes may write to a database that we do not manage; they ring through the database.
        let listen = !platform.manages_postgres() || !config.parts.commands;
        Ok(Self::assemble(&config, store, database, kafka, listen, Foundation::Own(Box::new(platform))))
    }

    /// Runs parts beside a wallex that is there already: `relay` or `project` in a process of their own.
    ///
    /// # Errors
    /// [`OpenError::NothingThere`] where there is no broker to run them on; [`OpenError`] for the rest.
    pub async fn attach(config: Config) -> Result<Self, OpenError> {
        let attachment = Attachment::find(&config).await?;
        let Some(kafka) = attachment.kafka.clone() else {
            attachment.close().await;
            return Err(OpenError::NoBroker);
        };
        let database = attachment.database.clone();
        let config = Config { event_store: attachment.event_store.clone(), ..config };
        let store = config.event_store.clone().map(KurrentLog::new);
        if let Err(error) = home::claim_attached(&config, store.as_ref(), &database).await {
            attachment.close().await;
            return Err(error);
        }
        Ok(Self::assemble(&config, store, database, kafka, true, Foundation::Attached(Box::new(attachment))))
    }

    fn assemble(
        config: &Config,
        store: Option<KurrentLog>,
        database: Database,
        kafka: KafkaConfig,
        listen: bool,
        foundation: Foundation,
    ) -> Self {
        let Parts { commands, relay, ledger, read_model } = config.parts;
        let log = PostgresLog::new(database.clone());
        let bell = Bell::new();
        let projections = BUILT_IN.map(str::to_owned).to_vec();
        let supervisor = Supervisor::default();
        let instance_id = config.instance_id.clone();
        let store = store.map(|events| (events, Bell::new()));
        let copied = store.as_ref().map(|(events, _)| CopiedLog::new(events.clone(), log.clone()));
        let mut wallex = Wallex {
            database,
            kafka,
            log,
            store: copied,
            commands: None,
            leases: None,
            projections,
            copies_dead_letters: false,
            instance_id,
            parked_max: config.parked_max.unwrap_or(PARKED_MAX),
            supervisor,
            foundation,
        };
        match &store {
            Some((events, appended)) => wallex.start_with_store(config, events, appended, &bell),
            None if commands => wallex.start_commands(config, bell.clone()),
            None => {}
        }
        if relay {
            let options = RelayOptions { listen };
            let relay = Relay::new(wallex.log.clone(), wallex.database.clone(), wallex.kafka.clone(), bell, options);
            wallex.supervisor.spawn(Stage::Relay, "relay", |stop| relay.run(stop));
        }
        if ledger {
            wallex.run_projection(LedgerProjection::new());
        }
        if read_model {
            wallex.run_projection(ReadModelProjection::new());
        }
        wallex
    }

    fn start_commands(&mut self, config: &Config, bell: Bell) {
        let on_append = move |_head: Position| bell.ring();
        let (service, sequencer) = Sequencer::new(self.log.clone(), config.sequencer.clone(), on_append);
        self.commands = Some(service);
        self.supervisor.spawn(Stage::Write, "sequencer", |stop| async move {
            sequencer.run(stop).await;
            Ok::<(), String>(())
        });
        self.start_forgetting_keys();
    }

    /// The write path over an event store of its own, and what copies that one into the database.
    fn start_with_store(&mut self, config: &Config, events: &KurrentLog, appended: &Bell, copied: &Bell) {
        if config.parts.commands {
            let rung = appended.clone();
            let on_append = move || rung.ring();
            let (service, lanes) =
                Lanes::new(events.clone(), self.database.clone(), config.sequencer.clone(), on_append);
            self.commands = Some(service);
            self.leases = config.redis.clone().map(Leases::new);
            let lanes = lanes.with_leases(self.leases.clone());
            self.supervisor.spawn(Stage::Write, "lanes", |stop| lanes.run(stop));
            if let Some(leases) = self.leases.clone() {
                self.supervisor.spawn(Stage::Write, "leases", |stop| async move {
                    leases.run(stop).await;
                    Ok::<(), String>(())
                });
            }
            self.start_forgetting_keys();
        }
        if config.parts.commands || config.parts.relay {
            let rung = copied.clone();
            let ingest = Ingest::new(events.clone(), self.database.clone(), appended.clone(), move || rung.ring());
            self.supervisor.spawn(Stage::Relay, "ingest", |stop| async move {
                ingest.run(stop).await;
                Ok::<(), String>(())
            });
        }
    }

    fn start_forgetting_keys(&mut self) {
        let log = self.log.clone();
        self.supervisor.spawn(Stage::Write, "idempotency keys", |stop| async move {
            forget_old_keys(log, stop).await;
            Ok::<(), String>(())
        });
    }

    /// Executes a command and waits until it is durable.
    ///
    /// # Errors
    /// [`CommandError`]: the command's own rules, or the log away.
    pub async fn execute(&self, command: Command) -> Result<Answer, CommandError> {
        self.request(Request::new(command)).await
    }

    /// Executes a command that comes with an idempotency key or a correlation id.
    ///
    /// # Errors
    /// As [`Wallex::execute`].
    pub async fn request(&self, request: Request) -> Result<Answer, CommandError> {
        match &self.commands {
            Some(commands) => commands.execute(request).await,
            None => Err(CommandError::Unavailable { maybe_done: false, retry_after: Duration::ZERO }),
        }
    }

    /// A wallet as of now, with its newest 100 events; `None` if there is none of that name. Read from the log, so it is
    /// never older than an answer already given.
    ///
    /// # Errors
    /// [`ViewError`] where the log is away or the wallet's history is wrong.
    pub async fn wallet(&self, id: &WalletId) -> Result<Option<WalletView>, ViewError> {
        match &self.store {
            Some(store) => read_wallet(store, id, TRAIL_MAX).await,
            None => read_wallet(&self.log, id, TRAIL_MAX).await,
        }
    }

    /// Runs a projection of one's own until the wallex is closed, as the consumer group of its name. A new one begins with
    /// the log's first event, also with what has left the topic; one that ran before goes on from its checkpoint.
    pub fn run_projection(&mut self, projection: impl Projection) {
        let name = projection.name().to_owned();
        if !self.projections.contains(&name) {
            self.projections.push(name.clone());
        }
        let options = RunnerOptions {
            instance_id: self.instance_id.clone(),
            parked_max: self.parked_max,
            ..RunnerOptions::default()
        };
        let runner =
            ProjectionRunner::new(projection, self.database.clone(), self.log.clone(), self.kafka.clone(), options);
        self.supervisor.spawn(Stage::Projection, name, |stop| runner.run(stop));
        if !std::mem::replace(&mut self.copies_dead_letters, true) {
            let (database, kafka) = (self.database.clone(), self.kafka.clone());
            let copying = |stop| copy_dead_letters(database, kafka, stop);
            self.supervisor.spawn(Stage::Projection, "copies of dead letters", copying);
        }
    }

    /// Waits until ledger, read model and every projection that was started here hold everything up to a position, such as
    /// an [`Answer::position`]. Ledger and read model may run in another process; if they run nowhere, this waits in vain.
    ///
    /// # Errors
    /// [`ProjectedError::TimedOut`] after `patience`.
    pub async fn projected(&self, position: Position, patience: Duration) -> Result<(), ProjectedError> {
        let started = Instant::now();
        let position = match &self.store {
            Some(_) => self.copied(position, started, patience).await?,
            None => position,
        };
        loop {
            let progress = lag::progress(&self.database).await?;
            // One that has not begun yet is not among the groups: it has not come this far either.
            let is_through =
                |name: &String| progress.groups.iter().any(|group| group.group == *name && group.position >= position);
            if self.projections.iter().all(is_through) {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited >= patience {
                return Err(ProjectedError::TimedOut { position, waited });
            }
            tokio::time::sleep(PROGRESS_POLL).await;
        }
    }

    /// Waits until the copy has come to a position of the event store; the copy's own end is then the answer.
    async fn copied(
        &self,
        position: Position,
        started: Instant,
        patience: Duration,
    ) -> Result<Position, ProjectedError> {
        while self.database.ingested().await?.is_none_or(|(commit, _)| commit < position) {
            let waited = started.elapsed();
            if waited >= patience {
                return Err(ProjectedError::TimedOut { position, waited });
            }
            tokio::time::sleep(PROGRESS_POLL).await;
        }
        Ok(self.log.head().await?)
    }

    /// Proves that log, outbox, topic, ledger and read model say the same, to the cent; and before them, that the log has what the
    /// event store has, where the events are in one.
    ///
    /// # Errors
    /// [`VerifyError`] where it could not be found out; a difference is no error but a [`Proof`] that is not `ok`.
    pub async fn verify(&self) -> Result<Proof, VerifyError> {
        let store = self.store.as_ref().map(CopiedLog::store);
        verify_copy(&self.database, store, Some(&self.kafka), &VerifyOptions::default(), &mut |_| {}).await
    }

    /// Serves HTTP on a listener until the wallex is closed, and leaves a note by which other commands find it.
    /// Answers with the address.
    ///
    /// # Errors
    /// Where the listener has no address, or the note cannot be written.
    pub fn serve_http(&mut self, listener: TcpListener, limits: Limits) -> Result<SocketAddr, OpenError> {
        let address = listener.local_addr().map_err(|error| OpenError::Listener(error.to_string()))?;
        let Some(commands) = self.commands.clone() else {
            return Err(OpenError::Listener("HTTP is served only where commands are taken".to_owned()));
        };
        let (database, kafka) = (self.database.clone(), Some(self.kafka.clone()));
        match self.store.clone() {
            Some(log) => {
                let event_store = Some(log.store().clone());
                let api = Api { commands, log, database, kafka, event_store, leases: self.leases.clone() };
                self.supervisor.spawn(Stage::Http, "HTTP server", |stop| http::serve(listener, api, limits, stop));
            }
            None => {
                let api = Api { commands, log: self.log.clone(), database, kafka, event_store: None, leases: None };
                self.supervisor.spawn(Stage::Http, "HTTP server", |stop| http::serve(listener, api, limits, stop));
            }
        }
        Ok(address)
    }

    /// Leaves a note in the data directory, by which other commands find this process; `url` is where it serves HTTP, or
    /// empty.
    ///
    /// # Errors
    /// [`OpenError::DataDir`] where the note cannot be written.
    pub fn announce(&self, url: &str) -> Result<(), OpenError> {
        match &self.foundation {
            Foundation::Own(platform) => Ok(platform.announce(url)?),
            Foundation::Attached(_) => Ok(()),
        }
    }

    /// The database, for statements of one's own.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The broker, for consumers of one's own.
    pub fn kafka(&self) -> &KafkaConfig {
        &self.kafka
    }

    /// The event store's address with its password masked, and what the wallets' streams there are called before the wallet's id, to
    /// show; `None` where the events are in the database, and in a process that was told of none.
    pub fn event_store(&self) -> Option<(&str, &str)> {
        self.store.as_ref().map(|store| (store.store().masked(), &**store.store().stream_prefix()))
    }

    /// Waits until a part ends though nobody asked it to: then this wallex is no longer whole and should be closed.
    pub async fn first_ended(&mut self) -> TaskEnded {
        self.supervisor.first_ended().await
    }

    /// Ends it in order: HTTP answers what it has taken, the write path ends, then the relay and the projections, then
    /// the database.
    pub async fn close(self) {
        // The sequencer ends by itself once nobody can ask it anything; it is to end because it is told to.
        let _commands = self.commands;
        self.supervisor.stop(STOP_PATIENCE).await;
        match self.foundation {
            Foundation::Own(platform) => platform.stop().await,
            Foundation::Attached(attachment) => attachment.close().await,
        }
    }
}
