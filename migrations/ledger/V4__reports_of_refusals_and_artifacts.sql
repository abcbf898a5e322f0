-- Refusals and what is known of artifacts go to the central side too.
--
-- A minute's refusals are summed in `refusals` while it lasts. Once it is over, what was not reported yet becomes a row
-- of `refusal_reports`, which never changes and is a unit of the outbox. Where the clock goes back into a minute that was
-- reported, the next version holds the rest: the sum over the versions is the minute's count.

ALTER TABLE refusals ADD COLUMN reported INTEGER NOT NULL DEFAULT 0 CHECK (reported BETWEEN 0 AND refused); -- frames of `refused` that are in reports
ALTER TABLE refusals ADD COLUMN version INTEGER NOT NULL DEFAULT 0 CHECK (version >= 0);                    -- of the last report; 0 before the first

CREATE INDEX refusals_due_idx ON refusals (minute) WHERE refused > reported;

CREATE TABLE refusal_reports (
    id           BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- made of device, minute, station, reason and version: the same after a restored backup
    minute       INTEGER NOT NULL,                                  -- start of the minute in which the frames were refused
    station      TEXT NOT NULL,                                     -- station by name
    reason       TEXT NOT NULL,                                     -- code: why the frames were not inspected
    version      INTEGER NOT NULL CHECK (version >= 1),             -- the minute's first report, second, ...
    refused      INTEGER NOT NULL CHECK (refused >= 1),             -- frames of this report
    UNIQUE (minute, station, reason, version)
) STRICT, WITHOUT ROWID;

-- Artifacts belong to the unit of their inspection from now on, also of those that wait.
UPDATE outbox SET row_count = row_count + (SELECT count(*) FROM artifacts a WHERE a.inspection_id = outbox.key_id)
 WHERE root_table = 'inspections';
