#!/usr/bin/env python3
"""Can the client be trusted? It must pass against a right service, and fail against each of many wrong ones.

The service here is a fake in memory: enough of the contract for the client, and one fault at a time.

    python3 tests/contract/selftest.py
"""

import collections
import contextlib
import datetime
import io
import itertools
import json
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import client

PROJECTION_LAG = 0.3  # seconds that read model and ledger are behind, which the client must bear
STALE_BY = 0.05  # seconds that the fault "stale reads" is behind
FAULTY_REQUEST = 25  # the faults that strike once strike at this one of their kind

# Each fault, and words of the problem that the client must report for it.
FAULTS = {
    "a credit is answered and lost": "GET wallet",
    "a transfer loses its second leg": "GET wallet",
    "reads are stale": "was answered",
    "a 500 leaks": "answered 500 with Content-Type",
    "a 500 in the contract's shape": "answered 500 INTERNAL",
    "a rejection without reason": "was never below",
    "a replay moves money again": "GET wallet",
    "a key is ignored": "Idempotency-Replayed",
    "the ledger lacks a row": "ledger of",
    "the ledger's row has a wrong balance": "before, amount, after",
    "the ledger writes amounts as numbers": "no text amount",
    "the legs have two references": "referenceId",
    "the read model lacks a wallet": "read model",
    "the read model is a cent off": "read model",
    "a page is not linked": "read model",
    "a version is a text": "version",
    "a field is in snake case": "owner_id",
    "the correlation id is another": "X-Correlation-Id",
    "the answer is text/plain": "Content-Type",
    "the connection breaks": "RemoteDisconnected",
}

Row = collections.namedtuple("Row", "at kind delta before after related reference description id created")


class Refusal(Exception):
    def __init__(self, status, error, code):
        super().__init__(code)
        self.status, self.error, self.code = status, error, code


