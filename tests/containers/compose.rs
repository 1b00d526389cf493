//! `docker-compose.yml`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use wallex::kafka::{DLQ_PARTITIONS, DLQ_RETENTION, DLQ_TOPIC, EVENTS_PARTITIONS, EVENTS_RETENTION, EVENTS_TOPIC};
use yaml_rust2::{Yaml, YamlLoader};

use crate::{Faults, assert_rule, known_variables, unpinned};

const FILE: &str = "docker-compose.yml";

fn parse(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).expect("YAML").remove(0)
}

/// The fields of a mapping; none where there is no mapping.
fn fields(yaml: &Yaml) -> BTreeMap<&str, &Yaml> {
    yaml.as_hash().into_iter().flatten().map(|(name, value)| (name.as_str().expect("a name"), value)).collect()
}

/// A list of texts; empty where there is no list.
fn texts(yaml: &Yaml) -> Vec<&str> {
    yaml.as_vec().into_iter().flatten().map(|text| text.as_str().expect("text, in quotes")).collect()
}

/// The text of a field; empty where there is none.
fn text<'a>(service: &'a Yaml, field: &str) -> &'a str {
    service[field].as_str().unwrap_or_default()
}

/// What a service is set up with; what is no text is empty.
fn environment(service: &Yaml) -> BTreeMap<&str, &str> {
    fields(&service["environment"])
        .into_iter()
        .map(|(name, value)| (name, value.as_str().unwrap_or_default()))
        .collect()
}

/// It does its work and ends, and whoever depends on it waits for that.
fn ends(service: &Yaml) -> bool {
    text(service, "restart") == "no"
}

/// Runs a rule that looks at one service at a time.
fn of_each_service(file: &str, rule: impl Fn(&str, &Yaml) -> Faults) -> Faults {
    let compose = parse(file);
    let services = fields(&compose["services"]);
    services.into_iter().flat_map(|(name, service)| rule(name, service)).collect()
}

#[test]
fn it_has_what_the_readme_names_at_the_ports_that_it_names() {
    // service, image, profile, and the port at which it is reached from the host
    const PROMISED: [(&str, &str, &str, &str); 7] = [
        ("wallex", "wallex", "", "3000:3000"),
        ("postgres", "postgres:", "", "5434:5432"),
        ("kafka", "apache/kafka:", "", "9092:9092"),
        ("kafka-ui", "kafbat/kafka-ui:", "", "8080:8080"),
        ("redis", "redis:", "", "6379:6379"),
        ("kurrentdb", "kurrentplatform/kurrentdb:", "kurrentdb", "2113:2113"),
        ("wallex-on-kurrentdb", "wallex", "kurrentdb", "3001:3000"),
    ];
    let rule = |file: &str| {
        let compose = parse(file);
        let services = &compose["services"];
        let is_there = |(name, image, profile, port): &(&str, &str, &str, &str)| {
            let service = &services[*name];
            text(service, "image").starts_with(image)
                && texts(&service["profiles"]).join(",") == *profile
                && texts(&service["ports"]).iter().any(|published| published.ends_with(&format!(":{port}")))
        };
        let absent = PROMISED.iter().filter(|promised| !is_there(promised));
        absent.map(|promised| format!("{promised:?} is not as it is promised")).collect()
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("127.0.0.1:3000:3000", "127.0.0.1:3333:3000"),
            ("  kafka-ui:", "  kafka-gui:"),
            ("profiles: [kurrentdb]", "profiles: [more]"),
            ("image: postgres:17", "image: mysql:9"),
        ],
    );
}

#[test]
fn kafka_is_its_own_controller_without_zookeeper() {
    let rule = |file: &str| {
        let compose = parse(file);
        let roles = environment(&compose["services"]["kafka"]).get("KAFKA_PROCESS_ROLES").copied().unwrap_or_default();
        let mut faults = Faults::new();
        if roles != "broker,controller" {
            faults.push(format!("KAFKA_PROCESS_ROLES is {roles:?}"));
        }
        if file.to_lowercase().contains("zookeeper") {
            faults.push("there is a ZooKeeper".to_owned());
        }
        faults
    };
    let zookeeper = ("KAFKA_NODE_ID: \"1\"", "KAFKA_ZOOKEEPER_CONNECT: zookeeper:2181");
    assert_rule(FILE, rule, &[("broker,controller", "broker"), zookeeper]);
}

