#!/usr/bin/env python3
"""A customer's client: many threads move money over HTTP, and every answer is held against the contract.

It knows the contract and nothing of the code behind it, and needs the standard library alone:

    python3 tests/contract/client.py --url http://127.0.0.1:3000 --wallets 1000 --operations 20000 --workers 20

The workload: wallets opened with 100 to 5000, then a third each of credit (10–500), debit (10–200) and
transfer (10–300, never to self), whole units, wallets drawn uniformly. The rule: nothing but 2xx and
400 INSUFFICIENT_FUNDS. A rejection is an answer and no failure; everything else is printed and ends in
exit code 1. Then the proof: balances, read model and ledger against what the answers said (proof.py).

With --idempotent each POST has an Idempotency-Key and 5 % of them are sent twice: the second answer is the
first one again, with `Idempotency-Replayed: true`, and money moves once. A refused command does not burn its
key: sent again it is a new attempt.

Files: contract.py (the wire and the shapes), model.py (what the client knows), proof.py (the checks at the end).
"""

import argparse
import collections
import http.client
import json
import math
import random
import sys
import threading
import time
import urllib.parse
import uuid

from contract import (
    Connection, ContractViolation, require, transfer_answer, wallet_answer, wallet_path,
)
from model import Effect, Model
from proof import Proof

OPERATIONS = ("credit", "debit", "transfer")
TWICE_SHARE = 0.05  # of the POSTs, with --idempotent
READ_SHARE = 0.05  # of the operations are followed by a read, which must not be older than what was answered
PRINTED_PROBLEMS = 10
GIVE_UP_AFTER = 100  # problems: a service that is down is not asked 20,000 times

# What a request may raise: an answer against the contract, or none at all.
FAILURES = (ContractViolation, OSError, http.client.HTTPException)

Operation = collections.namedtuple("Operation", "number kind wallet other amount twice then_read")


class Report:
    """Counts, latencies and problems of all threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self.kinds = {kind: collections.Counter() for kind in ("create",) + OPERATIONS + ("read",)}
        self.latencies = collections.defaultdict(list)  # ms, by kind
        self.answers = collections.Counter()  # by status and code, second sends and reads included
        self.problems, self.first_problems = 0, []
        self.replays = 0

    def answered(self, kind, outcome, answer):
        with self._lock:
            self.kinds[kind][outcome] += 1
            self.latencies[kind].append(answer.milliseconds)

    def received(self, label):
        with self._lock:
            self.answers[label] += 1

    def replayed(self):
        with self._lock:
            self.replays += 1

    def failed(self, kind, error):
        with self._lock:
            self.kinds[kind]["failed"] += 1
        self.problem(f"{kind}: {error}")

    def problem(self, text):
        with self._lock:
            self.problems += 1
            if len(self.first_problems) < PRINTED_PROBLEMS:
                self.first_problems.append(text)
                print(f"PROBLEM {text}", file=sys.stderr, flush=True)

    def hopeless(self):
        return self.problems >= GIVE_UP_AFTER

    def percentile(self, kind, share):
        ordered = sorted(self.latencies[kind])
        return round(ordered[math.ceil(share * len(ordered)) - 1], 2) if ordered else None


def describe(error):
    """One line for a problem: the contract's words as they are, anything else with its type."""
    return str(error) if isinstance(error, ContractViolation) else f"{type(error).__name__}: {error}"


