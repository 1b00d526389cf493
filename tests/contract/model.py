"""What the client itself knows: every effect that was acknowledged to it, and nothing else.

A wallet's balance is its opening plus its acknowledged credits minus its acknowledged debits, whatever
order they took place in. As each answer also carries the wallet's `version`, the answers of all threads
put in that order must tell one gapless story; `Model.complaints` checks that they do.
"""

import threading


class Effect:
    """One acknowledged entry of one wallet. `delta` is signed; `reference` is the transfer's id."""

    def __init__(self, kind, delta, version, balance, description=None, related=None, reference=None):
        self.kind, self.delta, self.version, self.balance = kind, delta, version, balance
        self.description, self.related, self.reference = description, related, reference


class _Wallet:
    def __init__(self):
        self.latest = 0  # the highest version in any answer so far
        self.effects = []
        self.observed = []  # (version, balance) of reads
        self.rejections = []  # (amount, first version, last version it can have been decided at)


class Model:
    """Shared by all threads."""

    def __init__(self, workers):
        self._lock = threading.Lock()
        self._workers = workers
        self._wallets = {}

    def open(self, wallet_id, effect):
        with self._lock:
            self._wallets[wallet_id] = _Wallet()
        self.apply(wallet_id, effect)

    def ids(self):
        return sorted(self._wallets)

    def latest(self, wallet_id):
        """The version that any later answer about this wallet must at least have."""
        with self._lock:
            wallet = self._wallets.get(wallet_id)
            return wallet.latest if wallet else 0

    def apply(self, wallet_id, effect):
        with self._lock:
            wallet = self._wallets[wallet_id]
            wallet.effects.append(effect)
            wallet.latest = max(wallet.latest, effect.version)

    def observe(self, wallet_id, version, balance):
        with self._lock:
            wallet = self._wallets[wallet_id]
            wallet.observed.append((version, balance))
            wallet.latest = max(wallet.latest, version)

    def reject(self, wallet_id, amount, latest_when_sent):
        """A command was refused for want of money."""
        with self._lock:
            wallet = self._wallets[wallet_id]
            # It was decided no earlier than what was known when it was sent, and no later than what is
            # known now plus one entry for each other thread's command whose answer is still on its way.
            wallet.rejections.append((amount, latest_when_sent, wallet.latest + self._workers - 1))

    def balance(self, wallet_id):
        return sum(effect.delta for effect in self._wallets[wallet_id].effects)

    def credits(self, wallet_id):
        return sum(effect.delta for effect in self._wallets[wallet_id].effects if effect.delta > 0)

    def history(self, wallet_id):
        """The wallet's effects, oldest first."""
        return sorted(self._wallets[wallet_id].effects, key=lambda effect: effect.version)

    def total(self):
        """All the money there is: opened and credited, less debited. A transfer makes and loses none."""
        return sum(
            effect.delta for wallet in self._wallets.values() for effect in wallet.effects
            if effect.kind in ("CREDIT", "DEBIT")
        )

    def complaints(self):
        """Every way in which the answers contradict each other, as text. Call it when all threads are done."""
        for wallet_id in self.ids():
            wallet = self._wallets[wallet_id]
            balances = {0: 0}  # version 0 is the creation, and version 1 the opening balance
            for expected_version, effect in enumerate(self.history(wallet_id), start=1):
                if effect.version != expected_version:
                    yield (f"{wallet_id}: the answers hold {len(wallet.effects)} effects, but version "
                           f"{effect.version} where {expected_version} is due: one was lost, doubled or not told")
                    break
                balances[effect.version] = balances[effect.version - 1] + effect.delta
                if effect.balance != balances[effect.version]:
                    yield (f"{wallet_id}: {effect.kind} {abs(effect.delta)} answered balance {effect.balance} "
                           f"at version {effect.version}, expected {balances[effect.version]}")
                    break
            else:
                yield from self._read_complaints(wallet_id, wallet, balances)

    @staticmethod
    def _read_complaints(wallet_id, wallet, balances):
        for version, balance in wallet.observed:
            if balances.get(version) != balance:
                yield f"{wallet_id}: read balance {balance} at version {version}, expected {balances.get(version)}"
        for amount, first, last in wallet.rejections:
            possible = [balances[version] for version in range(first, last + 1) if version in balances]
            if possible and min(possible) >= amount:
                yield (f"{wallet_id}: {amount} was refused as INSUFFICIENT_FUNDS, but the balance "
                       f"was never below {min(possible)} meanwhile")
