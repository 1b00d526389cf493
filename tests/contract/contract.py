"""The wire: how to speak to a wallet service, and what every answer must look like.

Nothing here knows how the service is built. Each `*_answer` function takes the parsed body of one
route's answer and raises `ContractViolation` when a field is missing, unknown or of the wrong kind.

Money: wallets and summaries carry JSON numbers, ledger rows carry text with exactly the currency's
digits ("10.00" in USD, "10" in JPY). Numbers are parsed with `parse_float=Decimal`, so no answer ever
passes through a binary float here.
"""

import http.client
import itertools
import json
import re
import time
import urllib.parse
from decimal import Decimal

# Digits after the point, by ISO 4217; what is not listed has two.
OTHER_DIGITS = {"JPY": 0, "KRW": 0, "BHD": 3, "KWD": 3}

# Which `code` may stand in an error of which status, and the reason phrase that goes with it.
ERROR_CODES = {
    400: ("Bad Request", {"INVALID_AMOUNT", "INSUFFICIENT_FUNDS", "VALIDATION"}),
    404: ("Not Found", {"WALLET_NOT_FOUND"}),
    409: ("Conflict", {"WALLET_EXISTS"}),
    422: (None, {"IDEMPOTENCY_KEY_REUSED"}),  # "Unprocessable Entity" was renamed "… Content"
}

RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
AUDIT_TRAIL_BOUND = 100
WALLET_FIELDS = {"id", "ownerId", "currency", "balance", "status", "version", "createdAt", "updatedAt"}
TRANSACTION_FIELDS = {
    "id", "walletId", "transactionType", "amount", "balanceBefore", "balanceAfter", "description",
    "referenceId", "relatedWalletId", "metadata", "createdAt",
}
TRANSACTION_TYPES = {"CREDIT", "DEBIT", "TRANSFER_OUT", "TRANSFER_IN"}


class ContractViolation(Exception):
    """The service answered, but not as the contract says."""


def require(condition, complaint):
    if not condition:
        raise ContractViolation(complaint)


# ---------------------------------------------------------------- requests


class Answer:
    """One answer, its body already parsed; `milliseconds` from the first byte sent to the last received."""

    def __init__(self, status, headers, body, milliseconds):
        self.status, self.headers, self.body, self.milliseconds = status, headers, body, milliseconds

    @property
    def code(self):
        """The stable `code` of an error, None for anything else."""
        return self.body.get("code") if isinstance(self.body, dict) and self.status >= 400 else None

    @property
    def label(self):
        return f"{self.status} {self.code}" if self.code else str(self.status)

    @property
    def replayed(self):
        """True when the service says that it answers from an idempotency key it already knows."""
        return self.headers.get("Idempotency-Replayed") == "true"


class Connection:
    """One keep-alive connection. Not for sharing: every thread opens its own."""

    _numbers = itertools.count(1)

    def __init__(self, host, port, timeout_seconds, run):
        self._http = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
        self._name = f"{run}-{next(self._numbers)}"
        self._sent = 0

    def get(self, path):
        try:
            return self._send("GET", path, None, {})
        except ConnectionError:
            # A server may close a connection that was idle. Reading again is harmless; a POST is never
            # repeated without being asked to.
            return self._send("GET", path, None, {})

    def post(self, path, body, idempotency_key=None):
        headers = {"Content-Type": "application/json"}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        return self._send("POST", path, json.dumps(body).encode(), headers)

    def close(self):
        self._http.close()

    def _send(self, method, path, body, headers):
        self._sent += 1
        # A correlation id that was sent comes back as it is; where none was sent the service makes one.
        correlation = None if self._sent % 10 == 0 else f"{self._name}-{self._sent}"
        if correlation:
            headers = {**headers, "X-Correlation-Id": correlation}
        started = time.perf_counter()
        try:
            self._http.request(method, path, body, headers)
            response = self._http.getresponse()
            raw = response.read()
        except Exception:
            self._http.close()  # the next request opens a new one
            raise
        milliseconds = (time.perf_counter() - started) * 1000
        where = f"{method} {path} answered {response.status}"
        echoed = response.headers.get("X-Correlation-Id")
        require(echoed, f"{where} without X-Correlation-Id")
        require(correlation in (None, echoed), f"{where}: X-Correlation-Id {echoed!r}, sent {correlation!r}")
        content_type = response.headers.get("Content-Type", "")
        require(content_type.split(";")[0].strip() == "application/json",
                f"{where} with Content-Type {content_type!r}: {raw[:200]!r}")
        answer = Answer(response.status, response.headers, parse_json(raw, where), milliseconds)
        if answer.status >= 400:
            error_answer(answer, where)
        return answer


