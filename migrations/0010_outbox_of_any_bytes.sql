-- The outbox shows each event, also one whose bytes are no JSON: others may have written it, or a disk. One such row must not keep
-- operators from all the others.

-- The bytes as JSON, or where they are none, as a text with their hexadecimal digits, as bytea is written. Not for parallel plans:
-- what catches an error needs a transaction within the transaction.
CREATE FUNCTION shown_as_json(bytes bytea) RETURNS json LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN convert_from(bytes, 'UTF8')::json;
EXCEPTION WHEN data_exception OR character_not_in_repertoire THEN
    RETURN to_json('\x' || encode(bytes, 'hex'));
END
$$;

CREATE OR REPLACE VIEW outbox AS
SELECT e.position, e.event_id, s.name AS aggregate_id, e.revision, e.event_type, e.event_version,
       shown_as_json(e.payload) AS payload, shown_as_json(e.metadata) AS metadata,
       e.recorded_at AS created_at, NULL::timestamptz AS processed_at
  FROM relay_checkpoint r JOIN events e ON e.position > r.position JOIN streams s USING (stream_id)
UNION ALL
SELECT e.position, e.event_id, s.name, e.revision, e.event_type, e.event_version,
       shown_as_json(e.payload), shown_as_json(e.metadata),
       e.recorded_at, r.moved_at
  FROM relay_checkpoint r JOIN events e ON e.position <= r.position JOIN streams s USING (stream_id);
