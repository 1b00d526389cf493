//! The scripts on machines that are not at hand: a Mac and a fresh Debian, made of stand-ins in a folder. They find only the
//! programs in there; those of the system are the real ones, but refuse the long options that only GNU's have.
//!
//! This does not show that a bash 3.2 reads them, nor what BSD's programs make of short options.

mod machine;

use machine::{Machine, real};

/// Notes what it is asked to install, and leaves something to be found where Homebrew would.
const BREW: &str = r#"case $1 in
shellenv) echo 'export PATH="ROOT/opt/homebrew/bin:$PATH"' ;;
--prefix) echo "ROOT/opt/homebrew/opt/$2" ;;
install)
    echo "brew $*" >>ROOT/asked
    shift
    for package; do
        folder=ROOT/opt/homebrew/opt/$package
        mkdir -p "$folder/bin" "$folder/include"
        case $package in
        postgresql*) touch "$folder/bin/initdb" "$folder/bin/postgres" ;;
        redis) touch ROOT/opt/homebrew/bin/redis-server ;;
        openjdk*) echo 'echo "openjdk version \"17.0.1\"" >&2' >"$folder/bin/java" ;;
        esac
    done
    chmod -R 755 ROOT/opt/homebrew ;;
esac"#;

fn mac() -> Machine {
    let mac = Machine::new("Darwin");
    mac.has("bin/xcode-select", "");
    mac.has("opt/homebrew/bin/brew", BREW);
    mac
}

const BUILD: &str = "cargo build --release --locked --bin wallex";
const LOADTEST: &str = "cargo run --quiet --release --locked --bin wallex -- loadtest --wallets 1000";

#[test]
fn a_mac_gets_what_is_missing_from_homebrew_once_and_without_sudo() {
    let mac = mac();
    let (code, said) = mac.run("scripts/demo");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(mac.asked(), ["brew install openssl@3 postgresql@17", BUILD, LOADTEST]);
    let (code, said) = mac.run("scripts/demo");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(mac.asked(), [BUILD, LOADTEST]);
    let (code, said) = mac.run("scripts/test --fast --without-kafka");
    assert_eq!(code, Some(0), "{said}");
    let test = "cargo test --locked --no-fail-fast -- --skip slow_ --skip real_kafka";
    assert_eq!(mac.asked(), ["brew install redis", test]);
}

#[test]
fn the_java_that_only_says_where_to_get_one_is_not_taken_for_one() {
    let mac = mac();
    mac.has("bin/java", "echo 'The operation could not be completed. Unable to locate a Java Runtime.' >&2; exit 1");
    let line =
        "set -euo pipefail; . scripts/lib/prerequisites.sh; need_java; install_missing; find_java; echo \"$java\"";
    let (code, said) = mac.run(line);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("/opt/homebrew/opt/openjdk@17/bin/java\n"), "{said}");
    assert_eq!(mac.asked(), ["brew install openjdk@17"]);
}

#[test]
fn a_mac_without_compiler_or_homebrew_is_told_where_to_get_them() {
    let bare = Machine::new("Darwin");
    let (code, said) = bare.run("scripts/demo");
    assert_eq!((code, said.contains("xcode-select --install")), (Some(2), true), "{said}");
    bare.has("bin/xcode-select", "");
    let (code, said) = bare.run("scripts/demo");
    assert_eq!((code, said.contains("https://brew.sh")), (Some(2), true), "{said}");
    assert_eq!(bare.asked(), [""; 0]);
}

#[test]
fn nothing_is_done_as_root_on_debian_before_somebody_has_agreed() {
    let debian = Machine::new("Linux");
    debian.has("bin/apt-get", "echo 'apt-get, without sudo' >>ROOT/asked");
    let (code, said) = debian.run("scripts/demo");
    assert_eq!((code, said.contains("sudo sh -ec '")), (Some(2), true), "{said}");
    let (code, said) = debian.run_and_type("n\n", "scripts/demo");
    assert_eq!((code, said.contains("nothing was installed")), (Some(2), true), "{said}");
    assert_eq!(debian.asked(), [""; 0]);
    let (code, said) = debian.run_and_type("y\n", "scripts/demo");
    let asked = debian.asked();
    assert_eq!((code, &asked[asked.len() - 2..]), (Some(0), &[BUILD, LOADTEST].map(str::to_owned)[..]), "{said}");
    let is_by_sudo = asked[0].starts_with("sudo sh -ec ") && !asked.contains(&"apt-get, without sudo".to_owned());
    assert!(is_by_sudo, "{asked:?}");
}

#[test]
fn a_jar_that_is_absent_or_wrong_is_noticed_where_sha256sum_does_not_speak_of_it() {
    let mac = mac();
    // As macOS's does: of a file that is not there it says nothing on standard output.
    let check = format!("{} -c - 2>/dev/null | grep -v 'FAILED open or read'", real("sha256sum"));
    mac.has(
        "bin/sha256sum",
        &format!("case $1 in -c | --check) {check} ;; *) exec {} \"$@\" ;; esac", real("sha256sum")),
    );
    let (code, said) = mac.run(
        "set -euo pipefail; root=$PWD; . scripts/lib/prerequisites.sh; . scripts/kafka.d/jars.sh
         echo right >right.jar; echo wrong >wrong.jar
         { sha256sum right.jar; printf '%064d  %s\\n' 0 wrong.jar 0 absent.jar; } >list
         check_sums <list",
    );
    assert_eq!((code, &said[..]), (Some(0), "wrong.jar\nabsent.jar\n"));
}

#[test]
fn a_broker_is_recognised_where_ps_cuts_its_lines() {
    let mac = mac();
    mac.has("bin/ps", &format!("case $1 in -ww) exec {0} \"$@\" ;; *) {0} \"$@\" | cut -c 1-79 ;; esac", real("ps")));
    let (code, said) = mac.run(
        "directory=$PWD; . scripts/kafka.d/cluster.sh; mkdir broker-1
         bash -c 'while sleep 0.1; do :; done' \"$(printf %0200d 0)\" \"$directory/broker-1/server.properties\" &
         echo $! >broker-1/pid; runs broker-1 && echo yes; kill $!",
    );
    assert_eq!((code, &said[..]), (Some(0), "yes\n"));
}
