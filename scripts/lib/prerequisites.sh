# shellcheck shell=bash
# What the scripts of this project need from the machine, and how it is installed where it is missing.
# Sourced, not run. Written for bash 3.2, which is the one that macOS has.
#
#   need_build_tools     C and C++ compiler, make and OpenSSL: they build librdkafka, the Kafka client
#   need_postgres        PostgreSQL's server programs: wallex runs a private server of its own with them
#   need_redis           Redis's server program: tests start servers of their own with it
#   need_java            Java 17 or newer: a real Apache Kafka runs on it; find_java then sets $java
#   need_process_programs  ps, pgrep and pkill: processes are found and ended with them
#   need_program git     any other program whose package has its name
#   install_missing      installs what the lines above found missing; says nothing when that is nothing
#   ensure_rust          a Rust that is new enough for Cargo.toml
#   ensure_rust_tool fmt|clippy

missing_packages=() # as the system's package manager names them
missing_reasons=()  # what each is for, in the same order
postgres_is_missing=no
redis_is_missing=no

say() {
    printf '%s\n' "$*" >&2
}

# A command to be read, and copied.
show() {
    printf '\n%s\n\n' "$1" >&2
}

# Something is in the way that is not the project's fault: say it and end with 2.
give_up() {
    say "error: $*"
    exit 2
}

on_macos() {
    [ "$(uname -s)" = Darwin ]
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# A shell that no one has logged in to does not have Homebrew on its path yet.
if on_macos && ! has brew; then
    for brew in /opt/homebrew/bin/brew /usr/local/bin/brew; do
        if [ -x "$brew" ]; then
            eval "$("$brew" shellenv)"
            break
        fi
    done
fi

# missing REASON PACKAGE...
missing() {
    local reason=$1
    shift
    missing_reasons+=("$* ($reason)")
    missing_packages+=("$@")
}

# A compiler alone is not enough: some machines have it without the C library's headers.
c_compiler_works() {
    if on_macos; then
        # The compiler that is always there on macOS only offers, in a window, to install the real one.
        xcode-select -p >/dev/null 2>&1
    else
        has c++ && has make && printf '#include <stdlib.h>\n' | cc -E -x c - >/dev/null 2>&1
    fi
}

# Where the build looks for it: by Homebrew's name, or by pkg-config.
openssl_is_there() {
    if on_macos; then
        has brew && [ -d "$(brew --prefix openssl@3 2>/dev/null)/include" ]
    else
        has pkg-config && pkg-config --exists openssl
    fi
}

need_build_tools() {
    if ! c_compiler_works; then
        if on_macos; then
            give_up "the C compiler is missing; install it with 'xcode-select --install', then run this again"
        fi
        missing "C and C++ compiler, builds the Kafka client" gcc g++ libc6-dev make
    fi
    if ! openssl_is_there; then
        if on_macos; then
            missing "TLS to Kafka" openssl@3
        else
            missing "TLS to Kafka" libssl-dev pkg-config
        fi
    fi
    # On Linux cargo checks the registry's certificate against the system's list.
    on_macos || [ -n "${SSL_CERT_FILE:-}" ] || [ -e /etc/ssl/certs/ca-certificates.crt ] ||
        missing "to download over TLS" ca-certificates
}

# In the places where wallex itself looks.
postgres_is_there() {
    local folder
    for folder in \
        "$(dirname "$(command -v postgres 2>/dev/null || echo /nowhere/postgres)")" \
        "$(pg_config --bindir 2>/dev/null || echo /nowhere)" \
        /usr/lib/postgresql/*/bin \
        /opt/homebrew/opt/postgresql*/bin \
        /usr/local/opt/postgresql*/bin; do
        if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ]; then
            return 0
        fi
    done
    return 1
}

need_postgres() {
    postgres_is_there && return
    postgres_is_missing=yes
    if on_macos; then
        missing "the database server that wallex keeps its log in" postgresql@17
    else
        missing "the database server that wallex keeps its log in" postgresql
    fi
}

