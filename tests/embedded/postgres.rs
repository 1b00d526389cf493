use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use sqlx::{Connection, Executor, PgConnection};
use wallex::embedded::{DataDir, ManagedPostgres, PostgresError, PostgresSearch, ServerState};

use crate::room::{Room, eventually, is_alive, process};

const CHILD_DATA_DIR: &str = "WALLEX_TEST_CHILD_DATA_DIR";
const PATIENCE: Duration = Duration::from_secs(30);

fn pid(postgres: &ManagedPostgres) -> u32 {
    match *postgres.state().borrow() {
        ServerState::Running { pid } => pid,
        other => panic!("not running: {other:?}"),
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

async fn write_row(url: &str) {
    let mut connection = connect(url).await;
    connection.execute("CREATE TABLE IF NOT EXISTS row_of_test (number bigint)").await.expect("a table");
    connection.execute("INSERT INTO row_of_test VALUES (1)").await.expect("a row");
}

async fn count_rows(url: &str) -> i64 {
    let mut connection = connect(url).await;
    sqlx::query_scalar("SELECT count(*) FROM row_of_test").fetch_one(&mut connection).await.expect("a count")
}

async fn setting(url: &str, name: &str) -> String {
    let mut connection = connect(url).await;
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut connection).await.expect("a setting")
}

/// A data directory with a cluster in it, stopped. Answers with the server's binary too.
async fn stopped_cluster(room: &Room) -> (DataDir, PathBuf) {
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    write_row(postgres.url()).await;
    let binary = program_of(pid(&postgres));
    postgres.stop().await;
    (data_dir, binary)
}

/// The file that the process runs.
fn program_of(pid: u32) -> PathBuf {
    if cfg!(target_os = "linux") {
        return fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    }
    let output = Command::new("ps").args(["-ww", "-o", "comm=", "-p", &pid.to_string()]).output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A program run as the one who owns the cluster, outside of any supervision.
fn as_owner_of_cluster(data_dir: &Path, program: &Path) -> Command {
    let owner = fs::metadata(data_dir.join("postgres")).unwrap();
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
}

/// Another process that acquires the data directory and runs PostgreSQL until it is killed. Answers with its postmaster.
fn wallex_process(data_dir: &Path) -> (Child, u32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "postgres::child_process_of_other_tests", "--nocapture"])
        .env(CHILD_DATA_DIR, data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let postmaster = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("postmaster=").and_then(|(_, pid)| pid.trim().parse().ok()))
        .expect("the child says its postmaster");
    (child, postmaster)
}

fn kill_hard(pid: u32) {
    kill(process(pid), Signal::SIGKILL).unwrap();
}

#[tokio::test]
#[ignore = "no test by itself: others start it as a process of its own and kill it"]
async fn child_process_of_other_tests() {
    let Some(path) = std::env::var_os(CHILD_DATA_DIR) else { return };
    let data_dir = DataDir::acquire(Path::new(&path)).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    write_row(postgres.url()).await;
    println!("postmaster={}", pid(&postgres));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn data_is_kept_from_one_start_to_the_next() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    let first_url = postgres.url().to_owned();
    write_row(&first_url).await;
    let server = pid(&postgres);
    postgres.stop().await;
    assert!(!is_alive(server));
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    assert_eq!(postgres.url(), first_url);
    assert_eq!(count_rows(postgres.url()).await, 1);
    // Not stopped but dropped: that stops it as well.
    let server = pid(&postgres);
    drop(postgres);
    assert!(!is_alive(server));
}

#[tokio::test]
async fn what_the_guarantees_stand_on_is_switched_on() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    for name in ["fsync", "synchronous_commit", "full_page_writes", "data_checksums"] {
        assert_eq!(setting(postgres.url(), name).await, "on", "{name}");
    }
    assert_eq!(setting(postgres.url(), "listen_addresses").await, "");
    assert_eq!(setting(postgres.url(), "server_encoding").await, "UTF8");
    assert_eq!(setting(postgres.url(), "TimeZone").await, "UTC");
    postgres.stop().await;
}

