//! PostgreSQL over TLS, tried for real: the right authority connects, and a wrong one or another host's certificate is
//! refused in one clear line that shows no password.

mod certificates;
mod process;

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use process::{room, wallex};
use wallex::embedded::{ManagedPostgres, ServerState};
use wallex::postgres::sqlx::{self, Connection, PgConnection};

const PASSWORD: &str = "hunter2-of-the-test";
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL at a port of `localhost` that lets nobody in without TLS and the password. Gone when this is.
struct Server {
    /// Ends the server when its standard input ends, which it does however this process ends.
    shell: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    /// A managed cluster, started once by the program itself, and then by hand with a port and certificates.
    async fn start(room: &Path) -> Server {
        let managed = ManagedPostgres::start(room).await.expect("PostgreSQL starts");
        let ServerState::Running { pid } = *managed.state().borrow() else { panic!("it runs") };
        let seen = Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output().expect("ps");
        let program =
            String::from_utf8(seen.stdout).expect("text").split_whitespace().next().expect("a path").to_owned();
        let mut connection = PgConnection::connect(managed.url()).await.expect("a connection");
        sqlx::query(sqlx::AssertSqlSafe(format!("ALTER ROLE wallex PASSWORD '{PASSWORD}'")))
            .execute(&mut connection)
            .await
            .expect("a password");
        connection.close().await.expect("an end");
        managed.stop().await;

        let folder = room.join("certificates");
        std::fs::create_dir(&folder).expect("a folder");
        certificates::authority(&folder, "ours");
        certificates::authority(&folder, "other");
        certificates::signed(&folder, "server", "ours", "localhost");
        let data = room.join("postgres");
        std::fs::write(data.join("pg_hba.conf"), "hostssl all all all scram-sha-256\n").expect("who may");
        let owner = data.metadata().expect("an owner");
        for name in ["server.pem", "server.key"] {
            let path = data.join(name);
            std::fs::copy(folder.join(name), &path).expect("a copy");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("an owner");
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
        let script = r#""$0" "$@" >/dev/null 2>&1 & read -r _; kill -s INT $!; wait"#;
        let settings = [
            "listen_addresses=localhost".to_owned(),
            format!("port={port}"),
            "unix_socket_directories=".to_owned(),
            "ssl=on".to_owned(),
            "ssl_cert_file=server.pem".to_owned(),
            "ssl_key_file=server.key".to_owned(),
        ];
        let mut shell = Command::new("sh");
        shell.args(["-c", script, &program]).arg("-D").arg(&data).current_dir("/").stdin(Stdio::piped());
        shell.args(settings.iter().flat_map(|setting| ["-c", setting]));
        if nix::unistd::geteuid().is_root() {
            shell.uid(owner.uid()).gid(owner.gid());
        }
        let shell = shell.spawn().expect("a shell");
        let server = Server { shell, port, folder };
        let started = Instant::now();
        while TcpStream::connect(("localhost", port)).is_err() {
            assert!(started.elapsed() < START_PATIENCE, "PostgreSQL does not listen at port {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Its URL, with the name of a host and how far it is to be trusted.
    fn url(&self, host: &str, mode: &str, authority: &str) -> String {
        let certificate = self.folder.join(format!("{authority}.pem"));
        format!("postgres://wallex@{host}:{}/wallex?sslmode={mode}&sslrootcert={}", self.port, certificate.display())
    }

    /// Brings the schema up to date, with the password from the environment.
    fn migrate(&self, url: &str) -> Output {
        let data_dir = self.folder.join("data");
        let mut command = wallex(&["migrate", "--database-url", url, "--data-dir", data_dir.to_str().expect("UTF-8")]);
        command.env("PGPASSWORD", PASSWORD).output().expect("wallex runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[tokio::test]
async fn the_right_authority_connects_and_a_wrong_one_or_another_host_is_refused_in_one_line() {
    let room = room();
    let server = Server::start(room.path()).await;

    let right = server.migrate(&server.url("localhost", "verify-full", "ours"));
    assert!(right.status.success(), "{}", String::from_utf8_lossy(&right.stderr));

    let refused = |url: String, words: &[&str]| {
        let output = server.migrate(&url);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
        assert!(!said.contains(PASSWORD), "{said}");
    };
    refused(server.url("localhost", "verify-full", "other"), &["cannot connect", "UnknownIssuer", "sslrootcert"]);
    refused(server.url("127.0.0.1", "verify-full", "ours"), &["cannot connect", "127.0.0.1", "not valid for"]);
    refused(server.url("localhost", "disable", "ours"), &["cannot connect", "no encryption"]);
    refused(server.url("localhost", "verify-full", "missing"), &["cannot connect", "missing.pem"]);
    let with_password =
        server.url("localhost", "verify-full", "other").replace("wallex@", &format!("wallex:{PASSWORD}@"));
    refused(with_password, &["wallex:***@"]);
}
