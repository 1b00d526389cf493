//! A disk without room: said in one line at the start; under a running service a 503, and nothing lost or doubled once there is
//! room again.

mod disk;
#[path = "../crash/load.rs"]
mod load;
#[path = "../process/mod.rs"]
mod process;

use std::path::Path;
use std::process::Output;

use disk::{Ballast, on_a_disk_of};
use load::{Callers, Load};
use nix::sys::signal::Signal;
use process::{Serve, run};

/// A new cluster, and as much of PostgreSQL's own log as it keeps.
const ROOMY_MIB: u64 = 400;

fn serve_on(data_dir: &Path) -> Output {
    run(&["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir", data_dir.to_str().expect("UTF-8")])
}

/// It could not run, and says in one line what to do about it.
fn assert_asks_for_room(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains("free some"), "{said}");
}

#[test]
fn a_disk_too_small_for_a_database_is_named_at_the_start() {
    on_a_disk_of(40, "a_disk_too_small_for_a_database_is_named_at_the_start", |disk| {
        let data_dir = disk.join("data");
        assert_asks_for_room(&serve_on(&data_dir));
        let ballast = Ballast::leaving(0, disk);
        assert_asks_for_room(&serve_on(&data_dir));
        assert_asks_for_room(&serve_on(&disk.join("new")));
        drop(ballast);
    });
}

#[test]
fn slow_a_disk_that_fills_under_a_service_loses_and_doubles_nothing() {
    on_a_disk_of(ROOMY_MIB, "slow_a_disk_that_fills_under_a_service_loses_and_doubles_nothing", |disk| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(a_disk_that_fills(disk));
    });
}

async fn a_disk_that_fills(disk: &Path) {
    let data_dir = disk.join("data");
    let serve = Serve::start(&data_dir);
    let mut load = Load::start(7, Callers::Patient, vec![serve.info.url.clone()]).await;
    for round in 0..2 {
        load.until_acknowledged(50).await;
        let ballast = Ballast::leaving(4, disk);
        load.until_refused().await;
        println!("round {round}: the disk is full, and callers are told to come again");
        drop(ballast);
    }
    load.until_acknowledged(100).await;
    load.end().await;
    load.prove(&serve).await;
    assert_eq!(serve.stop(Signal::SIGTERM), 143);

    // And no start on a full disk harms what is there.
    let ballast = Ballast::leaving(0, disk);
    assert_asks_for_room(&serve_on(&data_dir));
    drop(ballast);
    let serve = Serve::start(&data_dir);
    let verified = run(&["verify", "--data-dir", serve.data_dir()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
