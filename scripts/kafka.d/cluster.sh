# shellcheck shell=bash
# One Kafka in one directory: what it is made of, its processes, and whether they answer. Sourced by scripts/kafka,
# which sets `directory` and the options.
#
#   settings                     what it was made with
#   client.properties, ca.pem    for Java clients;  wallex.env  for wallex
#   broker-1/, …, controller/    server.properties, data/, log, pid

# How long a node may take to start, or to stop, in seconds. It takes a few; a machine under load takes longer.
patience=180

# The settings are shell assignments that this script wrote itself.
read_settings() {
    # shellcheck disable=SC1091
    . "$directory/settings"
}

# Every process of the cluster, the controller first.
nodes() {
    local number
    [ "$brokers" = 1 ] || echo controller
    for ((number = 1; number <= brokers; number++)); do
        echo "broker-$number"
    done
}

bootstrap_address() {
    local port all=
    for port in $client_ports; do
        all=$all,127.0.0.1:$port
    done
    echo "${all#,}"
}

process_of() {
    cat "$directory/$1/pid" 2>/dev/null || true
}

# A number may have passed to another process since; ours has its settings in its command line, at the end of it: -ww keeps
# macOS from cutting it to the width of the terminal.
runs() {
    local pid
    pid=$(process_of "$1")
    [ -n "$pid" ] && ps -ww -o command= -p "$pid" 2>/dev/null | grep -F "$directory/$1/server.properties" >/dev/null
}

# A port on which nobody listens, and that the system does not give to anybody who asks for any port.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        case " $used_ports " in
        *" $port "*) continue ;;
        esac
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    used_ports="$used_ports $port"
    chosen_port=$port
}

# nth NUMBER WORD...: that word
nth() {
    shift "$1"
    echo "$1"
}

choose_ports() {
    local number
    used_ports= client_ports= internal_ports=
    free_port && controller_port=$chosen_port
    for ((number = 0; number < brokers; number++)); do
        if [ -n "$first_port" ]; then
            client_ports="$client_ports $((first_port + number))"
        else
            free_port && client_ports="$client_ports $chosen_port"
        fi
        free_port && internal_ports="$internal_ports $chosen_port"
    done
}

random_text() {
    head -c 1024 /dev/urandom | LC_ALL=C tr -dc 'a-zA-Z0-9' | cut -c 1-22
}

# PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL: what Kafka calls the way in for clients
client_protocol() {
    echo "${sasl:+SASL_}$([ "$tls" = yes ] && echo SSL || echo PLAINTEXT)"
}

sasl_mechanism() {
    case $sasl in
    plain) echo PLAIN ;;
    scram-256) echo SCRAM-SHA-256 ;;
    scram-512) echo SCRAM-SHA-512 ;;
    esac
}

login_module() {
    case $sasl in
    plain) echo org.apache.kafka.common.security.plain.PlainLoginModule ;;
    scram-*) echo org.apache.kafka.common.security.scram.ScramLoginModule ;;
    esac
}

make_certificates() {
    local tool
    tool=$(dirname "$java")/keytool
    (
        cd "$directory"
        export password
        set -- -storetype PKCS12 -storepass:env password
        "$tool" -genkeypair -alias ca -dname "CN=wallex development CA" -ext bc:c -keyalg EC -groupname secp256r1 \
            -validity 3650 -keystore ca.p12 "$@"
        "$tool" -exportcert -rfc -alias ca -file ca.pem -keystore ca.p12 "$@"
        "$tool" -genkeypair -alias broker -dname "CN=localhost" -keyalg EC -groupname secp256r1 -validity 3650 \
            -keystore broker.p12 "$@"
        "$tool" -certreq -alias broker -keystore broker.p12 "$@" |
            "$tool" -gencert -alias ca -ext san=dns:localhost,ip:127.0.0.1 -rfc -validity 3650 \
                -outfile broker.pem -keystore ca.p12 "$@"
        "$tool" -importcert -noprompt -alias ca -file ca.pem -keystore broker.p12 "$@"
        "$tool" -importcert -alias broker -file broker.pem -keystore broker.p12 "$@"
    ) >"$directory/keytool.log" 2>&1 || give_up "the certificates could not be made; see $directory/keytool.log"
}

