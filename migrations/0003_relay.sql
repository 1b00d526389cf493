-- What the relay is doing, for those who look, and what it has withheld from the topic.

-- `state`: publishing, refilling (a topic that lacks what was published before), waiting (for the broker), blocked (somebody has
-- to do something), absent (ended in good order; one that was killed cannot say so, and is told by `seen_at` and its lock).
-- `since` is when the state began, `seen_at` when the relay was last at work, whatever its state.
CREATE TABLE relay_status (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    state     text COLLATE "C" NOT NULL CHECK (state IN ('publishing', 'refilling', 'waiting', 'blocked', 'absent')),
    reason    text,
    holder    text,
    since     timestamptz NOT NULL,
    seen_at   timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO relay_status (state, reason, since, seen_at) VALUES ('absent', 'no relay has run yet', now(), now());

-- Wallets whose events do not go to the topic, because one of them is larger than the topic takes: that one, and all later ones
-- behind it, so that consumers never get a wallet's events with one left out. `position` is the first that was withheld. Once
-- they fit they are published, `published_to` is the last one that was, and the row stays: in the topic those records lie behind
-- later positions.
CREATE TABLE relay_withheld (
    wallet_id    text COLLATE "C" NOT NULL,
    position     bigint NOT NULL,
    partition    integer NOT NULL,
    record_bytes bigint NOT NULL,
    reason       text NOT NULL,
    withheld_at  timestamptz NOT NULL DEFAULT now(),
    published_to bigint,
    published_at timestamptz,
    PRIMARY KEY (wallet_id, position)
);
-- Those that still are: one row a wallet.
CREATE UNIQUE INDEX relay_withheld_now ON relay_withheld (wallet_id) WHERE published_to IS NULL;
