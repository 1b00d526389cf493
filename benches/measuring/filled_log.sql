-- A log of `:events` events over `:wallets` wallets, and all that follows from it, made by arithmetic: wallets take turns, so that the event at a position is
-- known without those before it. Each wallet is created, then gets 5.00, pays 1.00, and is one end of a transfer of 1.00 between
-- neighbours, and again.
CREATE FUNCTION filled(first bigint, last bigint, wallets bigint) RETURNS TABLE (
    place bigint, stream bigint, revision bigint, wallet text, event uuid, recorded_at timestamptz,
    amount bigint, balance bigint, transfer uuid, counterparty text
) LANGUAGE sql STABLE AS $$
SELECT p, w, r, 'wallet-' || w, lpad(to_hex(p), 32, '0')::uuid, timestamptz '2026-01-01 00:00:00Z' + p * interval '1 microsecond',
       CASE WHEN r = 0 THEN 0 WHEN r % 3 = 1 THEN 500 WHEN r % 3 = 2 OR pays THEN -100 ELSE 100 END,
       r / 3 * (CASE WHEN pays THEN 300 ELSE 500 END) + (CASE r % 3 WHEN 0 THEN 0 WHEN 1 THEN 500 ELSE 400 END),
       CASE WHEN r > 0 AND r % 3 = 0 THEN ('7' || lpad(to_hex(CASE WHEN pays THEN p ELSE p - 1 END), 31, '0'))::uuid END,
       CASE WHEN r > 0 AND r % 3 = 0 THEN 'wallet-' || (CASE WHEN pays THEN w + 1 ELSE w - 1 END) END
  FROM generate_series(first, last) AS p,
       LATERAL (SELECT (p - 1) % wallets + 1 AS w, (p - 1) / wallets AS r) AS turn,
       LATERAL (SELECT w % 2 = 1 AS pays) AS end_of_transfer
$$;

INSERT INTO streams (stream_id, name)
SELECT stream, wallet FROM filled(1, :wallets, :wallets);

INSERT INTO events (position, stream_id, revision, event_id, event_type, event_version, recorded_at, payload, metadata)
SELECT place, stream, revision, event,
       CASE WHEN revision = 0 THEN 'WalletCreated' WHEN amount > 0 THEN 'WalletCredited' ELSE 'WalletDebited' END,
       1, recorded_at,
       convert_to(
           CASE WHEN revision = 0 THEN '{"ownerId":"owner","currency":"USD"}'
                ELSE '{"amount":"' || abs(amount) / 100 || '.00","balance":"' || balance / 100 || '.00","currency":"USD"'
                     || coalesce(',"transfer":{"id":"' || transfer || '","counterparty":"' || counterparty || '"}', '') || '}'
           END, 'UTF8'),
       '{"correlationId":"a","causationId":"b"}'
  FROM filled(1, :events, :wallets);

INSERT INTO ledger_postings (position, leg, account, currency, amount, balance_after, event_id, transaction_type,
                             reference_id, related_wallet_id, metadata, created_at)
SELECT place, 0, 'wallet/' || wallet, 'USD', amount, balance, event,
       CASE WHEN transfer IS NULL AND amount > 0 THEN 'CREDIT' WHEN transfer IS NULL THEN 'DEBIT'
            WHEN amount > 0 THEN 'TRANSFER_IN' ELSE 'TRANSFER_OUT' END,
       coalesce(transfer, event), counterparty, '{"correlationId":"a","causationId":"b"}', recorded_at
  FROM filled(1, :events, :wallets) WHERE revision > 0;

INSERT INTO ledger_postings (position, leg, account, currency, amount, created_at)
SELECT place, 1, CASE WHEN transfer IS NULL THEN 'external/USD' ELSE 'clearing/USD' END, 'USD', -amount, recorded_at
  FROM filled(1, :events, :wallets) WHERE revision > 0;

INSERT INTO read_model_wallets (wallet_id, owner_id, currency, balance, status, version, position, created_at, updated_at)
SELECT newest.wallet, 'owner', 'USD', newest.balance, 'ACTIVE', newest.revision, newest.place, made.recorded_at, newest.recorded_at
  FROM filled(:events - :wallets + 1, :events, :wallets) AS newest
  JOIN filled(1, :wallets, :wallets) AS made USING (stream);

-- A key for each tenth event.
INSERT INTO idempotency_keys (wallet_id, command_kind, key, fingerprint, position, event_count, created_at)
SELECT wallet, 'credit', 'key-' || place, '', place, 1, recorded_at FROM filled(1, :events, :wallets) WHERE place % 10 = 0;

UPDATE log_head SET position = :events;

UPDATE relay_checkpoint SET position = :events, moved_at = now();

INSERT INTO projection_checkpoints (projection, partition, position)
SELECT projection, partition, :events
  FROM unnest(ARRAY['ledger-projector', 'read-model-projector']) AS projection, generate_series(0, 9) AS partition;

DROP FUNCTION filled;

ANALYZE;
