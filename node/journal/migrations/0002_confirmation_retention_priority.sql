-- Version 1 to 2: confirmation by the archive, outages of destinations, retention, priorities.

ALTER TABLE instance ADD COLUMN purged_at REAL;
ALTER TABLE job ADD COLUMN priority TEXT NOT NULL DEFAULT 'MEDIUM';
ALTER TABLE job_destination ADD COLUMN objects TEXT NOT NULL DEFAULT 'sr,seg';
ALTER TABLE evidence ADD COLUMN purged_at REAL;
ALTER TABLE delivery ADD COLUMN unsure INTEGER NOT NULL DEFAULT 0;
ALTER TABLE delivery ADD COLUMN confirmation TEXT NOT NULL DEFAULT '';
ALTER TABLE delivery ADD COLUMN confirm_at REAL;
ALTER TABLE delivery ADD COLUMN confirm_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE delivery ADD COLUMN sent_as TEXT NOT NULL DEFAULT '';
CREATE INDEX delivery_unconfirmed ON delivery (destination, confirm_at) WHERE confirmation = 'AWAITED';
CREATE INDEX instance_bytes ON instance (sha256);
CREATE INDEX instance_kept ON instance (study_instance_uid) WHERE purged_at IS NULL;
CREATE INDEX evidence_kept ON evidence (job_id) WHERE purged_at IS NULL;

-- What version 1 stored was never confirmed: it is asked about now. What was tried without an end may have arrived.
UPDATE delivery SET confirmation = 'AWAITED', confirm_at = 0 WHERE state = 'STORED';
UPDATE delivery SET unsure = 1 WHERE state = 'PENDING' AND attempts > 0;

CREATE TABLE destination (                           -- destinations that cannot be reached: an outage costs no delivery an attempt
    destination     TEXT PRIMARY KEY,
    failures        INTEGER NOT NULL,                -- in a row
    down_since      REAL NOT NULL,
    next_attempt_at REAL NOT NULL,
    reason          TEXT NOT NULL
) STRICT;

CREATE TABLE commitment (                            -- requests for storage commitment (PS3.4 Annex J); a late report still counts
    transaction_uid TEXT PRIMARY KEY,
    destination     TEXT NOT NULL,
    requested_at    REAL NOT NULL,
    reported_at     REAL
) STRICT;

CREATE TABLE commitment_item (
    transaction_uid  TEXT NOT NULL REFERENCES commitment,
    delivery_id      INTEGER NOT NULL REFERENCES delivery,
    PRIMARY KEY (transaction_uid, delivery_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX commitment_of_delivery ON commitment_item (delivery_id);
