-- Dead letters: what is copied to `wallet-events-dlq`, what operators did with the rest, and how many there may be.

-- When the copy in `wallet-events-dlq` was acknowledged; null until then, and again after a further failure.
ALTER TABLE parked_records ADD COLUMN copied_at timestamptz;
CREATE INDEX parked_records_uncopied ON parked_records (parked_id) WHERE copied_at IS NULL;

-- A partition that is paused because its group has as many parked records as it may: since when. Its next move ends that.
ALTER TABLE projection_checkpoints ADD COLUMN paused_since timestamptz;

-- How many parked records a group may have, as the last of its runners was told.
CREATE TABLE parked_bounds (
    projection text COLLATE "C" PRIMARY KEY,
    parked_max bigint NOT NULL CHECK (parked_max > 0),
    noted_at   timestamptz NOT NULL
);

-- Who has replayed or discarded what, when and why: a row for each wallet (null: records of no wallet) of each command, written and
-- brought up to date in the very transactions that do it. `error` says what it stopped at, `remaining` how many were left parked then.
CREATE TABLE dead_letter_actions (
    sequence       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action_id      uuid NOT NULL,
    action         text COLLATE "C" NOT NULL CHECK (action IN ('replay', 'discard')),
    projection     text COLLATE "C" NOT NULL,
    wallet_id      text COLLATE "C",
    done_by        text NOT NULL,
    reason         text,
    begun_at       timestamptz NOT NULL,
    ended_at       timestamptz NOT NULL,
    records        bigint NOT NULL,
    first_position bigint,
    last_position  bigint,
    remaining      bigint NOT NULL,
    error          text
);
CREATE UNIQUE INDEX dead_letter_actions_once ON dead_letter_actions (action_id, projection, coalesce(wallet_id, ''));
CREATE INDEX dead_letter_actions_wallet ON dead_letter_actions (wallet_id, sequence);

-- What was discarded, with all that was kept of it. `revision` is the event's place in its wallet's stream: a projection that is
-- guarded by revisions passes over those that lie here.
CREATE TABLE discarded_records (
    parked_id       bigint PRIMARY KEY,
    action_id       uuid NOT NULL,
    discarded_at    timestamptz NOT NULL,
    projection      text COLLATE "C" NOT NULL,
    wallet_id       text COLLATE "C",
    position        bigint,
    revision        bigint,
    topic           text NOT NULL,
    partition       integer NOT NULL,
    kafka_offset    bigint,
    record_time     timestamptz,
    record_key      bytea,
    record_value    bytea,
    record_headers  jsonb NOT NULL,
    error_class     text NOT NULL,
    error           text NOT NULL,
    attempts        integer NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_failed_at  timestamptz NOT NULL
);
CREATE INDEX discarded_records_revision ON discarded_records (projection, wallet_id, revision);
CREATE INDEX discarded_records_position ON discarded_records (projection, position);
