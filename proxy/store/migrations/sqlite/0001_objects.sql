-- Every durable thing of the gateway is one row here: what it is for stands in the payload, a protobuf or JSON
-- message that only its owner reads. The columns are what the store itself selects by.
CREATE TABLE objects (
    -- Position in every list; never reused, so that a page token stays good while rows come and go.
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    kind          TEXT    NOT NULL,
    id            TEXT    NOT NULL,
    workspace     TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    -- A JSON object of text values.
    labels        TEXT    NOT NULL,
    -- Starts at 1, grows by 1 with each write.
    version       INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    payload       BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX objects_by_id ON objects (kind, id);
CREATE UNIQUE INDEX objects_by_name ON objects (kind, workspace, name);

-- Answers already given, so that a repeated request is not done twice.
CREATE TABLE requests (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    subject       TEXT    NOT NULL,
    method        TEXT    NOT NULL,
    workspace     TEXT    NOT NULL,
    request_id    TEXT    NOT NULL,
    -- SHA-256 over the request.
    fingerprint   BLOB    NOT NULL,
    result_id     TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX requests_by_key ON requests (subject, method, workspace, request_id);
CREATE INDEX requests_by_age ON requests (created_at_ms);
