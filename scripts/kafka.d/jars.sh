# shellcheck shell=bash
# Kafka's jars: fetched from Maven Central once, and checked before each use. Sourced by scripts/kafka.
#
# The list is what Maven resolves for org.apache.kafka:kafka_2.13 and kafka-tools, with the logging that Kafka's own
# archive comes with (org.apache.logging.log4j:log4j-slf4j-impl) and without Connect. To renew it, let Maven copy
# these (dependency:copy-dependencies -Dmdep.useRepositoryLayout=true), and write down their checksums.

jars_list=$root/scripts/kafka.d/jars.sha256
kafka_version=$(sed -n 's|.*/kafka_2.13-\(.*\)\.jar$|\1|p' "$jars_list")
# Outside of any clone: all of them use the same.
jars=${XDG_CACHE_HOME:-$HOME/.cache}/wallex/kafka-$kafka_version

# check_sums: reads lines of `sha256sum`, and prints the names for which they do not hold
#
# The sums are made anew and compared here. What `--check` says cannot be relied on: of a file that is not there macOS's says
# nothing on standard output, and GNU's does not say "OK" in every language.
check_sums() {
    local program=sha256sum listed made sum name
    has sha256sum || program="shasum -a 256"
    has "${program%% *}" || give_up "neither sha256sum nor shasum is here"
    listed=$(cat)
    # Word splitting is meant: a program with its options, and the names of many files.
    # shellcheck disable=SC2046
    made=$($program $(sed 's/^[^ ]*  //' <<<"$listed") 2>/dev/null) || true
    while read -r sum name; do
        case $made in
        *"$sum  $name"*) ;;
        *) echo "$name" ;;
        esac
    done <<<"$listed"
}

# Each jar appears under its name only whole and checked, so two scripts that fetch at once do no harm.
fetch_jars() {
    local jar sum absent repository=${WALLEX_MAVEN_REPOSITORY:-https://repo1.maven.org/maven2}
    mkdir -p "$jars"
    absent=$(cd "$jars" && check_sums <"$jars_list")
    [ -n "$absent" ] || return 0

    say "Fetching Apache Kafka $kafka_version from Maven Central (45 MB, once)."
    local partial
    partial=$(mktemp -d "$jars/partial.XXXXXX")
    # One process of curl keeps its connection for all of them.
    for jar in $absent; do
        printf 'url = "%s/%s"\noutput = "%s/%s"\n' "$repository" "$jar" "$partial" "$jar"
    done >"$partial/list"
    if ! curl --fail --fail-early --silent --show-error --location --retry 3 --connect-timeout 20 --create-dirs \
        --config "$partial/list" >&2; then
        rm -rf "$partial"
        give_up "Kafka's jars could not be fetched from $repository"
    fi
    while read -r sum jar; do
        [ -f "$partial/$jar" ] || continue
        if [ -n "$(cd "$partial" && echo "$sum  $jar" | check_sums)" ]; then
            rm -rf "$partial"
            give_up "$repository/$jar is not the file that scripts/kafka.d/jars.sha256 was written for"
        fi
        mkdir -p "$jars/$(dirname "$jar")"
        mv -f "$partial/$jar" "$jars/$jar"
    done <"$jars_list"
    rm -rf "$partial"
}

class_path() {
    local sum jar path=
    while read -r sum jar; do
        path=$path:$jars/$jar
    done <"$jars_list"
    printf '%s' "${path#:}"
}

# The option by which Java takes classes that were loaded before from the archive; see make_class_archive
shared_classes() {
    # One that does not fit is passed over, with a line on standard output that would be taken for an answer.
    [ ! -f "$class_archive" ] || echo "-XX:SharedArchiveFile=$class_archive -Xlog:disable"
}

# tool_java CLASS ARGUMENT...: for programs that answer and end, quick to start rather than quick later
tool_java() {
    # shellcheck disable=SC2046
    "$java" -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 $(shared_classes) -Dfile.encoding=UTF-8 \
        -Dlog4j2.configurationFile="$root/scripts/kafka.d/log4j2-tools.properties" -cp "$(class_path)" "$@"
}
