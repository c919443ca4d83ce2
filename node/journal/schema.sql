-- The journal of a node: what was received, what became of it, what is on its way. Times are seconds since the epoch (UTC).
-- The allowed steps between states stand in node/domain/states.py; database.py writes every step into `transition`.
-- Version 2. An older file is brought here by node/journal/migrations/, which adds columns at the end of a table: so does this file.

CREATE TABLE study (
    study_instance_uid TEXT PRIMARY KEY,
    state              TEXT NOT NULL,
    revision           INTEGER NOT NULL DEFAULT 0,   -- counts the times it was decided on
    opened_at          REAL NOT NULL,                -- first instance of the present gathering
    last_instance_at   REAL NOT NULL
) STRICT;

CREATE TABLE series (
    series_instance_uid TEXT PRIMARY KEY,
    study_instance_uid  TEXT NOT NULL REFERENCES study,
    state               TEXT NOT NULL,
    reason              TEXT NOT NULL DEFAULT '',
    updated_at          REAL NOT NULL
) STRICT;
CREATE INDEX series_of_study ON series (study_instance_uid);

CREATE TABLE instance (
    sop_instance_uid    TEXT NOT NULL,
    revision            INTEGER NOT NULL DEFAULT 0,  -- 0: the first bytes under this UID, which jobs use; 1..: other bytes, kept and reported
    sha256              TEXT NOT NULL,               -- of the data set without file meta; also the name in the spool
    series_instance_uid TEXT NOT NULL REFERENCES series,
    study_instance_uid  TEXT NOT NULL REFERENCES study,
    sop_class_uid       TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    size_bytes          INTEGER NOT NULL,
    calling_ae_title    TEXT NOT NULL,
    received_at         REAL NOT NULL,
    purged_at           REAL,                        -- its bytes were removed from the spool by retention; a re-send brings them back
    PRIMARY KEY (sop_instance_uid, sha256)
) STRICT;
CREATE INDEX instance_of_series ON instance (series_instance_uid);
CREATE INDEX instance_of_study ON instance (study_instance_uid);
CREATE INDEX instance_bytes ON instance (sha256);
CREATE INDEX instance_kept ON instance (study_instance_uid) WHERE purged_at IS NULL;

CREATE TABLE open_association (                      -- associations that carried a study and have not ended
    association        TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    PRIMARY KEY (association, study_instance_uid)
) STRICT, WITHOUT ROWID;

CREATE TABLE job (
    job_id              INTEGER PRIMARY KEY,
    job_key             TEXT NOT NULL UNIQUE,
    study_instance_uid  TEXT NOT NULL REFERENCES study,
    series_instance_uid TEXT NOT NULL REFERENCES series,
    route               TEXT NOT NULL,
    model               TEXT NOT NULL,
    model_digest        TEXT NOT NULL,
    state               TEXT NOT NULL,
    step                TEXT NOT NULL DEFAULT '',
    outcome             TEXT NOT NULL DEFAULT '',
    reason              TEXT NOT NULL DEFAULT '',
    run                 INTEGER NOT NULL DEFAULT 0,  -- counts how often a person had it done again; result UIDs differ per run
    attempt             INTEGER NOT NULL DEFAULT 0,  -- counted at the claim: a job that kills its process still ends
    epoch               INTEGER NOT NULL DEFAULT 0,  -- fences a worker that was thought dead
    owner               TEXT NOT NULL DEFAULT '',    -- name of the worker's lock file; '' when nobody holds the job
    not_before          REAL NOT NULL DEFAULT 0,
    encoded_at          REAL,                        -- fixed at the first encoding: re-encoding gives the same bytes
    predecessor_job_id  INTEGER REFERENCES job,
    created_at          REAL NOT NULL,
    last_instance_at    REAL NOT NULL,               -- of the inputs: turnaround counts from here
    ended_at            REAL,
    priority            TEXT NOT NULL DEFAULT 'MEDIUM' -- HIGH, MEDIUM, LOW, as in the Priority of DIMSE (PS3.7 C.1.1)
) STRICT;
CREATE INDEX job_waiting ON job (not_before) WHERE state IN ('SCHEDULED', 'IN PROGRESS');
CREATE INDEX job_of_study ON job (study_instance_uid);

CREATE TABLE job_input (
    job_id           INTEGER NOT NULL REFERENCES job,
    sop_instance_uid TEXT NOT NULL,
    sha256           TEXT NOT NULL,
    PRIMARY KEY (job_id, sop_instance_uid)
) STRICT, WITHOUT ROWID;

CREATE TABLE job_destination (
    job_id      INTEGER NOT NULL REFERENCES job,
    destination TEXT NOT NULL,
    objects     TEXT NOT NULL DEFAULT 'sr,seg',      -- which objects it gets: roles of evidence
    PRIMARY KEY (job_id, destination)
) STRICT, WITHOUT ROWID;

CREATE TABLE stage (                                 -- seconds per stage of the last attempt
    job_id    INTEGER NOT NULL REFERENCES job,
    name      TEXT NOT NULL,
    elapsed_s REAL NOT NULL,
    PRIMARY KEY (job_id, name)
) STRICT;

CREATE TABLE evidence (                              -- every object we ever made: also the ledger for loop protection
    sop_instance_uid    TEXT PRIMARY KEY,
    job_id              INTEGER NOT NULL REFERENCES job,
    run                 INTEGER NOT NULL,
    role                TEXT NOT NULL,               -- seg, sr
    sop_class_uid       TEXT NOT NULL,
    series_instance_uid TEXT NOT NULL,
    path                TEXT NOT NULL,
    sha256              TEXT NOT NULL,               -- of the file
    size_bytes          INTEGER NOT NULL,
    purged_at           REAL                         -- its file was removed by retention; the archive has it
) STRICT;
CREATE INDEX evidence_of_job ON evidence (job_id);
CREATE INDEX evidence_series ON evidence (series_instance_uid);
CREATE INDEX evidence_kept ON evidence (job_id) WHERE purged_at IS NULL;

CREATE TABLE delivery (
    delivery_id      INTEGER PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL REFERENCES evidence,
    destination      TEXT NOT NULL,
    state            TEXT NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,
    first_attempt_at REAL,
    next_attempt_at  REAL NOT NULL,
    reason           TEXT NOT NULL DEFAULT '',
    stored_at        REAL,
    unsure           INTEGER NOT NULL DEFAULT 0,     -- 1: the last attempt had no answer, the peer may have the object: ask before sending again
    confirmation     TEXT NOT NULL DEFAULT '',       -- of a stored object: AWAITED, GIVEN, WAIVED (not asked for, or not to be had), MISSED
    confirm_at       REAL,                           -- when the archive is asked next whether it keeps the object
    confirm_attempts INTEGER NOT NULL DEFAULT 0,
    sent_as          TEXT NOT NULL DEFAULT '',       -- SOP class that it was sent in where the destination does not take its own
    UNIQUE (sop_instance_uid, destination)
) STRICT;
CREATE INDEX delivery_due ON delivery (destination, next_attempt_at) WHERE state = 'PENDING';
CREATE INDEX delivery_unconfirmed ON delivery (destination, confirm_at) WHERE confirmation = 'AWAITED';

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

CREATE TABLE transition (                            -- append-only history of every step
    at        REAL NOT NULL,
    kind      TEXT NOT NULL,                         -- study, series, job, delivery
    key       TEXT NOT NULL,
    before    TEXT NOT NULL,                         -- '' at birth
    after     TEXT NOT NULL,
    reason    TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX transition_of ON transition (kind, key);