#[test]
fn whatever_goes_on_running_is_asked_whether_it_is_healthy_and_started_again() {
    let rule = |file: &str| {
        of_each_service(file, |name, service| {
            let is_asked = texts(&service["healthcheck"]["test"]).first() == Some(&"CMD");
            let is_well_kept = ends(service) || (is_asked && text(service, "restart") == "unless-stopped");
            if is_well_kept { vec![] } else { vec![format!("{name} lacks a health check, or is not started again")] }
        })
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("test: [\"CMD\", \"redis-cli\", \"ping\"]", "disable: true"),
            ("test: [\"CMD\", \"wallex\", \"status\"]", "test: [\"NONE\"]"),
            ("restart: unless-stopped", "restart: on-failure"),
        ],
    );
}

#[test]
fn every_port_is_bound_to_loopback_and_published_once() {
    let rule = |file: &str| {
        let taken = std::cell::RefCell::new(BTreeSet::new());
        of_each_service(file, |name, service| {
            let fault = |published: &&str| match published.split(':').collect::<Vec<_>>()[..] {
                ["127.0.0.1", port, _] => {
                    (!taken.borrow_mut().insert(port.to_owned())).then(|| format!("{port} is taken"))
                }
                _ => Some("is not bound to 127.0.0.1".to_owned()),
            };
            let ports = texts(&service["ports"]);
            ports.iter().filter_map(|port| Some(format!("{name} publishes {port}: {}", fault(port)?))).collect()
        })
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("127.0.0.1:6379:6379", "6379:6379"),
            ("127.0.0.1:6379:6379", "0.0.0.0:6379:6379"),
            ("127.0.0.1:3001:3000", "127.0.0.1:3000:3000"),
        ],
    );
}

#[test]
fn what_a_service_waits_for_exists_starts_with_it_and_can_come_about() {
    let rule = |file: &str| {
        let compose = parse(file);
        let services = fields(&compose["services"]);
        let fault = |service: &Yaml, other: &str, condition: &str| {
            let Some(other) = services.get(other) else { return Some("which does not exist") };
            let started_with_it = other["profiles"].is_badvalue() || other["profiles"] == service["profiles"];
            let comes_about = match condition {
                "service_healthy" => !ends(other) && !other["healthcheck"]["test"].is_badvalue(),
                "service_completed_successfully" => ends(other),
                // Started is not ready.
                _ => false,
            };
            match (started_with_it, comes_about) {
                (false, _) => Some("which belongs to a profile and may not be there"),
                (_, false) => Some("which never comes about, or says too little"),
                _ => None,
            }
        };
        of_each_service(file, |name, service| {
            let waits_for = &service["depends_on"];
            if !waits_for.is_badvalue() && !waits_for.is_hash() {
                return vec![format!("{name} does not say until when it waits")];
            }
            let conditions = fields(waits_for).into_iter().map(|(other, how)| (other, text(how, "condition")));
            let faulty = conditions.filter_map(|(other, until)| Some((other, until, fault(service, other, until)?)));
            faulty.map(|(other, until, fault)| format!("{name} waits for {other} ({until}), {fault}")).collect()
        })
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("condition: service_completed_successfully", "condition: service_healthy"),
            ("condition: service_healthy", "condition: service_completed_successfully"),
            ("condition: service_healthy", "condition: service_started"),
            ("      topics:", "      topic:"),
            ("      postgres:", "      postgres-beside-kurrentdb:"),
            (
                "depends_on:\n      postgres:\n        condition: service_healthy\n      topics:\n        condition: service_completed_successfully",
                "depends_on: [postgres, topics]",
            ),
        ],
    );
}

#[test]
fn every_volume_is_declared_and_belongs_to_one_service_and_holds_its_data() {
    let rule = |file: &str| {
        let compose = parse(file);
        let declared: BTreeSet<_> = fields(&compose["volumes"]).into_keys().map(str::to_owned).collect();
        let used = std::cell::RefCell::new(BTreeSet::new());
        let mut faults = of_each_service(file, |name, service| {
            let volumes = texts(&service["volumes"]);
            let stray = volumes.iter().filter(|volume| {
                let volume = volume.split(':').next().unwrap_or_default();
                !declared.contains(volume) || !used.borrow_mut().insert(volume.to_owned())
            });
            let mut faults: Faults =
                stray.map(|volume| format!("{name}: {volume} is not a volume of its own")).collect();
            if let Some(data) = environment(service).get("WALLEX_DATA_DIR")
                && !volumes.iter().any(|volume| volume.ends_with(&format!(":{data}")))
            {
                faults.push(format!("{name} keeps its data in {data}, which is on no volume"));
            }
            faults
        });
        let used = used.into_inner();
        faults.extend(declared.difference(&used).map(|volume| format!("nobody uses the volume {volume}")));
        faults
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("- redis-data:/data", "- rediss-data:/data"),
            ("- postgres-beside-kurrentdb-data:", "- postgres-data:"),
            ("- wallex-data:/var/lib/wallex", "- wallex-data:/var/lib/wallet"),
            ("\n  redis-data:", "\n  redis-data:\n  more-data:"),
        ],
    );
}

