-- What the consumer groups make of the log, and how far each has come.

-- `position`: every event of this partition up to here is in the projection's tables; moved in the transaction that writes
-- those tables. `next_offset` is where to go on reading in Kafka, and only a hint: the first record found there is taken for
-- the next one only after the log has shown that it has none of this partition in between.
CREATE TABLE projection_checkpoints (
    projection  text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    position    bigint NOT NULL,
    next_offset bigint,
    moved_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, partition)
) WITH (fillfactor = 50);

-- Records that could not be processed, and those of the same wallet behind them, in order. `wallet_id` is null where a
-- record cannot be laid to any wallet (a foreign producer's): such a record holds nobody back.
CREATE TABLE parked_records (
    parked_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    projection      text COLLATE "C" NOT NULL,
    wallet_id       text COLLATE "C",
    position        bigint,
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
    last_failed_at  timestamptz NOT NULL,
    UNIQUE (projection, wallet_id, position)
);

-- Double entry: each event that moves money makes two postings that sum to zero. Leg 0 is the wallet's own account
-- (`wallet/<id>`) and is what the ledger routes show; leg 1 is its counter-posting: `external/<currency>` for money from and to
-- the outside, `clearing/<currency>` between the two legs of a transfer, which is zero when both have been posted.
-- `amount` is signed: positive credits the account, negative debits it. Minor units.
CREATE TABLE ledger_postings (
    position          bigint NOT NULL,
    leg               smallint NOT NULL CHECK (leg IN (0, 1)),
    account           text COLLATE "C" NOT NULL,
    currency          text COLLATE "C" NOT NULL,
    amount            bigint NOT NULL CHECK (amount <> 0),
    balance_after     bigint,
    event_id          uuid,
    transaction_type  text COLLATE "C",
    description       text,
    reference_id      uuid,
    related_wallet_id text COLLATE "C",
    metadata          bytea,
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (position, leg),
    CHECK ((leg = 0) = (balance_after IS NOT NULL)),
    CHECK ((leg = 0) = (transaction_type IS NOT NULL))
);
CREATE INDEX ledger_postings_account ON ledger_postings (account, position) WHERE leg = 0;
CREATE INDEX ledger_postings_reference ON ledger_postings (reference_id) WHERE leg = 0;

-- One row a wallet: its state as of its `version`.
CREATE TABLE read_model_wallets (
    wallet_id  text COLLATE "C" PRIMARY KEY,
    owner_id   text NOT NULL,
    currency   text COLLATE "C" NOT NULL,
    balance    bigint NOT NULL CHECK (balance >= 0),
    status     text COLLATE "C" NOT NULL,
    version    bigint NOT NULL,
    position   bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 70);