#[tokio::test]
async fn psql_takes_the_same_url() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    let output = Command::new(program_of(pid(&postgres)).with_file_name("psql"))
        .args(["-XAtc", "SELECT current_user || '@' || current_database()", postgres.url()])
        .env("PGPORT", "1")
        .env("PGSSLMODE", "require")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "wallex@wallex", "{output:?}");
    postgres.stop().await;
}

#[tokio::test]
async fn a_killed_process_leaves_no_server_behind_and_loses_nothing() {
    let room = Room::new();
    let (mut child, postmaster) = wallex_process(&room.data_dir());
    child.kill().unwrap();
    child.wait().unwrap();
    // Elsewhere it may be left, and the next start stops it.
    if cfg!(target_os = "linux") {
        assert!(eventually(Duration::from_secs(5), || !is_alive(postmaster)), "the postmaster still runs");
    }
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    assert!(!is_alive(postmaster), "two servers run on one cluster");
    assert_eq!(count_rows(postgres.url()).await, 1);
    postgres.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_start_right_after_process_and_server_were_killed_succeeds() {
    let room = Room::new();
    let (mut child, postmaster) = wallex_process(&room.data_dir());
    // A server process that computes notices only at its end that its postmaster is gone, and until then no new server
    // can use the cluster.
    let socket = room.data_dir().join("socket").display().to_string().replace('/', "%2F");
    let mut busy = connect(&format!("postgres://wallex@localhost:5432/wallex?host={socket}")).await;
    let server_process: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut busy).await.expect("a process id");
    let computing = tokio::spawn(async move {
        busy.execute("SELECT count(*) FROM generate_series(1, 5000000) AS number WHERE number % 7 = 3").await
    });
    let processor_time = || {
        let stat = fs::read_to_string(format!("/proc/{server_process}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse::<u64>().unwrap()
    };
    let before = processor_time();
    assert!(eventually(PATIENCE, || processor_time() > before + 10), "it computes");
    kill_hard(postmaster);
    child.kill().unwrap();
    child.wait().unwrap();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    assert_eq!(count_rows(postgres.url()).await, 1);
    let log = fs::read_to_string(room.data_dir().join("postgres.log")).unwrap();
    assert!(log.contains("still in use"), "it was not busy any more, so this showed nothing");
    drop(computing);
    postgres.stop().await;
}

#[tokio::test]
async fn a_killed_server_comes_back_under_the_same_url() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    write_row(postgres.url()).await;
    let mut state = postgres.state();
    for _ in 0..3 {
        let killed = pid(&postgres);
        // With a connection open, whose server process has to end before a new server can start.
        let connection = connect(postgres.url()).await;
        kill_hard(killed);
        let running = |state: &ServerState| matches!(state, ServerState::Running { pid } if *pid != killed);
        tokio::time::timeout(PATIENCE, state.wait_for(running)).await.expect("it runs again").unwrap();
        assert_eq!(count_rows(postgres.url()).await, 1);
        drop(connection);
    }
    postgres.stop().await;
}

#[tokio::test]
async fn stopping_while_it_restarts_ends_it_for_good() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    let cluster = room.data_dir().join("postgres");
    kill_hard(pid(&postgres));
    tokio::time::timeout(PATIENCE, postgres.stop()).await.expect("it stops");
    let lock_file = fs::read_to_string(cluster.join("postmaster.pid")).unwrap_or_default();
    let left = lock_file.lines().next().and_then(|line| line.parse().ok());
    assert!(!left.is_some_and(is_alive), "{lock_file}");
}

#[tokio::test]
async fn a_server_left_by_a_predecessor_is_stopped_first() {
    let room = Room::new();
    let (data_dir, binary) = stopped_cluster(&room).await;
    let cluster = data_dir.path().join("postgres");
    let mut lingering = as_owner_of_cluster(data_dir.path(), &binary)
        .arg("-D")
        .arg(&cluster)
        .args(["-c", "listen_addresses=", "-k"])
        .arg(data_dir.path().join("socket"))
        .spawn()
        .unwrap();
    let ready = || fs::read_to_string(cluster.join("postmaster.pid")).is_ok_and(|text| text.contains("ready"));
    assert!(eventually(PATIENCE, ready), "the lingering server starts");
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    let ended = lingering.try_wait().unwrap().expect("it was stopped");
    assert!(ended.success(), "in an orderly way");
    assert_eq!(count_rows(postgres.url()).await, 1);
    postgres.stop().await;
}