# What clients need to be told, in the words of each.
write_client_settings() {
    local protocol mechanism
    protocol=$(client_protocol)
    mechanism=$(sasl_mechanism)
    {
        echo "security.protocol=$protocol"
        if [ -n "$sasl" ]; then
            echo "sasl.mechanism=$mechanism"
            echo "sasl.jaas.config=$(login_module) required username=\"wallex\" password=\"$password\";"
        fi
        if [ "$tls" = yes ]; then
            echo "ssl.truststore.type=PEM"
            echo "ssl.truststore.location=$directory/ca.pem"
        fi
    } >"$directory/client.properties"
    {
        echo "export WALLEX_KAFKA_BROKERS=$(bootstrap_address)"
        [ "$protocol" = PLAINTEXT ] || echo "export WALLEX_KAFKA_SECURITY_PROTOCOL=$protocol"
        if [ -n "$sasl" ]; then
            echo "export WALLEX_KAFKA_SASL_MECHANISM=$mechanism"
            echo "export WALLEX_KAFKA_SASL_USERNAME=wallex"
            echo "export WALLEX_KAFKA_SASL_PASSWORD=$password"
        fi
        [ "$tls" != yes ] || echo "export WALLEX_KAFKA_SSL_CA_LOCATION=$directory/ca.pem"
    } >"$directory/wallex.env"
}

# write_node NODE: its server.properties
write_node() {
    local node=$1 number=${1#broker-} copies=$((brokers < 3 ? brokers : 3)) mechanism
    local controller="CONTROLLER://127.0.0.1:$controller_port" listeners=
    mechanism=$(sasl_mechanism)
    mkdir -p "$directory/$node/data"
    [ "$node" = controller ] ||
        listeners="CLIENT://127.0.0.1:$(nth "$number" $client_ports),INTERNAL://127.0.0.1:$(nth "$number" $internal_ports)"
    {
        # The controller of several brokers is a process of its own, so that any broker can be killed and a majority of
        # the controllers is still there.
        case $node:$brokers in
        controller:*)
            echo "process.roles=controller"
            echo "node.id=0"
            echo "listeners=$controller"
            ;;
        *:1)
            echo "process.roles=broker,controller"
            echo "node.id=1"
            echo "listeners=$listeners,$controller"
            ;;
        *)
            echo "process.roles=broker"
            echo "node.id=$number"
            echo "listeners=$listeners"
            ;;
        esac
        echo "controller.listener.names=CONTROLLER"
        echo "controller.quorum.voters=$((brokers == 1))@127.0.0.1:$controller_port"
        echo "listener.security.protocol.map=CLIENT:$(client_protocol),INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
        echo "log.dirs=$directory/$node/data"
        # As many copies as there are brokers to hold them, as in production.
        echo "default.replication.factor=$copies"
        echo "min.insync.replicas=$((copies > 1 ? copies - 1 : 1))"
        echo "offsets.topic.replication.factor=$copies"
        echo "transaction.state.log.replication.factor=$copies"
        echo "transaction.state.log.min.isr=$((copies > 1 ? copies - 1 : 1))"
        # Small and quick to start: a few partitions of its own topics, no wait for further members of a new group, a
        # buffer for compaction that fits the heap (it would be 128 MB).
        echo "offsets.topic.num.partitions=5"
        echo "transaction.state.log.num.partitions=5"
        echo "group.initial.rebalance.delay.ms=0"
        echo "log.cleaner.dedupe.buffer.size=8388608"
        echo "num.network.threads=2"
        echo "num.io.threads=4"
        if [ "$node" != controller ]; then
            echo "inter.broker.listener.name=INTERNAL"
            if [ -n "$sasl" ]; then
                echo "sasl.enabled.mechanisms=$mechanism"
                echo "listener.name.client.$(echo "$mechanism" | tr '[:upper:]' '[:lower:]').sasl.jaas.config=$(login_module) required$([ "$sasl" != plain ] || echo " user_wallex=\"$password\"");"
            fi
            if [ "$tls" = yes ]; then
                echo "listener.name.client.ssl.keystore.type=PKCS12"
                echo "listener.name.client.ssl.keystore.location=$directory/broker.p12"
                echo "listener.name.client.ssl.keystore.password=$password"
                echo "listener.name.client.ssl.key.password=$password"
            fi
        fi
    } >"$directory/$node/server.properties"
}

# Writes everything that a cluster is, but for its data.
make_cluster() {
    local node
    brokers=${brokers:-1} tls=${tls:-no} password=$(random_text)
    choose_ports
    cat >"$directory/settings.new" <<END
brokers=$brokers sasl=$sasl tls=$tls
client_ports="$client_ports" internal_ports="$internal_ports" controller_port=$controller_port
END
    write_client_settings
    [ "$tls" != yes ] || [ -f "$directory/broker.pem" ] || make_certificates
    # The password goes by a file: a command line can be read by everybody.
    printf 'format\n--ignore-formatted\n--cluster-id\n%s\n' "$(random_text)" >"$directory/format"
    case $sasl in
    scram-*) printf -- '--add-scram\n%s=[name=wallex,password=%s]\n' "$(sasl_mechanism)" "$password" >"$directory/scram" ;;
    *) : >"$directory/scram" ;;
    esac
    for node in $(nodes); do
        write_node "$node"
    done
}

