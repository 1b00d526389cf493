"""What must be true when the last command is answered.

At once, as a read is never older than an answer already given:
- GET /wallets/{id} of every wallet holds the model's balance and the version of its last answer.

Soon, as two projections follow the log (polled until equal, or until the deadline):
- the read model, GET /wallets, page by page, holds the same balances;
- the ledger's GET /ledger/wallet/{id}/summary adds up to them;
- and for a sample of wallets every single row of the ledger is the one that was answered for.
"""

import threading
import time
from decimal import Decimal

from contract import (
    AUDIT_TRAIL_BOUND, ledger_path, money_from_text, next_page, reference_path, require, summary_answer,
    transactions_answer, wallet_answer, wallet_path,
)

POLL_SECONDS = 0.2
SAMPLE = 20
PAGE = 10  # small, so that wallets have several pages of ledger rows
DEFAULT_PAGE = 50  # what the ledger answers with where no limit is given


class Proof:
    """`in_parallel(items, function)` calls `function(connection, item)` on several threads and reports what it
    raises; its answer is whether all calls were made and none raised."""

    def __init__(self, model, currency, report, in_parallel):
        self._model, self._currency, self._report = model, currency, report
        self._in_parallel = in_parallel

    def run(self, connection, drain_timeout, rng):
        """Returns the seconds until both projections were equal to the model, None if they never were."""
        self._read_every_wallet()
        for complaint in self._model.complaints():
            self._report.problem(complaint)
        started = time.monotonic()
        deadline = started + drain_timeout
        read_model_equal = self._await_read_model(connection, deadline)
        ledger_equal = self._await_ledger(deadline)
        drained = time.monotonic() - started if read_model_equal and ledger_equal else None
        if ledger_equal:
            ids = self._model.ids()
            self._in_parallel(rng.sample(ids, min(SAMPLE, len(ids))), self._read_whole_ledger)
        return drained

    # ------------------------------------------------------------ at once

    def _read_every_wallet(self):
        balances = {}
        lock = threading.Lock()

        def read(connection, wallet_id):
            answer = connection.get(wallet_path(wallet_id))
            require(answer.status == 200, f"GET wallet {wallet_id} answered {answer.label}")
            wallet = answer.body
            wallet_answer(wallet, wallet_id, self._currency, with_trail=True)
            with lock:
                balances[wallet_id] = wallet["balance"]
            history = self._model.history(wallet_id)
            expected, version = self._model.balance(wallet_id), history[-1].version
            require(wallet["balance"] == expected and wallet["version"] == version,
                    f"GET wallet {wallet_id}: balance {wallet['balance']} at version {wallet['version']}, "
                    f"expected {expected} at {version}")
            # The trail: the creation, which moves no money, then each effect; oldest first, the newest 100.
            trail = [event.get("amount") for event in wallet["auditTrail"]]
            amounts = ([None] + [abs(effect.delta) for effect in history])[-AUDIT_TRAIL_BOUND:]
            require(trail == amounts, f"wallet {wallet_id}: auditTrail amounts {trail}, expected {amounts}")

        self._in_parallel(self._model.ids(), read)
        held, expected = sum(balances.values()), self._model.total()
        if len(balances) == len(self._model.ids()) and held != expected:
            self._report.problem(f"money is not conserved: the wallets hold {held}, the model {expected}")

    # ------------------------------------------------------------ soon

    def _await_read_model(self, connection, deadline):
        while True:
            found = self._read_model(connection)
            wrong = [wallet_id for wallet_id in self._model.ids()
                     if found.get(wallet_id) != [self._model.balance(wallet_id)]]
            if not wrong or time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        for wallet_id in wrong:
            listed = ", ".join(map(str, found.get(wallet_id, []))) or "not listed"
            self._report.problem(f"read model of {wallet_id} when the time to drain was over: {listed}, "
                                 f"expected {self._model.balance(wallet_id)}")
        return not wrong

    def _read_model(self, connection):
        """The balances listed for each of our wallets (exactly one each, if all is well), over all pages."""
        ours = set(self._model.ids())
        found, path, seen = {}, "/wallets?limit=1000", set()
        while path:
            require(path not in seen, f"the pages of GET /wallets go round in a circle at {path}")
            seen.add(path)
            answer = connection.get(path)
            require(answer.status == 200, f"GET {path} answered {answer.label}")
            require(isinstance(answer.body, list), f"GET {path} is no bare array")
            require(len(answer.body) <= 1000, f"GET {path} answered {len(answer.body)} wallets")
            for wallet in answer.body:
                wallet_answer(wallet)
                if wallet["id"] in ours:
                    found.setdefault(wallet["id"], []).append(wallet["balance"])
            path = next_page(answer)
        return found

    def _await_ledger(self, deadline):
        pending = self._model.ids()
        while True:
            wrong = {}

            def read(connection, wallet_id):
                answer = connection.get(ledger_path(wallet_id, "/summary"))
                # Until a look has succeeded the wallet counts as wrong.
                wrong[wallet_id] = answer.label
                require(answer.status == 200, f"GET summary of {wallet_id} answered {answer.label}")
                summary = answer.body
                summary_answer(summary, wallet_id)
                credits, balance = self._model.credits(wallet_id), self._model.balance(wallet_id)
                found = (summary["totalCredits"], summary["totalDebits"], summary["transactionCount"])
                expected = (credits, credits - balance, len(self._model.history(wallet_id)))
                if found == expected:
                    del wrong[wallet_id]
                else:
                    wrong[wallet_id] = (f"credits, debits, transactions are {[str(n) for n in found]}, "
                                        f"expected {[str(n) for n in expected]}")

            asked = self._in_parallel(pending, read)
            pending = sorted(wrong)
            if not asked or not pending or time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        for wallet_id in pending:
            self._report.problem(f"ledger of {wallet_id} when the time to drain was over: {wrong[wallet_id]}")
        return asked and not pending

    # ------------------------------------------------------------ every row

    def _read_whole_ledger(self, connection, wallet_id):
        def page(**query):
            answer = connection.get(ledger_path(wallet_id, **query))
            require(answer.status == 200, f"GET ledger of {wallet_id} {query} answered {answer.label}")
            return transactions_answer(answer.body, self._currency, wallet_id, query.get("limit", DEFAULT_PAGE))

        rows = []
        while True:
            more = page(limit=PAGE, offset=len(rows))
            rows.extend(more)
            if not more:
                break
        require(page() == rows[:DEFAULT_PAGE],
                f"ledger of {wallet_id}: the page without limit and offset is not the newest {DEFAULT_PAGE} rows")
        require(len({row["id"] for row in rows}) == len(rows), f"ledger of {wallet_id}: a row is on two pages")

        history = self._model.history(wallet_id)
        require(len(rows) == len(history), f"ledger of {wallet_id}: {len(rows)} rows, expected {len(history)}")
        balance = Decimal(0)
        # The rows come newest first; told from the oldest on, each begins where the one before ended.
        for row, effect in zip(reversed(rows), history):
            what = f"ledger of {wallet_id}: the row of version {effect.version}"
            money = [money_from_text(row[field], self._currency, what)
                     for field in ("balanceBefore", "amount", "balanceAfter")]
            expected = [balance, abs(effect.delta), balance + effect.delta]
            require(money == expected, f"{what}: before, amount, after are {[str(m) for m in money]}, "
                                       f"expected {[str(m) for m in expected]}")
            balance = money[2]
            require(row["transactionType"] == effect.kind, f"{what}: {row['transactionType']}, not {effect.kind}")
            require(row["relatedWalletId"] == effect.related,
                    f"{what}: relatedWalletId {row['relatedWalletId']!r}, expected {effect.related!r}")
            if effect.description:
                require(row["description"] == effect.description, f"{what}: description {row['description']!r}")
            if effect.reference:
                require(row["referenceId"] == effect.reference,
                        f"{what}: referenceId {row['referenceId']!r}, the answer's transferId {effect.reference!r}")
                self._read_both_legs(connection, row)
        require(balance == self._model.balance(wallet_id), f"ledger of {wallet_id}: its rows add up to {balance}")

    def _read_both_legs(self, connection, row):
        what = f"GET /ledger/reference/{row['referenceId']}"
        answer = connection.get(reference_path(row["referenceId"]))
        require(answer.status == 200, f"{what} answered {answer.label}")
        legs = transactions_answer(answer.body, self._currency)
        require(sorted(leg["transactionType"] for leg in legs) == ["TRANSFER_IN", "TRANSFER_OUT"],
                f"{what} is no pair of legs: {legs}")
        first, second = legs
        require(row in legs, f"{what} lacks the row of {row['walletId']}")
        require(first["walletId"] == second["relatedWalletId"] and second["walletId"] == first["relatedWalletId"],
                f"{what}: the legs do not name each other's wallet")
        require(first["amount"] == second["amount"], f"{what}: the legs differ in amount")
        require(first["referenceId"] == second["referenceId"], f"{what}: the legs differ in referenceId")