def now_text():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Bank:
    """The fake's state: the rows of each wallet. Every read is a fold over them, as of some time."""

    def __init__(self, fault):
        self.fault, self.lock = fault, threading.RLock()
        self.owners, self.rows, self.answers = {}, {}, {}
        self.counted, self.ids = collections.Counter(), itertools.count(1)

    def strikes(self, fault):
        """True once, at the 25th time that this fault could strike."""
        if self.fault != fault:
            return False
        self.counted[fault] += 1
        return self.counted[fault] == FAULTY_REQUEST

    def seen(self, wallet, behind=0.0):
        return [row for row in self.rows[wallet] if row.at <= time.monotonic() - behind]

    def wallet(self, wallet, rows, extra=None):
        owner, created = self.owners[wallet]
        body = {"id": wallet, "ownerId": owner, "currency": "USD", "balance": rows[-1].after if rows else 0,
                "status": "active", "version": len(rows), "createdAt": created, "updatedAt": now_text()}
        if self.fault == "a version is a text":
            body["version"] = str(body["version"])
        if self.fault == "a field is in snake case":
            body["owner_id"] = body.pop("ownerId")
        return {**body, **(extra or {})}

    def append(self, wallet, kind, delta, description=None, related=None, reference=None, lost=False):
        rows = self.rows[wallet]
        before = rows[-1].after if rows else 0
        row = Row(time.monotonic(), kind, delta, before, before + delta, related, reference, description,
                  f"row-{next(self.ids)}", now_text())
        answer = self.wallet(wallet, rows + [row])
        if not lost:
            rows.append(row)
        return answer

    # -------------------------------------------------------- commands

    def command(self, path, body, key):
        """Status, body, replayed."""
        with self.lock:
            known = self.answers.get((path, key)) if self.fault != "a key is ignored" else None
            if known:
                if self.fault == "a replay moves money again":
                    self.execute(path, body)
                return 201, known, True
            answer = self.execute(path, body)
            if key:
                self.answers[path, key] = answer
            return 201, answer, False

    def execute(self, path, body):
        _, *parts = path.strip("/").split("/")
        if not parts:
            wallet = body["walletId"]
            if wallet in self.rows:
                if self.fault not in ("a replay moves money again", "a key is ignored"):
                    raise Refusal(409, "Conflict", "WALLET_EXISTS")
            else:
                self.owners[wallet], self.rows[wallet] = (body["ownerId"], now_text()), []
            return self.append(wallet, "CREDIT", int(body["initialBalance"]))
        wallet, action = parts
        amount, description = int(body["amount"]), body.get("description")
        if action == "credit":
            lost = self.strikes("a credit is answered and lost")
            return self.append(wallet, "CREDIT", amount, description, lost=lost)
        if self.rows[wallet][-1].after < amount or self.strikes("a rejection without reason"):
            raise Refusal(400, "Bad Request", "INSUFFICIENT_FUNDS")
        if action == "debit":
            return self.append(wallet, "DEBIT", -amount, description)
        other, transfer = body["toWalletId"], f"transfer-{next(self.ids)}"
        second = transfer + "-in" if self.fault == "the legs have two references" else transfer
        return {
            "fromWallet": self.append(wallet, "TRANSFER_OUT", -amount, description, other, transfer),
            "toWallet": self.append(other, "TRANSFER_IN", amount, description, wallet, second,
                                    lost=self.strikes("a transfer loses its second leg")),
            "transferId": transfer,
        }

    # -------------------------------------------------------- reads

    def transaction(self, wallet, row):
        after = row.after + (1 if self.fault == "the ledger's row has a wrong balance" else 0)
        amount = abs(row.delta) if self.fault == "the ledger writes amounts as numbers" else f"{abs(row.delta)}.00"
        return {"id": row.id, "walletId": wallet, "transactionType": row.kind, "amount": amount,
                "balanceBefore": f"{row.before}.00", "balanceAfter": f"{after}.00", "description": row.description,
                "referenceId": row.reference, "relatedWalletId": row.related, "metadata": None,
                "createdAt": row.created}

    def ledger(self, wallet):
        """The projected rows, oldest first."""
        rows = self.seen(wallet, PROJECTION_LAG)
        if self.fault == "the ledger lacks a row" and wallet.endswith("0003"):
            rows = rows[:-1]
        return rows

    def read(self, path, query):
        """Body and Link header."""
        with self.lock:
            parts = path.strip("/").split("/")
            if parts == ["wallets"]:
                return self.list_wallets(int(query["limit"]), int(query.get("cursor", 0)))
            if parts[0] == "wallets":
                rows = self.seen(parts[1], STALE_BY if self.fault == "reads are stale" else 0)
                trail = [{"type": "WalletCreated", "occurredAt": self.owners[parts[1]][1]}]
                trail += [{"type": "Moved", "amount": abs(row.delta), "occurredAt": row.created} for row in rows]
                return self.wallet(parts[1], rows, {"auditTrail": trail[-100:]}), None
            if parts[1] == "reference":
                legs = [self.transaction(wallet, row) for wallet in self.rows for row in self.ledger(wallet)
                        if row.reference == parts[2]]
                return {"count": len(legs), "transactions": legs}, None
            rows = self.ledger(parts[2])
            if parts[-1] == "summary":
                return {"walletId": parts[2], "totalCredits": sum(row.delta for row in rows if row.delta > 0),
                        "totalDebits": -sum(row.delta for row in rows if row.delta < 0),
                        "transactionCount": len(rows), "lastTransaction": rows[-1].created if rows else None}, None
            limit, offset = int(query.get("limit", 50)), int(query.get("offset", 0))
            page = [self.transaction(parts[2], row) for row in rows[::-1][offset:offset + limit]]
            return {"walletId": parts[2], "count": len(page), "transactions": page}, None

    def list_wallets(self, limit, cursor):
        limit = min(limit, 7)  # pages, though there are few wallets
        listed = [self.wallet(wallet, self.seen(wallet, PROJECTION_LAG)) for wallet in sorted(self.rows)]
        if self.fault == "the read model lacks a wallet":
            del listed[2]
        if self.fault == "the read model is a cent off":
            listed[2]["balance"] += 0.01
        more = cursor + limit < len(listed) and self.fault != "a page is not linked"
        link = f'</wallets?limit={limit}&cursor={cursor + limit}>; rel="next"' if more else None
        return listed[cursor:cursor + limit], link


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        body, link = self.server.bank.read(url.path, dict(urllib.parse.parse_qsl(url.query)))
        self.answer(200, body, {"Link": link} if link else {})

    def do_POST(self):
        bank = self.server.bank
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if bank.strikes("the connection breaks"):
            self.close_connection = True
            return
        if bank.strikes("a 500 leaks"):
            return self.answer(500, "<h1>panicked</h1>", {"Content-Type": "text/html"})
        if bank.strikes("a 500 in the contract's shape"):
            return self.refuse(Refusal(500, "Internal Server Error", "INTERNAL"))
        try:
            status, answer, replayed = bank.command(self.path, body, self.headers.get("Idempotency-Key"))
        except Refusal as refusal:
            return self.refuse(refusal)
        self.answer(status, answer, {"Idempotency-Replayed": "true"} if replayed else {})

    def refuse(self, refusal):
        self.answer(refusal.status, {"statusCode": refusal.status, "error": refusal.error,
                                     "message": "refused", "code": refusal.code}, {})

    def answer(self, status, body, headers):
        fault = self.server.bank.fault
        correlation = self.headers.get("X-Correlation-Id", "made-here")
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/plain" if fault == "the answer is text/plain" else "application/json",
            "Content-Length": str(len(raw)),
            "X-Correlation-Id": "mine" if fault == "the correlation id is another" else correlation,
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def run_against(fault, idempotent):
    """The client's exit code, its result and the text of its problems."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.bank = Bank(fault)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    words = ["--url", f"http://127.0.0.1:{server.server_port}", "--wallets", "20", "--operations", "600",
             "--workers", "5", "--seed", "1", "--drain-timeout", "1" if fault else "10", "--json"]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            exit_code = client.main(words + (["--idempotent"] if idempotent else []))
    finally:
        server.shutdown()
        server.server_close()
    result = json.loads(output.getvalue())
    return exit_code, result, "\n".join(result["firstProblems"])


def main():
    wrong = 0

    def verdict(right, name, detail):
        nonlocal wrong
        wrong += not right
        print(f"{'ok  ' if right else 'FAIL'} {name}" + ("" if right else f"\n{detail}"))

    for idempotent in (False, True):
        exit_code, result, problems = run_against(None, idempotent)
        rejected = sum(row["rejected"] for row in result["kinds"].values())
        used = rejected > 0 and result["kinds"]["read"]["ok"] > 0 and (result["replays"] > 0) == idempotent
        verdict(exit_code == 0 and used, f"passes: a right service{', idempotent' * idempotent}", result)
    for fault, words in FAULTS.items():
        exit_code, result, problems = run_against(fault, idempotent=True)
        verdict(exit_code == 1 and not result["ok"] and words in problems, f"fails:  {fault}", f"exit {exit_code}: {problems}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
