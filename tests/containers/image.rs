//! The `Dockerfile`, and `.dockerignore` beside it.

use std::collections::BTreeSet;

use crate::{Faults, assert_rule, in_repository, known_variables, unpinned};

const FILE: &str = "Dockerfile";

/// The instructions in their order: `("FROM", "rust:1.95 AS build")`, continued lines made one.
fn instructions(file: &str) -> Vec<(String, String)> {
    let lines = file.lines().filter(|line| !line.starts_with('#')).map(str::trim);
    let text = lines.collect::<Vec<_>>().join("\n").replace("\\\n", "");
    let parts = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.to_owned()));
    text.lines().filter_map(parts).collect()
}

/// What follows this word, in each instruction that begins with it.
fn all(file: &str, word: &str) -> Vec<String> {
    instructions(file).into_iter().filter(|(first, _)| first == word).map(|(_, rest)| rest).collect()
}

fn unless(is_well: bool, fault: &str) -> Faults {
    if is_well { vec![] } else { vec![fault.to_owned()] }
}

/// `1.95` as numbers, so that 1.100 is more than 1.95.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap_or_default()).collect()
}

fn cargo_toml() -> toml::Table {
    std::fs::read_to_string(in_repository("Cargo.toml")).expect("Cargo.toml").parse().expect("TOML")
}

#[test]
fn it_is_built_from_the_lock_file() {
    let rule = |file: &str| {
        let builds: Vec<_> = all(file, "RUN").into_iter().filter(|run| run.contains("cargo build")).collect();
        let is_locked = |build: &String| build.contains(" --locked") && build.contains(" --release");
        unless(!builds.is_empty() && builds.iter().all(is_locked), "cargo build lacks --locked or --release")
    };
    assert_rule(FILE, rule, &[("--release --locked", "--release"), ("cargo build", "cargo install")]);
}

#[test]
fn its_rust_is_new_enough_and_its_images_are_pinned_and_of_one_debian() {
    let rule = |file: &str| {
        let wanted = cargo_toml()["package"]["rust-version"].as_str().expect("a version").to_owned();
        let images: Vec<_> =
            all(file, "FROM").iter().map(|from| from.split(' ').next().unwrap_or("").to_owned()).collect();
        let rust = images[0].strip_prefix("rust:").unwrap_or_default();
        let mut faults: Faults = images.iter().filter_map(|image| unpinned(image)).collect();
        let have = rust.split('-').next().unwrap_or_default();
        faults.extend(unless(version(have) >= version(&wanted), "Rust is older than Cargo.toml asks for"));
        // What was linked with the C library of one Debian does not run on an older one.
        let debian = rust.rsplit('-').next().unwrap_or_default();
        let is_the_same = images.iter().all(|image| image.split([':', '-']).any(|part| part == debian));
        faults.extend(unless(is_the_same, "it is built on another Debian than it runs on"));
        faults
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("rust:1.95-", "rust:1.9-"),
            ("rust:1.95-slim-bookworm", "rust:1.95-slim-trixie"),
            ("debian:bookworm-slim", "debian"),
            ("rust:1.95-slim-bookworm", "rust:latest"),
        ],
    );
}

#[test]
fn it_runs_as_a_user_who_is_not_root_and_says_whether_it_is_healthy() {
    let rule = |file: &str| {
        let last_stage = &file[file.rfind("\nFROM").expect("a stage")..];
        let user = all(last_stage, "USER").pop().unwrap_or_default();
        let is_made = all(last_stage, "RUN").iter().any(|run| run.contains("useradd") && run.ends_with(&user));
        let is_asked = all(last_stage, "HEALTHCHECK").iter().any(|check| check.contains("CMD wallex status"));
        let mut faults =
            unless(!["", "root", "0"].contains(&&user[..]) && is_made, "it runs as root, or as nobody it knows");
        faults.extend(unless(is_asked, "it does not say whether it is healthy"));
        faults
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("USER wallex", "USER root"),
            ("USER wallex\n", ""),
            ("VOLUME", "USER 0\nVOLUME"),
            ("USER wallex", "USER nobody-we-know"),
            ("CMD wallex status", "CMD true"),
        ],
    );
}

#[test]
fn it_tells_wallex_only_what_it_knows() {
    let rule = |file: &str| {
        let known = known_variables();
        let set = all(file, "ENV");
        let names = set.iter().flat_map(|line| line.split(' ')).filter_map(|word| word.split_once('='));
        names.filter(|(name, _)| !known.contains(*name)).map(|(name, _)| format!("{name} is not known")).collect()
    };
    assert_rule(FILE, rule, &[("WALLEX_DATA_DIR", "WALLEX_DATA_DIRECTORY")]);
}

/// What a build reads, as Cargo.toml and the sources name it.
fn needed_to_build() -> BTreeSet<String> {
    let cargo = cargo_toml();
    let mut needed = BTreeSet::from(["Cargo.toml", "Cargo.lock", "src", "migrations"].map(str::to_owned));
    // Cargo looks for a target that has an entry, whether or not it is to be built.
    for (target, folder) in [("bench", "benches"), ("example", "examples"), ("test", "tests")] {
        if cargo.contains_key(target) {
            needed.insert(folder.to_owned());
        }
    }
    needed
}

#[test]
fn the_builder_is_given_what_it_needs_and_nothing_that_is_not_named() {
    let rule = |file: &str| {
        let lines: Vec<_> = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let given: BTreeSet<_> = lines.iter().filter_map(|line| line.strip_prefix('!')).map(str::to_owned).collect();
        let mut faults = unless(lines[0] == "*" && given.len() == lines.len() - 1, "it does not begin with nothing");
        faults.extend(needed_to_build().difference(&given).map(|path| format!("{path} is needed and not given")));
        let strange =
            given.iter().filter(|path| path.starts_with('.') || *path == "target" || !in_repository(path).exists());
        faults.extend(strange.map(|path| format!("{path} is no source")));
        faults
    };
    assert_rule(
        ".dockerignore",
        rule,
        &[
            ("*\n", ""),
            ("!src", "src"),
            ("!migrations\n", ""),
            ("!benches\n", ""),
            ("!tests", "!target"),
            ("!tests", "!.git"),
            ("!tests", "!test"),
        ],
    );
}