class Client:
    def __init__(self, arguments):
        self.arguments = arguments
        self.address = urllib.parse.urlsplit(arguments.url)
        self.run_name = uuid.uuid4().hex[:12]
        self.report = Report()
        self.model = Model(arguments.workers)

    # ------------------------------------------------------------ threads

    def connect(self):
        return Connection(self.address.hostname, self.address.port or 80, self.arguments.timeout, self.run_name)

    def in_parallel(self, items, function):
        """Calls `function(connection, item)` for each item on the workers' threads; True if all were made and none raised."""
        remaining, lock, raised = iter(items), threading.Lock(), []

        def work():
            connection = self.connect()
            while not self.report.hopeless():
                with lock:
                    item = next(remaining, None)
                if item is None:
                    break
                try:
                    function(connection, item)
                except FAILURES as error:
                    raised.append(item)
                    self.report.problem(describe(error))
                except Exception as error:  # a fault of this client: never pass over it in silence
                    raised.append(item)
                    self.report.problem(f"the client itself failed at {item!r}: {error!r}")
            connection.close()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.arguments.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return not raised and next(remaining, None) is None

    # ------------------------------------------------------------ workload

    def plan(self, rng):
        """The same seed makes the same openings and operations; only the wallets' prefix differs."""
        width = max(4, len(str(self.arguments.wallets)))
        ids = [f"wallet-{self.run_name}-{number:0{width}}" for number in range(1, self.arguments.wallets + 1)]
        openings = [
            Operation(number, "create", wallet, None, rng.randint(100, 5000), rng.random() < TWICE_SHARE, False)
            for number, wallet in enumerate(ids)
        ]
        operations = []
        for number in range(self.arguments.operations):
            kind = rng.choice(OPERATIONS)
            wallet, other = rng.sample(ids, 2)
            amount = rng.randint(10, {"credit": 500, "debit": 200, "transfer": 300}[kind])
            operations.append(Operation(number, kind, wallet, other if kind == "transfer" else None, amount,
                                        rng.random() < TWICE_SHARE, rng.random() < READ_SHARE))
        return openings, operations

    def request_of(self, operation):
        """Path and body. Amounts go as JSON numbers, each tenth as decimal text: both are in the contract."""
        amount = str(operation.amount) if operation.number % 10 == 3 else operation.amount
        if operation.kind == "create":
            return "/wallets", {
                "walletId": operation.wallet, "ownerId": self.owner_of(operation.wallet),
                "initialBalance": amount, "currency": self.arguments.currency,
            }
        body = {"amount": amount}
        if self.description_of(operation):
            body["description"] = self.description_of(operation)
        if operation.kind == "transfer":
            body["toWalletId"] = operation.other
        return wallet_path(operation.wallet, f"/{operation.kind}"), body

    @staticmethod
    def owner_of(wallet_id):
        return wallet_id.replace("wallet-", "owner-", 1)

    @staticmethod
    def description_of(operation):
        return f"{operation.kind} {operation.number}" if operation.number % 2 == 0 else None

    def perform(self, connection, operation):
        """One operation of the plan, its second send and its read."""
        path, body = self.request_of(operation)
        key = f"{self.run_name}-{operation.kind}-{operation.number}" if self.arguments.idempotent else None
        try:
            first = self.send(connection, operation, path, body, key)
        except FAILURES as error:
            self.report.failed(operation.kind, f"POST {path} {json.dumps(body)}: {describe(error)}")
            return
        outcome = "ok" if first.status == 201 else "rejected"
        self.report.answered(operation.kind, outcome, first)
        if key and operation.twice:
            try:
                if outcome == "ok":
                    self.send_again(connection, first, path, body, key)
                else:  # refused: the key is not burnt, so this is a new attempt
                    self.send(connection, operation, path, body, key)
            except FAILURES as error:
                self.report.problem(f"POST {path} {json.dumps(body)} again, key {key}: {describe(error)}")
        if operation.then_read:
            self.read(connection, operation.wallet)

    def post(self, connection, path, body, key):
        try:
            answer = connection.post(path, body, key)
        except FAILURES as error:
            self.report.received(type(error).__name__)
            raise
        self.report.received(answer.label)
        return answer

    def send(self, connection, operation, path, body, key):
        """Sends a new command and takes its effect into the model."""
        touched = [wallet for wallet in (operation.wallet, operation.other) if wallet]
        latest = {wallet: self.model.latest(wallet) for wallet in touched}
        answer = self.post(connection, path, body, key)
        if answer.label == "400 INSUFFICIENT_FUNDS" and operation.kind in ("debit", "transfer"):
            self.model.reject(operation.wallet, operation.amount, latest[operation.wallet])
            return answer
        if answer.status >= 400:
            raise ContractViolation(f"answered {answer.label}: {answer.body['message']}")
        self.take_effect(operation, answer.body)
        require(answer.status == 201, f"answered {answer.status}, not 201")
        require(not answer.replayed, "a command sent for the first time was answered as replayed")
        for wallet in self.wallets_in(operation, answer.body):
            require(wallet["version"] > latest[wallet["id"]],
                    f"wallet {wallet['id']}: version {wallet['version']} after {latest[wallet['id']]} was answered")
        return answer

    @staticmethod
    def wallets_in(operation, body):
        return [body["fromWallet"], body["toWallet"]] if operation.kind == "transfer" else [body]

    def take_effect(self, operation, body):
        wallet, other, amount = operation.wallet, operation.other, operation.amount
        if operation.kind == "transfer":
            transfer_answer(body, wallet, other, self.arguments.currency)
            for kind, mine, theirs, delta, state in (
                ("TRANSFER_OUT", wallet, other, -amount, body["fromWallet"]),
                ("TRANSFER_IN", other, wallet, amount, body["toWallet"]),
            ):
                self.model.apply(mine, Effect(kind, delta, state["version"], state["balance"],
                                              related=theirs, reference=body["transferId"]))
            return
        wallet_answer(body, wallet, self.arguments.currency)
        require(body["ownerId"] == self.owner_of(wallet), f"wallet {wallet}: ownerId {body['ownerId']!r}")
        delta = -amount if operation.kind == "debit" else amount
        kind = "DEBIT" if operation.kind == "debit" else "CREDIT"
        description = None if operation.kind == "create" else self.description_of(operation)
        effect = Effect(kind, delta, body["version"], body["balance"], description)
        if operation.kind == "create":
            self.model.open(wallet, effect)
        else:
            self.model.apply(wallet, effect)

    def send_again(self, connection, first, path, body, key):
        """The same key and body: the same answer, said to be a replay, and no second effect (the model has none)."""
        again = self.post(connection, path, body, key)
        self.report.replayed()
        require(again.replayed, f"sent twice with one key, the second {again.label} lacks Idempotency-Replayed: true")
        require((again.status, again.body) == (first.status, first.body),
                f"sent twice with one key, answered {first.status} {first.body!r}, then {again.status} {again.body!r}")

    def read(self, connection, wallet_id):
        """A read while others write: never older than an answer already given, to whichever thread."""
        latest = self.model.latest(wallet_id)
        try:
            answer = connection.get(wallet_path(wallet_id))
            self.report.received(answer.label)
            require(answer.status == 200, f"answered {answer.label}")
            wallet = answer.body
            wallet_answer(wallet, wallet_id, self.arguments.currency, with_trail=True)
            require(wallet["version"] >= latest, f"version {wallet['version']} after {latest} was answered")
            self.model.observe(wallet_id, wallet["version"], wallet["balance"])
            self.report.answered("read", "ok", answer)
        except FAILURES as error:
            self.report.failed("read", f"GET wallet {wallet_id}: {describe(error)}")

    # ------------------------------------------------------------ the run

    def run(self):
        """Creates, operates, proves; returns what there is to report."""
        rng = random.Random(self.arguments.seed)
        openings, operations = self.plan(rng)
        self.in_parallel(openings, self.perform)
        seconds, drained = 0.0, None
        if not self.report.problems:  # operating on wallets that are not there would only bury the cause
            started = time.monotonic()
            self.in_parallel(operations, self.perform)
            seconds = time.monotonic() - started
        if seconds and not self.report.hopeless():
            connection = self.connect()
            proof = Proof(self.model, self.arguments.currency, self.report, self.in_parallel)
            try:
                drained = proof.run(connection, self.arguments.drain_timeout, rng)
            except FAILURES as error:
                self.report.problem(describe(error))
            connection.close()
        return self.result(seconds, drained)

    def result(self, seconds, drained):
        report, arguments = self.report, self.arguments
        done = sum(sum(report.kinds[kind].values()) for kind in OPERATIONS)
        return {
            "ok": report.problems == 0 and done == arguments.operations and drained is not None,
            "run": self.run_name, "seed": arguments.seed, "wallets": arguments.wallets,
            "operations": done, "workers": arguments.workers, "idempotent": arguments.idempotent,
            "opsPerSecond": round(done / seconds, 1) if seconds else 0,
            "durationMs": round(seconds * 1000),
            "drainMs": None if drained is None else round(drained * 1000),
            "kinds": {
                kind: {
                    **{outcome: counts[outcome] for outcome in ("ok", "rejected", "failed")},
                    "p50Ms": report.percentile(kind, 0.5), "p99Ms": report.percentile(kind, 0.99),
                }
                for kind, counts in report.kinds.items()
            },
            "answers": dict(sorted(report.answers.items())),
            "replays": report.replays, "problems": report.problems, "firstProblems": report.first_problems,
        }