# format_nodes: prepares the data of each node, all at once
format_nodes() {
    local node started=
    for node in $(nodes); do
        # The accounts stand in the metadata, which is the controller's to begin.
        case $node:$brokers in
        controller:* | *:1) cat "$directory/format" "$directory/scram" ;;
        *) cat "$directory/format" ;;
        esac >"$directory/$node/format"
        tool_java kafka.tools.StorageTool "@$directory/$node/format" --config "$directory/$node/server.properties" \
            >"$directory/$node/format.log" 2>&1 &
        started="$started $node:$!"
    done
    for node in $started; do
        wait "${node#*:}" || give_up "${node%:*} could not be prepared: $(tail -n 3 "$directory/${node%:*}/format.log")"
        rm "$directory/${node%:*}/format"
    done
    rm "$directory/format" "$directory/scram"
}

launch() {
    local node=$1
    # Word splitting is meant: these are several options.
    # shellcheck disable=SC2086
    nohup "$java" ${KAFKA_HEAP_OPTS:--Xms64m -Xmx256m} ${KAFKA_JVM_PERFORMANCE_OPTS:--XX:+UseSerialGC} \
        $(shared_classes) -XX:+ExitOnOutOfMemoryError \
        -Djava.awt.headless=true -Dlog4j2.configurationFile="$root/scripts/kafka.d/log4j2.properties" \
        -cp "$(class_path)" kafka.Kafka "$directory/$node/server.properties" \
        >"$directory/$node/log" 2>&1 </dev/null &
    echo $! >"$directory/$node/pid"
}

# Most of the time that a broker takes to start goes into loading classes; Java can keep them loaded in a file, which it
# writes when a program ends. So the first time, a broker is started and ended for that.
make_class_archive() {
    [ ! -f "$class_archive" ] || return 0
    say "Preparing it to start quickly (once)."
    local scratch
    scratch=$(mktemp -d "$jars/scratch.XXXXXX")
    if (
        directory=$scratch brokers=1 sasl='' tls=no first_port='' only_broker='' now='' while_pid=''
        KAFKA_JVM_PERFORMANCE_OPTS="-XX:+UseSerialGC -XX:ArchiveClassesAtExit=$scratch/classes.jsa"
        start_cluster
        stop_cluster
    ) && [ -f "$scratch/classes.jsa" ]; then
        mv -f "$scratch/classes.jsa" "$class_archive"
    else
        say "That did not work; it starts slowly then."
    fi
    rm -rf "$scratch"
}

# await_nodes NODE...: until each has said that it runs; 1 where one has ended instead
await_nodes() {
    local node until=$((SECONDS + patience))
    for node in "$@"; do
        until grep -E 'Kafka Server started' "$directory/$node/log" >/dev/null 2>&1; do
            # For a moment it is still this script and not yet Java, so that its command line does not tell.
            kill -0 "$(process_of "$node")" 2>/dev/null || return 1
            [ $SECONDS -lt $until ] || give_up "$node has not started within $patience s; its log: $directory/$node/log"
            sleep 0.2
        done
    done
}

# Whether brokers answer is asked the way a client asks, with its login and certificates.
await_answers() {
    local expected=$1 address=$2 until=$((SECONDS + patience)) answers
    while :; do
        answers=$(tool_java org.apache.kafka.tools.BrokerApiVersionsCommand --bootstrap-server "$address" \
            --command-config "$directory/client.properties" 2>"$directory/answers.log" | grep -c '(id: ' || true)
        [ "$answers" -lt "$expected" ] || return 0
        [ $SECONDS -lt $until ] ||
            give_up "only $answers of $expected brokers answer at $address: $(tail -n 1 "$directory/answers.log")"
    done
}