#[tokio::test]
async fn a_lock_file_whose_process_id_now_belongs_to_another_process_is_no_obstacle() {
    let room = Room::new();
    let (data_dir, _) = stopped_cluster(&room).await;
    let mut bystander = as_owner_of_cluster(data_dir.path(), Path::new("sleep")).arg("600").spawn().unwrap();
    let cluster = data_dir.path().join("postgres");
    let stale = format!("{}\n{}\n1700000000\n5432\n/nowhere\n\n", bystander.id(), cluster.display());
    fs::write(cluster.join("postmaster.pid"), stale).unwrap();
    let socket_lock = data_dir.path().join("socket/.s.PGSQL.5432.lock");
    fs::write(&socket_lock, format!("{}\n", bystander.id())).unwrap();
    let owner = fs::metadata(&cluster).unwrap();
    for file in [cluster.join("postmaster.pid"), socket_lock] {
        std::os::unix::fs::chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    assert_eq!(count_rows(postgres.url()).await, 1);
    postgres.stop().await;
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was left alone");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works_all_the_same() {
    let room = Room::new();
    let path = room.path().join("x".repeat(60)).join("y".repeat(60)).join("geld und \u{e4}hnliches, 'hier'");
    let data_dir = DataDir::acquire(&path).unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    write_row(postgres.url()).await;
    let url = postgres.url().to_owned();
    postgres.stop().await;
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    assert_eq!(postgres.url(), url);
    assert_eq!(count_rows(postgres.url()).await, 1);
    postgres.stop().await;
    let encoded = url.split_once("?host=").unwrap().1.split('&').next().unwrap().replace("%2F", "/");
    fs::remove_dir_all(&encoded).unwrap();
}

#[tokio::test]
async fn an_unfinished_cluster_of_a_killed_start_is_made_anew() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let unfinished = data_dir.path().join("postgres.new");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("PG_VERSION"), "15\n").unwrap();
    let postgres = ManagedPostgres::start(data_dir.path()).await.unwrap();
    write_row(postgres.url()).await;
    assert!(!unfinished.exists());
    postgres.stop().await;
}

#[tokio::test]
async fn a_directory_that_root_cannot_lend_to_the_server_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let room = Room::new();
    let closed = room.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let data_dir = DataDir::acquire(&closed.join("data")).unwrap();
    let close = |mode| fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    close(0o700);
    let check = |error: PostgresError| {
        let text = error.to_string();
        assert!(text.contains("postgres") && text.contains(&format!("chmod o+x {}", closed.display())), "{text}");
    };
    check(ManagedPostgres::start(data_dir.path()).await.unwrap_err());
    close(0o711);
    ManagedPostgres::start(data_dir.path()).await.unwrap().stop().await;
    close(0o700);
    check(ManagedPostgres::start(data_dir.path()).await.unwrap_err());
}

#[tokio::test]
async fn without_binaries_one_line_says_what_to_install() {
    let room = Room::new();
    let data_dir = DataDir::acquire(&room.data_dir()).unwrap();
    let search = PostgresSearch::Only(vec![room.path().join("no-such-place")]);
    let error = ManagedPostgres::start_with(data_dir.path(), search).await.unwrap_err();
    assert!(matches!(error, PostgresError::NotInstalled { .. }), "{error}");
    assert!(!data_dir.path().join("postgres").exists());
}

#[tokio::test]
async fn a_start_that_fails_says_what_postgres_said() {
    let room = Room::new();
    let (data_dir, _) = stopped_cluster(&room).await;
    fs::remove_file(data_dir.path().join("postgres/global/pg_control")).unwrap();
    let error = ManagedPostgres::start(data_dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("pg_control") || error.contains("control file"), "{error}");
    assert!(error.contains("postgres.log") && !error.contains('\n'), "{error}");
}
