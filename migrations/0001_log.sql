-- The log: one order of events, the one source of truth, and the outbox in one.

-- The position of the last event. Each append moves it from the value it expects, in the same statement that inserts
-- the events; the row's lock is held to the commit, so positions become visible in order and without a gap.
CREATE TABLE log_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    position  bigint NOT NULL CHECK (position >= 0)
) WITH (fillfactor = 50);
INSERT INTO log_head (position) VALUES (0);

-- One stream a wallet. Its number is the position of its first event: unique, growing, and small in the index below.
CREATE TABLE streams (
    stream_id bigint PRIMARY KEY,
    name      text COLLATE "C" NOT NULL UNIQUE
);

-- The payload and metadata are JSON in bytes: they are written once and passed on unread (bytea costs less than jsonb here).
CREATE TABLE events (
    position      bigint PRIMARY KEY,
    stream_id     bigint NOT NULL,
    revision      bigint NOT NULL CHECK (revision >= 0),
    event_id      uuid NOT NULL,
    event_type    text COLLATE "C" NOT NULL,
    event_version integer NOT NULL,
    recorded_at   timestamptz NOT NULL,
    payload       bytea NOT NULL,
    metadata      bytea NOT NULL,
    UNIQUE (stream_id, revision)
);

-- Only a cache: delete them all and nothing changes but the speed of loading.
CREATE TABLE snapshots (
    stream_id       bigint PRIMARY KEY,
    revision        bigint NOT NULL,
    snapshot_format integer NOT NULL,
    state           bytea NOT NULL
);

-- A key counts per wallet and kind of command; `position` is the first event of the command that it stands for, and
-- `event_count` how many it made: the answer is made again from them. Kept 24 hours.
CREATE TABLE idempotency_keys (
    wallet_id    text COLLATE "C" NOT NULL,
    command_kind text COLLATE "C" NOT NULL,
    key          text COLLATE "C" NOT NULL,
    fingerprint  bytea NOT NULL,
    position     bigint NOT NULL,
    event_count  integer NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (wallet_id, command_kind, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys USING brin (created_at);

-- How far the relay has published: everything up to `position` was acknowledged by the broker.
CREATE TABLE relay_checkpoint (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    position  bigint NOT NULL CHECK (position >= 0),
    moved_at  timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO relay_checkpoint (position, moved_at) VALUES (0, now());

-- The last record that the broker acknowledged in each partition. A topic whose end disagrees with this is not the
-- topic that we filled: created again, another cluster's, or restored from the past.
CREATE TABLE relay_tails (
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    position    bigint NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

-- What operators ask: SELECT count(*), min(created_at) FROM outbox WHERE processed_at IS NULL.
-- Two arms, so that this question reads only what is pending. For published events `processed_at` is the time at which the
-- relay's checkpoint last moved: they were published then or earlier.
CREATE VIEW outbox AS
SELECT e.position, e.event_id, s.name AS aggregate_id, e.revision, e.event_type, e.event_version,
       convert_from(e.payload, 'UTF8')::json AS payload, convert_from(e.metadata, 'UTF8')::json AS metadata,
       e.recorded_at AS created_at, NULL::timestamptz AS processed_at
  FROM relay_checkpoint r JOIN events e ON e.position > r.position JOIN streams s USING (stream_id)
UNION ALL
SELECT e.position, e.event_id, s.name, e.revision, e.event_type, e.event_version,
       convert_from(e.payload, 'UTF8')::json, convert_from(e.metadata, 'UTF8')::json,
       e.recorded_at, r.moved_at
  FROM relay_checkpoint r JOIN events e ON e.position <= r.position JOIN streams s USING (stream_id);