need_redis() {
    has redis-server && return
    redis_is_missing=yes
    if on_macos; then
        missing "the server that tests of queueing servers start" redis
    else
        missing "the server that tests of queueing servers start" redis-server
    fi
}

# find_java: sets `java` to a program of version 17 or newer
find_java() {
    local candidate version
    for candidate in \
        "${JAVA_HOME:-/nowhere}/bin/java" \
        "$(command -v java || echo /nowhere/java)" \
        /usr/lib/jvm/*/bin/java \
        /opt/homebrew/opt/openjdk*/bin/java \
        /usr/local/opt/openjdk*/bin/java; do
        [ -x "$candidate" ] || continue
        # On macOS there is always one that only says where to get the real one, and fails.
        version=$("$candidate" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') || continue
        if [ "${version:-0}" -ge 17 ]; then
            java=$candidate
            return 0
        fi
    done
    return 1
}

need_java() {
    find_java && return
    if on_macos; then
        missing "runs a real Apache Kafka" openjdk@17
    else
        # Newer systems do not have 17 any more, and what older ones install by default is older: the shell that
        # installs asks, when the lists of packages are new.
        # shellcheck disable=SC2016
        missing "Java, runs a real Apache Kafka" \
            '$(apt-cache show openjdk-17-jre-headless >/dev/null 2>&1 && echo openjdk-17-jre-headless || echo default-jre-headless)'
    fi
}

# A minimal Debian has none of them, and all in one package. A Mac has them.
need_process_programs() {
    has ps && has pgrep && return
    missing "to find processes and end them" procps
}

need_program() {
    has "$1" || missing "${2:-used by this script}" "$1"
}

install_missing() {
    # Rust's own installer is fetched with curl.
    find_rust || need_program curl "to fetch the Rust installer"
    [ ${#missing_packages[@]} -gt 0 ] || return 0

    say "Missing on this machine:"
    printf '  %s\n' "${missing_reasons[@]}" >&2
    if on_macos; then
        has brew || give_up "Homebrew is needed to install them: see https://brew.sh, then run this again"
        say "Installing them with Homebrew."
        brew install "${missing_packages[@]}" >&2 || give_up "Homebrew could not install what is missing"
    elif has apt-get; then
        install_with_apt
    else
        give_up "no apt-get here: install these with this system's own package manager, then run this again"
    fi
    hash -r
}

install_with_apt() {
    local commands
    commands="export DEBIAN_FRONTEND=noninteractive
apt-get -qq update || true
apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends ${missing_packages[*]}"
    if [ "$postgres_is_missing" = yes ]; then
        # Debian's package creates a database cluster and starts it at every boot, unless told not to.
        # wallex runs one of its own. The setting holds for this installation only.
        commands="setting=/etc/postgresql-common/createcluster.d/wallex-installs.conf
mkdir -p /etc/postgresql-common/createcluster.d
echo create_main_cluster = false > \$setting
trap \"rm -f \$setting\" EXIT
$commands"
    fi

    if [ "$redis_is_missing" = yes ]; then
        # Debian's package starts a server, and at every boot from then on. The tests start their own.
        commands="$commands
systemctl disable --now redis-server 2>/dev/null || service redis-server stop 2>/dev/null || true"
    fi

    if [ "$(id -u)" = 0 ]; then
        say "Installing them with apt-get; this may take a minute."
        sh -ec "$commands" >/dev/null || give_up "apt-get could not install what is missing"
        return
    fi

    if ! has sudo; then
        say "Installing them needs root, and there is no sudo here. As root, run this, then this script again:"
        show "sh -ec '$commands'"
        exit 2
    elif ! [ -t 0 ] || ! [ -t 2 ]; then
        say "Installing them needs sudo, and there is no terminal to ask at. Run this, then this script again:"
        show "sudo sh -ec '$commands'"
        exit 2
    fi
    say "Installing them needs sudo, for this:"
    show "sudo sh -ec '$commands'"
    local answer
    read -r -p "Run it now? [Y/n] " answer || answer=n
    case $answer in
    "" | [yY]*) ;;
    *) give_up "nothing was installed" ;;
    esac
    sudo sh -ec "$commands" >/dev/null || give_up "apt-get could not install what is missing"
}

# The rust-version of Cargo.toml.
rust_wanted() {
    sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml
}

# at_least 1.95.0 1.94: the first version is the second or a later one
at_least() {
    local have want
    IFS=. read -r -a have <<<"$1"
    IFS=. read -r -a want <<<"$2"
    local part
    for part in 0 1 2; do
        if [ "${have[part]:-0}" -gt "${want[part]:-0}" ]; then
            return 0
        elif [ "${have[part]:-0}" -lt "${want[part]:-0}" ]; then
            return 1
        fi
    done
    return 0
}

# Cargo and the compiler answer, and the compiler is new enough.
rust_is_there() {
    local version
    # Where rustup stands behind them, only ask: it would download a toolchain to answer.
    RUSTUP_AUTO_INSTALL=0 cargo --version >/dev/null 2>&1 || return 1
    version=$(RUSTUP_AUTO_INSTALL=0 rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && at_least "$version" "$(rust_wanted)"
}

# Makes a Rust that is installed already the one that this script uses.
find_rust() {
    rust_is_there && return
    # Installed by rustup, but not on the path of this shell, or behind an older one of the system.
    local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
    if [ -x "$cargo_bin/cargo" ]; then
        PATH=$cargo_bin:$PATH
        rust_is_there && return
    fi
    # The default toolchain is an older one, or none, but the stable one would do.
    if has rustup && rustup toolchain list 2>/dev/null | grep '^stable' >/dev/null; then
        export RUSTUP_TOOLCHAIN=stable
        rust_is_there && return
        unset RUSTUP_TOOLCHAIN
    fi
    return 1
}

ensure_rust() {
    find_rust && return
    if has rustup; then
        say "Rust $(rust_wanted) or newer is needed: installing the stable toolchain with rustup."
        rustup toolchain install stable --profile minimal --no-self-update >&2 ||
            give_up "rustup could not install the stable toolchain"
    else
        say "Rust $(rust_wanted) or newer is needed: installing it with rustup for $(id -un), in ${CARGO_HOME:-$HOME/.cargo}."
        install_rustup
    fi
    export RUSTUP_TOOLCHAIN=stable
    rust_is_there || give_up "Rust $(rust_wanted) or newer is needed, and the stable one that rustup installed is not that"
}

# Not every Rust comes with cargo fmt and cargo clippy.
ensure_rust_tool() {
    cargo "$1" --version >/dev/null 2>&1 && return
    has rustup || give_up "cargo $1 is missing: install it where this Rust came from ($(command -v cargo))"
    say "Installing cargo $1 with rustup."
    rustup component add "${1/#fmt/rustfmt}" >&2 || give_up "rustup could not install it"
}

install_rustup() {
    local installer
    installer=$(mktemp)
    if ! curl --proto '=https' --tlsv1.2 -fsSL https://sh.rustup.rs -o "$installer"; then
        rm -f "$installer"
        give_up "https://sh.rustup.rs could not be reached; install Rust as https://rustup.rs says, then run this again"
    fi
    # Shell profiles are left alone, and a Rust of the system that is too old is no reason to stop.
    if ! RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$installer" -y -q --no-modify-path \
        --profile minimal --default-toolchain stable >&2; then
        rm -f "$installer"
        give_up "rustup could not install Rust"
    fi
    rm -f "$installer"
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    say "To use it in a shell of your own: . \"${CARGO_HOME:-$HOME/.cargo}/env\""
}
