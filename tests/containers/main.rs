//! `docker-compose.yml` and the `Dockerfile` keep what they and the README promise. No container engine is needed: the files
//! themselves are read, and what is a script in them is run.

mod compose;
mod image;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// What is wrong with a file, a line for people each; empty where nothing is.
type Faults = Vec<String>;

fn in_repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The file keeps the rule. And the rule can be broken: each change (from, to) to the file has to be noticed.
fn assert_rule(file: &str, rule: fn(&str) -> Faults, changes: &[(&str, &str)]) {
    let text = std::fs::read_to_string(in_repository(file)).expect(file);
    assert_eq!(rule(&text), Faults::new(), "{file}");
    for (from, to) in changes {
        assert!(text.contains(from), "{file} has no {from:?} to change");
        assert!(
            !rule(&text.replacen(from, to, 1)).is_empty(),
            "{from:?} was made {to:?} in {file}, and nobody noticed"
        );
    }
}

/// The variables that `wallex serve` knows.
fn known_variables() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_wallex")).args(["serve", "--help"]).output().expect("wallex runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let name = |after: &str| after.trim_start().split(['=', ']']).next().unwrap_or_default().to_owned();
    let known: BTreeSet<_> = help.split("[env:").skip(1).map(name).collect();
    assert!(known.contains("WALLEX_LISTEN"), "the help says which variables there are: {help}");
    known
}

/// Why an image would be another one tomorrow, if it would.
fn unpinned(image: &str) -> Option<String> {
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    match tag {
        None => Some(format!("{image} has no tag")),
        Some(tag) if tag.contains("latest") => Some(format!("{image} is another one tomorrow")),
        Some(_) => None,
    }
}
