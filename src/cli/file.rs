//! `wallex.toml`: defaults for options, under the options' own names. A flag and the environment win over it.
//!
//! ```toml
//! database-url = "postgres://wallex@db.example/wallex"
//! listen = "127.0.0.1:3000"
//!
//! [kafka]
//! security.protocol = "sasl_ssl"
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use thiserror::Error;

const DEFAULT_FILE: &str = "wallex.toml";

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not TOML: {reason}", path.display())]
    Toml { path: PathBuf, reason: String },
    #[error("{} sets {key}, which is no option of wallex; options are written as on the command line, without the dashes", path.display())]
    Unknown { path: PathBuf, key: String },
    #[error("{} sets kafka-config, which is for the command line; write its lines in a table of their own, [kafka]", .0.display())]
    KafkaConfig(PathBuf),
    #[error("{} sets {key} to something that is no text, number, yes or no, or list of these", path.display())]
    Value { path: PathBuf, key: String },
}

/// The command with the file's values as its options' defaults, and the Kafka properties of its table `kafka`.
pub(super) fn with_defaults(
    command: Command,
    arguments: &[OsString],
) -> Result<(Command, BTreeMap<String, String>), FileError> {
    let named = named_file(arguments);
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok((command, BTreeMap::new()));
        }
        Err(source) => return Err(FileError::Read { path, source }),
    };
    apply(command, &text, &path)
}

/// The file that the arguments or the environment name. The file decides defaults, so it must be known before the
/// arguments are parsed in earnest.
fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("WALLEX_CONFIG").map(PathBuf::from)
}

fn apply(mut command: Command, text: &str, path: &Path) -> Result<(Command, BTreeMap<String, String>), FileError> {
    // A parser's message may quote the line, and the line may hold a password.
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| FileError::Toml {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })?;
    let mut kafka = BTreeMap::new();
    for (key, value) in table {
        if key == "kafka" {
            properties(&value, String::new(), &mut kafka)
                .map_err(|key| FileError::Value { path: path.to_owned(), key })?;
            continue;
        }
        if key == "kafka-config" {
            return Err(FileError::KafkaConfig(path.to_owned()));
        }
        let values = texts(&value).ok_or_else(|| FileError::Value { path: path.to_owned(), key: key.clone() })?;
        let mut known = false;
        command = set_default(command, &key, &values, &mut known);
        if !known {
            return Err(FileError::Unknown { path: path.to_owned(), key });
        }
    }
    Ok((command, kafka))
}

/// Properties by their whole names, whether these are written with dots, as tables, or quoted. The error is the name of one
/// that has no value of its own.
fn properties(value: &toml::Value, name: String, found: &mut BTreeMap<String, String>) -> Result<(), String> {
    if let toml::Value::Table(table) = value {
        for (part, value) in table {
            let name = if name.is_empty() { part.clone() } else { format!("{name}.{part}") };
            properties(value, name, found)?;
        }
        return Ok(());
    }
    match texts(value).as_deref() {
        Some([text]) if !name.is_empty() => found.insert(name, text.clone()),
        _ => return Err(format!("kafka.{name}")),
    };
    Ok(())
}

fn set_default(mut command: Command, key: &str, values: &[String], known: &mut bool) -> Command {
    let id =
        command.get_arguments().find(|option| option.get_long() == Some(key)).map(|option| option.get_id().clone());
    if let Some(id) = id.filter(|id| id != "config" && id != "help") {
        *known = true;
        command = command.mut_arg(id, |option| option.default_values(values.to_vec()));
    }
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for verb in verbs {
        command = command.mut_subcommand(verb, |verb| set_default(verb, key, values, known));
    }
    command
}

fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(yes) => Some(vec![yes.to_string()]),
        toml::Value::Array(values) => {
            values.iter().map(texts).collect::<Option<Vec<_>>>().map(|nested| nested.into_iter().flatten().collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn command() -> Command {
        Command::new("wallex")
            .arg(Arg::new("data_dir").long("data-dir").global(true))
            .subcommand(Command::new("serve").arg(Arg::new("listen").long("listen").default_value("127.0.0.1:3000")))
    }

    fn listen(file: &str, arguments: &[&str]) -> String {
        let (command, _) = apply(command(), file, Path::new("wallex.toml")).expect("a good file");
        let matches = command.try_get_matches_from(arguments).expect("good arguments");
        let (_, serve) = matches.subcommand().expect("a verb");
        serve.get_one::<String>("listen").expect("a default").clone()
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        assert_eq!(listen("", &["wallex", "serve"]), "127.0.0.1:3000");
        assert_eq!(listen("listen = \"127.0.0.1:1\"", &["wallex", "serve"]), "127.0.0.1:1");
        assert_eq!(listen("listen = \"127.0.0.1:1\"", &["wallex", "serve", "--listen", "127.0.0.1:2"]), "127.0.0.1:2");
    }

    #[test]
    fn kafka_properties_may_be_written_with_dots_or_quoted() {
        let file = "[kafka]\nsasl.username = \"wallex\"\n\"ssl.ca.location\" = \"/ca.pem\"\nlinger.ms = 5";
        let (_, kafka) = apply(command(), file, Path::new("wallex.toml")).expect("a good file");
        let expected = [("linger.ms", "5"), ("sasl.username", "wallex"), ("ssl.ca.location", "/ca.pem")];
        assert_eq!(kafka, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        let wrong = apply(command(), "[kafka]\nsasl.password = [\"secret\", \"b\"]", Path::new("wallex.toml"));
        let wrong = wrong.expect_err("a list").to_string();
        assert!(wrong.contains("kafka.sasl.password") && !wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn an_unknown_option_is_named_and_a_line_is_never_quoted() {
        let unknown = apply(command(), "lisen = 1", Path::new("wallex.toml")).expect_err("no such option");
        assert!(unknown.to_string().contains("sets lisen"));
        let broken = apply(command(), "database-url = secret", Path::new("wallex.toml")).expect_err("no TOML");
        assert!(!broken.to_string().contains("secret"), "{broken}");
    }
}