def parse_json(raw, where):
    def refuse(constant):
        raise ContractViolation(f"{where}: {constant} is no JSON number")

    try:
        return json.loads(raw, parse_float=Decimal, parse_constant=refuse)
    except ValueError as error:
        raise ContractViolation(f"{where}: body is not JSON ({error}): {raw[:200]!r}") from error


def next_page(answer):
    """The path of the next page from `Link: <…>; rel="next"` (absolute or relative), or None."""
    for header in answer.headers.get_all("Link", []):
        for target, parameters in re.findall(r"<([^>]*)>([^<]*)", header):
            if re.search(r';\s*rel="?next"?\s*(;|,|$)', parameters):
                parts = urllib.parse.urlsplit(urllib.parse.urljoin("/wallets", target))
                return f"{parts.path}?{parts.query}"
    return None


def wallet_path(wallet_id, action=""):
    return f"/wallets/{urllib.parse.quote(wallet_id, safe='')}{action}"


def ledger_path(wallet_id, action="", **query):
    path = f"/ledger/wallet/{urllib.parse.quote(wallet_id, safe='')}{action}"
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path


def reference_path(reference_id):
    return f"/ledger/reference/{urllib.parse.quote(reference_id, safe='')}"


# ---------------------------------------------------------------- shapes


def has_exactly(value, fields, what, optional=frozenset()):
    """An object with these (camelCase) fields, no other, the `optional` ones there or not."""
    require(isinstance(value, dict), f"{what} is no object: {value!r}")
    missing, unknown = fields - value.keys(), value.keys() - fields - optional
    require(not missing, f"{what} lacks {sorted(missing)}: {value!r}")
    require(not unknown, f"{what} has fields the contract does not name, {sorted(unknown)}: {value!r}")


def is_text(value, what):
    require(isinstance(value, str) and value, f"{what} is no text: {value!r}")


def is_text_or_null(value, what):
    require(value is None or isinstance(value, str), f"{what} is neither text nor null: {value!r}")


def is_count(value, what):
    require(type(value) is int and value >= 0, f"{what} is no whole number from zero: {value!r}")


def is_time(value, what):
    require(isinstance(value, str) and RFC3339_UTC.fullmatch(value), f"{what} is no RFC 3339 UTC time: {value!r}")


def is_money_number(value, what):
    require(type(value) in (int, Decimal) and value >= 0, f"{what} is no JSON number from zero: {value!r}")


def money_from_text(value, currency, what):
    """Reads a ledger amount: text, with exactly as many decimals as the currency has."""
    digits = OTHER_DIGITS.get(currency, 2)
    pattern = r"(0|[1-9]\d*)" + (rf"\.\d{{{digits}}}" if digits else "")
    require(isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII),
            f"{what} is no text amount with {digits} decimals: {value!r}")
    return Decimal(value)


def error_answer(answer, where):
    """`{statusCode, error, message, code}`; a 503 also says when to come back."""
    body = answer.body
    has_exactly(body, {"statusCode", "error", "message", "code"}, f"{where}: the error")
    require(body["statusCode"] == answer.status, f"{where}: statusCode is {body['statusCode']!r}")
    for field in ("error", "message", "code"):
        is_text(body[field], f"{where}: {field}")
    phrase, codes = ERROR_CODES.get(answer.status, (None, None))
    require(phrase in (None, body["error"]), f"{where}: error is {body['error']!r}, not {phrase!r}")
    require(codes is None or body["code"] in codes, f"{where}: code {body['code']!r} is not documented")
    require(answer.status != 503 or answer.headers.get("Retry-After"), f"{where} without Retry-After")


