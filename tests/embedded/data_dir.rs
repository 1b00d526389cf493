use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use chrono::Utc;
use wallex::embedded::{DataDir, DataDirError, ServeInfo};

use crate::room::Room;

fn info() -> ServeInfo {
    ServeInfo {
        pid: 4711,
        url: "http://127.0.0.1:3999".to_owned(),
        database_url: "postgres://wallex:secret@localhost/wallex".to_owned(),
        event_store: None,
        event_store_prefix: None,
        kafka_brokers: "127.0.0.1:9092".to_owned(),
        embedded_postgres: true,
        embedded_kafka: false,
        started_at: Utc::now(),
        version: "0.1.0".to_owned(),
    }
}

#[test]
fn a_running_serve_is_found_by_its_note_and_gone_when_it_stops() {
    let room = Room::new();
    let path = room.data_dir();
    assert!(DataDir::find_running(&path).unwrap().is_none(), "nothing there yet");
    let held = DataDir::acquire(&path).unwrap();
    assert!(DataDir::find_running(&path).unwrap().is_none(), "it is only starting");
    held.write_serve_info(&info()).unwrap();
    let found = DataDir::find_running(&path).unwrap().expect("it runs");
    assert_eq!((found.pid, found.url.as_str(), found.embedded_postgres), (4711, "http://127.0.0.1:3999", true));
    drop(held);
    assert!(!path.join("serve.json").exists());
    assert!(DataDir::find_running(&path).unwrap().is_none());
}

#[test]
fn the_note_has_camel_case_names_and_is_for_its_owner_only() {
    let room = Room::new();
    let held = DataDir::acquire(&room.data_dir()).unwrap();
    held.write_serve_info(&info()).unwrap();
    held.write_serve_info(&info()).unwrap();
    let note = room.data_dir().join("serve.json");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    let mut names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected =
        "databaseUrl embeddedKafka embeddedPostgres eventStore eventStorePrefix kafkaBrokers pid startedAt url version";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    assert_eq!(fs::metadata(&note).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_directory_in_use_names_who_has_it() {
    let room = Room::new();
    let held = DataDir::acquire(&room.data_dir()).unwrap();
    let starting = DataDir::acquire(&room.data_dir()).unwrap_err().to_string();
    assert!(starting.contains(&format!("pid {}", std::process::id())), "{starting}");
    held.write_serve_info(&info()).unwrap();
    let error = DataDir::acquire(&room.data_dir()).unwrap_err();
    assert!(matches!(error, DataDirError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains("pid 4711") && text.contains("http://127.0.0.1:3999"), "{text}");
    assert!(text.contains("--data-dir") && !text.contains('\n'), "{text}");
    drop(held);
    DataDir::acquire(&room.data_dir()).unwrap();
}

#[test]
fn the_note_of_a_killed_serve_is_recognised_and_removed() {
    let room = Room::new();
    let held = DataDir::acquire(&room.data_dir()).unwrap();
    held.write_serve_info(&info()).unwrap();
    let note = room.data_dir().join("serve.json");
    let text = fs::read(&note).unwrap();
    drop(held);
    // As a kill would leave it: the lock is free, the note is there.
    fs::write(&note, &text).unwrap();
    assert!(DataDir::find_running(&room.data_dir()).unwrap().is_none());
    assert!(!note.exists());
    fs::write(&note, &text).unwrap();
    let held = DataDir::acquire(&room.data_dir()).unwrap();
    assert!(DataDir::find_running(&room.data_dir()).unwrap().is_none(), "the new serve has said nothing yet");
    drop(held);
}

#[test]
fn a_garbled_note_is_an_error_that_names_the_file() {
    let room = Room::new();
    let _held = DataDir::acquire(&room.data_dir()).unwrap();
    fs::write(room.data_dir().join("serve.json"), "{").unwrap();
    let error = DataDir::find_running(&room.data_dir()).unwrap_err().to_string();
    assert!(error.contains("serve.json"), "{error}");
}

#[test]
fn looking_for_a_running_serve_does_not_keep_one_from_starting() {
    let room = Room::new();
    let path = room.data_dir();
    drop(DataDir::acquire(&path).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|_| drop(DataDir::find_running(&path).unwrap())));
        }
        for _ in 0..20 {
            drop(DataDir::acquire(&path).unwrap());
        }
    });
}

#[test]
fn a_path_that_cannot_be_a_directory_says_what_to_do() {
    let room = Room::new();
    let file = room.path().join("file");
    fs::write(&file, "").unwrap();
    // Also root is refused at these, unlike at a directory without write permission.
    for path in [file.join("below"), file.clone(), Path::new("/proc/wallex").to_owned()] {
        let error = DataDir::acquire(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("--data-dir") && !error.contains('\n'), "{error}");
        assert!(DataDir::find_running(&path).unwrap().is_none());
    }
}

#[test]
fn a_new_directory_is_closed_to_others_but_root_lets_its_database_user_pass() {
    let room = Room::new();
    let path = room.path().join("a/b");
    let _held = DataDir::acquire(&path).unwrap();
    let expected = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
    for directory in [path.as_path(), path.parent().unwrap()] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, expected);
    }
}