# What is asked for has to be what is there.
same_settings() {
    local wanted="$brokers/$sasl/$tls/$first_port"
    read_settings
    local made
    made="${wanted%%/*}"
    [ -z "$made" ] || [ "$made" = "$brokers" ] || give_up "the Kafka in $directory has $brokers brokers, not $made"
    wanted=${wanted#*/} made=${wanted%%/*}
    [ -z "$made" ] || [ "$made" = "$sasl" ] || give_up "the Kafka in $directory was made with SASL '$sasl', not '$made'"
    wanted=${wanted#*/} made=${wanted%%/*}
    [ -z "$made" ] || [ "$made" = "$tls" ] || give_up "the Kafka in $directory was made without TLS"
    made=${wanted#*/}
    [ -z "$made" ] || [ "$made" = "$(nth 1 $client_ports)" ] ||
        give_up "the Kafka in $directory listens at $(bootstrap_address)"
}

start_cluster() {
    local node attempt started wanted blame
    chmod 700 "$directory"
    [ -z "$while_pid" ] || watch_over
    if [ ! -f "$directory/settings" ]; then
        for attempt in 1 2 3; do
            make_cluster
            format_nodes
            for node in $(nodes); do
                launch "$node"
            done
            # shellcheck disable=SC2046
            if await_nodes $(nodes); then
                mv "$directory/settings.new" "$directory/settings"
                break
            fi
            blame=$(for node in $(nodes); do runs "$node" || echo "$node"; done | head -n 1)
            stop_nodes KILL $(nodes)
            # Somebody else may have taken a port since it was found free; then others are chosen.
            if [ -n "$first_port" ] || [ $attempt = 3 ] || ! grep -h 'Address already in use' "$directory/$blame/log" >/dev/null; then
                give_up "$blame ended as it started: $(grep -E 'ERROR|FATAL|Exception' "$directory/$blame/log" | head -n 1); its log: $directory/$blame/log"
            fi
            for node in $(nodes); do
                rm -rf "${directory:?}/$node"
            done
        done
        await_answers "$brokers" "$(bootstrap_address)"
    else
        same_settings
        started=
        wanted=${only_broker:+broker-$only_broker}
        for node in ${wanted:-$(nodes)}; do
            [ -d "$directory/$node" ] || give_up "there is no $node in $directory"
            runs "$node" && continue
            launch "$node"
            started="$started $node"
        done
        if [ -n "$started" ]; then
            # shellcheck disable=SC2086
            await_nodes $started || give_up "a node ended as it started; see the logs of$started in $directory"
            if [ -n "$only_broker" ]; then
                await_answers 1 "127.0.0.1:$(nth "$only_broker" $client_ports)"
            else
                await_answers "$brokers" "$(bootstrap_address)"
            fi
        fi
    fi
    if [ "$(client_protocol)" != PLAINTEXT ]; then
        say "Clients need to log in or to know a certificate: '. $directory/wallex.env' tells wallex, client.properties Java."
    fi
}

# Ends the cluster and removes it when the process that it was started for has ended, however it did, be it before the
# start was through.
watch_over() {
    # shellcheck disable=SC2016
    nohup bash -c '
        while kill -0 "$1" 2>/dev/null; do sleep 1; done
        for file in "$2"/*/pid; do
            pid=$(cat "$file") && ps -ww -o command= -p "$pid" | grep -F "$2/" && kill -s KILL "$pid"
        done
        rm -rf "$2"
    ' watch "$while_pid" "$directory" >/dev/null 2>&1 </dev/null &
}

# stop_nodes SIGNAL NODE...: ends them, and waits until they have ended
stop_nodes() {
    local signal=$1 node until=$((SECONDS + patience))
    shift
    for node in "$@"; do
        ! runs "$node" || kill -s "$signal" "$(process_of "$node")" 2>/dev/null || true
        # One that is halted (SIGSTOP) does not end before it goes on.
        ! runs "$node" || kill -s CONT "$(process_of "$node")" 2>/dev/null || true
    done
    for node in "$@"; do
        while runs "$node"; do
            [ $SECONDS -lt $until ] || kill -s KILL "$(process_of "$node")" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$directory/$node/pid"
    done
}

stop_cluster() {
    local signal=TERM node rest
    [ -z "$now" ] || signal=KILL
    if [ -n "$only_broker" ]; then
        stop_nodes $signal "broker-$only_broker"
        return
    fi
    # The controller last: brokers that end say so to it, and wait until it has answered.
    rest=$(nodes | grep -v controller)
    # shellcheck disable=SC2086
    stop_nodes $signal $rest
    stop_nodes $signal $(nodes)
}

run_tool() {
    local class=${1:-}
    [ -n "$class" ] || give_up "which tool? Such as org.apache.kafka.tools.TopicCommand"
    shift
    tool_java "$class" --bootstrap-server "$(bootstrap_address)" --command-config "$directory/client.properties" "$@"
}