#[test]
fn the_topics_are_those_of_the_code() {
    fn wanted(topic: &str, partitions: i32, retention: std::time::Duration) -> String {
        format!(
            "--bootstrap-server kafka:29092 --create --if-not-exists --topic {topic} --partitions {partitions} \
             --replication-factor 1 --config retention.ms={}",
            retention.as_millis()
        )
    }
    let rule = |file: &str| {
        let compose = parse(file);
        let service = &compose["services"]["topics"];
        let (shell, script) = (texts(&service["entrypoint"]), texts(&service["command"]).concat());
        // Compose would put a variable of its own where there is a single one.
        if script.replace("$$", "").contains('$') {
            return vec!["a $ is not doubled".to_owned()];
        }
        // The script is run, with `echo` in the place of Kafka's tool.
        let script = script.replace("$$", "$").replace("/opt/kafka/bin/kafka-topics.sh", "echo");
        let output = Command::new(shell[0]).args(&shell[1..]).arg(script).output().expect("a shell");
        let wanted = [
            wanted(EVENTS_TOPIC, EVENTS_PARTITIONS, EVENTS_RETENTION),
            wanted(DLQ_TOPIC, DLQ_PARTITIONS, DLQ_RETENTION),
        ];
        let made = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_as_wanted = output.status.success() && made.lines().eq(wanted);
        if is_as_wanted { vec![] } else { vec![format!("made: {made}{}", String::from_utf8_lossy(&output.stderr))] }
    };
    assert_rule(
        FILE,
        rule,
        &[
            ("create wallet-events 10 7", "create wallet-events 12 7"),
            ("create wallet-events 10 7", "create wallet-events 10 8"),
            ("create wallet-events-dlq 5 30", ""),
            ("\"$$1\"", "\"$1\""),
            ("24 * 60 * 60 * 1000", "24 * 60 * 60"),
        ],
    );
}

#[test]
fn wallex_is_told_only_what_it_knows_and_where_the_others_really_are() {
    fn rule(file: &str) -> Faults {
        let known = known_variables();
        let compose = parse(file);
        let mut there = BTreeSet::from(["kafka:29092".to_owned(), "esdb://kurrentdb:2113?tls=false".to_owned()]);
        let advertised =
            environment(&compose["services"]["kafka"]).remove("KAFKA_ADVERTISED_LISTENERS").unwrap_or_default();
        there.retain(|address| !address.starts_with("kafka") || advertised.ends_with(&format!("://{address}")));
        there.extend(fields(&compose["services"]).into_iter().filter_map(|(name, service)| {
            let set = environment(service);
            let account = |what: &str| set.get(&format!("POSTGRES_{what}")[..]).copied();
            Some(format!("postgres://{}:{}@{name}:5432/{}", account("USER")?, account("PASSWORD")?, account("DB")?))
        }));
        of_each_service(file, |name, service| {
            let faulty = environment(service).into_iter().filter(|(variable, value)| match *variable {
                "WALLEX_DATABASE_URL"
                | "WALLEX_KAFKA_BROKERS"
                | "WALLEX_EVENT_STORE"
                | "KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS" => !there.contains(*value),
                _ => variable.starts_with("WALLEX_") && !known.contains(*variable),
            });
            faulty.map(|(variable, value)| format!("{name}: {variable}={value}")).collect()
        })
    }
    assert_rule(
        FILE,
        rule,
        &[
            ("WALLEX_LISTEN: 0.0.0.0:3000", "WALLEX_LISTENS: 0.0.0.0:3000"),
            ("POSTGRES_PASSWORD: wallex", "POSTGRES_PASSWORD: secret"),
            ("CONTAINERS://kafka:29092", "CONTAINERS://kafka:29093"),
            ("esdb://kurrentdb:2113", "esdb://kurrentdb:2114"),
            ("@postgres-beside-kurrentdb:", "@postgres-behind-kurrentdb:"),
        ],
    );
}

#[test]
fn every_image_is_pinned_unless_it_is_built_here() {
    let rule = |file: &str| {
        of_each_service(file, |_, service| {
            let is_built = !service["build"].is_badvalue();
            if is_built { vec![] } else { unpinned(text(service, "image")).into_iter().collect() }
        })
    };
    assert_rule(
        FILE,
        rule,
        &[("redis:8", "redis"), ("kafka-ui:v1.5.0", "kafka-ui:latest"), ("build: .", "init: true")],
    );
}