def print_report(result):
    print(f"run {result['run']}, seed {result['seed']}: {result['wallets']} wallets, {result['operations']} "
          f"operations, {result['workers']} workers: {result['opsPerSecond']} ops/s")
    print(f"{'':9}{'ok':>8}{'rejected':>10}{'failed':>8}{'p50 ms':>10}{'p99 ms':>10}")
    for kind, row in result["kinds"].items():
        p50, p99 = ("-" if row[name] is None else f"{row[name]:.2f}" for name in ("p50Ms", "p99Ms"))
        print(f"{kind:9}{row['ok']:>8}{row['rejected']:>10}{row['failed']:>8}{p50:>10}{p99:>10}")
    print("answers: " + ", ".join(f"{label} {count}" for label, count in result["answers"].items()))
    if result["idempotent"]:
        print(f"sent twice and replayed: {result['replays']}")
    if result["drainMs"] is not None:
        print(f"read model and ledger equal to the answers {result['drainMs']} ms after the last one")
    print("OK: every answer and every balance is as the contract says" if result["ok"]
          else f"FAILED: {result['problems']} problems, the first {len(result['firstProblems'])} above")


def parse_arguments(words):
    def from_one(text):
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError("must be at least 1")
        return number

    def loopback(text):
        url = urllib.parse.urlsplit(text)
        if url.scheme != "http" or url.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise argparse.ArgumentTypeError("must be http:// on loopback: the run opens wallets and moves money")
        return text

    parser = argparse.ArgumentParser(description="Moves money over HTTP and holds every answer against the contract.")
    parser.add_argument("--url", type=loopback, default="http://127.0.0.1:3000")
    parser.add_argument("--wallets", type=from_one, default=1000, help="at least 2 (default: 1000)")
    parser.add_argument("--operations", type=from_one, default=20000, help="default: 20000")
    parser.add_argument("--workers", type=from_one, default=20, help="threads, a connection each (default: 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeats a run's plan")
    parser.add_argument("--currency", default="USD", help="of all wallets (default: USD)")
    parser.add_argument("--idempotent", action="store_true", help="keys on all POSTs, 5 %% of them sent twice")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for one answer (default: 30)")
    parser.add_argument("--drain-timeout", type=float, default=60,
                        help="seconds for read model and ledger to catch up (default: 60)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the report")
    arguments = parser.parse_args(words)
    if arguments.wallets < 2:
        parser.error("--wallets must be at least 2: a transfer needs two")
    return arguments


def main(words=None):
    arguments = parse_arguments(words)
    result = Client(arguments).run()
    if arguments.json:
        print(json.dumps(result))
    else:
        print_report(result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
