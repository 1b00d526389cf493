-- Where events live in an event store of its own (KurrentDB), the log here is a copy of it: the ingest makes it.

-- Where the events are, here or in an event store: whoever first starts to write puts the one row in, and nobody changes it.
CREATE TABLE event_home (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    home       text NOT NULL CHECK (home IN ('database', 'event store')),
    claimed_at timestamptz NOT NULL DEFAULT now()
);

-- How far the copy reaches: the last place of the event store that was looked at, moved in the transaction that copies what
-- lies before it. Both numbers are needed to go on from there. No row: nothing was copied yet.
CREATE TABLE ingest_checkpoint (
    singleton        boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    commit_position  bigint NOT NULL,
    prepare_position bigint NOT NULL,
    moved_at         timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Such a store appends to one stream at a time, so a transfer's legs are two appends. `debit_position` is the event that decided
-- it, `credit_position` the receiver's; until that is there the money is in transit, and any server may append it.
-- `seen_at` is when the copy learned of it. A transfer that one append wrote whole has no row.
CREATE TABLE stream_transfers (
    transfer_id     uuid PRIMARY KEY,
    debit_position  bigint NOT NULL,
    credit_position bigint,
    seen_at         timestamptz NOT NULL DEFAULT now()
);

-- What is in transit: few rows, whatever the table's size.
CREATE INDEX stream_transfers_in_transit ON stream_transfers (seen_at) WHERE credit_position IS NULL;
