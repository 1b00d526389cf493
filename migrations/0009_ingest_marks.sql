-- By what the ingest knows the event store again, and what it has met there that is no wallet's.

-- `event_id` is the event at the checkpoint's place, whoever's: another store has another one there, or none. NULL: it was not kept,
-- and the store is known by the copy's last event alone. `stream_prefix` is what the streams were called that were copied.
-- `stray_events` counts the events of streams that are called like a wallet's though the rest of their name is no wallet id, and
-- `first_stray` is the first of these names, cut to a bound. They are moved with the place, so that each event counts once.
ALTER TABLE ingest_checkpoint
    ADD COLUMN event_id      uuid,
    ADD COLUMN stream_prefix text NOT NULL DEFAULT 'wallet-',
    ADD COLUMN stray_events  bigint NOT NULL DEFAULT 0,
    ADD COLUMN first_stray   text;