def wallet_answer(wallet, expected_id=None, currency=None, with_trail=False):
    """A wallet; the answer to GET /wallets/{id} has its `auditTrail` as well."""
    what = f"wallet {expected_id}" if expected_id else "wallet"
    has_exactly(wallet, WALLET_FIELDS | ({"auditTrail"} if with_trail else set()), what)
    for field in ("id", "ownerId", "currency", "status"):
        is_text(wallet[field], f"{what}: {field}")
    require(expected_id in (None, wallet["id"]), f"{what}: answered for {wallet['id']!r}")
    require(currency in (None, wallet["currency"]), f"{what}: currency {wallet['currency']!r}, opened in {currency}")
    is_money_number(wallet["balance"], f"{what}: balance")
    is_count(wallet["version"], f"{what}: version")
    is_time(wallet["createdAt"], f"{what}: createdAt")
    is_time(wallet["updatedAt"], f"{what}: updatedAt")
    if with_trail:
        trail = wallet["auditTrail"]
        require(isinstance(trail, list), f"{what}: auditTrail is no array")
        # Versions count from zero, so a wallet at version 1 has two events.
        events = min(AUDIT_TRAIL_BOUND, wallet["version"] + 1)
        require(len(trail) == events, f"{what}: auditTrail has {len(trail)} events, not the newest {events}")
        for event in trail:
            has_exactly(event, {"type", "occurredAt"}, f"{what}: event", optional={"amount", "description"})
            is_text(event["type"], f"{what}: event type")
            is_time(event["occurredAt"], f"{what}: occurredAt")
            if event.get("amount") is not None:
                is_money_number(event["amount"], f"{what}: event amount")
            is_text_or_null(event.get("description"), f"{what}: event description")


def transfer_answer(body, from_id, to_id, currency):
    has_exactly(body, {"fromWallet", "toWallet", "transferId"}, "transfer")
    wallet_answer(body["fromWallet"], from_id, currency)
    wallet_answer(body["toWallet"], to_id, currency)
    is_text(body["transferId"], "transferId")


def summary_answer(summary, wallet_id):
    what = f"summary of {wallet_id}"
    has_exactly(summary, {"walletId", "totalCredits", "totalDebits", "transactionCount", "lastTransaction"}, what)
    require(summary["walletId"] == wallet_id, f"{what}: answered for {summary['walletId']!r}")
    is_money_number(summary["totalCredits"], f"{what}: totalCredits")
    is_money_number(summary["totalDebits"], f"{what}: totalDebits")
    is_count(summary["transactionCount"], f"{what}: transactionCount")
    # The contract names the field and not its kind: a row, a time and null are all taken.
    last = summary["lastTransaction"]
    if isinstance(last, dict):
        has_exactly(last, TRANSACTION_FIELDS, f"{what}: lastTransaction")
    elif last is not None:
        is_time(last, f"{what}: lastTransaction")


def transactions_answer(body, currency, wallet_id=None, limit=None):
    """A list of ledger rows; with `walletId` beside it on the route of one wallet. Returns the rows."""
    what = f"ledger of {wallet_id}" if wallet_id else "ledger list"
    has_exactly(body, {"count", "transactions"} | ({"walletId"} if wallet_id else set()), what)
    require(wallet_id in (None, body.get("walletId")), f"{what}: answered for {body.get('walletId')!r}")
    rows = body["transactions"]
    require(isinstance(rows, list), f"{what}: transactions is no array")
    is_count(body["count"], f"{what}: count")
    require(body["count"] >= len(rows), f"{what}: count {body['count']} for {len(rows)} rows")
    require(limit is None or len(rows) <= limit, f"{what}: {len(rows)} rows for limit={limit}")
    for row in rows:
        has_exactly(row, TRANSACTION_FIELDS, f"{what}: row")
        is_text(row["id"], f"{what}: row id")
        is_text(row["walletId"], f"{what}: row walletId")
        require(wallet_id in (None, row["walletId"]), f"{what}: holds a row of {row['walletId']!r}")
        require(row["transactionType"] in TRANSACTION_TYPES, f"{what}: type {row['transactionType']!r}")
        for field in ("amount", "balanceBefore", "balanceAfter"):
            money_from_text(row[field], currency, f"{what}: {field}")
        for field in ("description", "referenceId", "relatedWalletId"):
            is_text_or_null(row[field], f"{what}: {field}")
        is_time(row["createdAt"], f"{what}: createdAt")
    return rows
