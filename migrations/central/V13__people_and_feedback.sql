-- Who the people at the sites are, what they think of inspections, what they did about them; and what is asked of that.
-- Written by the devices as every other fact: INSERT … ON CONFLICT DO NOTHING on the whole key.

SET LOCAL ROLE loupe_owner;

-- Small, so not partitioned; for ever, so that what was signed years ago still names who it was. A change of a person is
-- a further row, never an update: the rows themselves are the audit. The id of the version is in the key, since a device
-- that was put back from a backup may count its versions anew.
CREATE TABLE loupe.operators (
    site_id uuid NOT NULL,
    operator_id uuid NOT NULL,
    version int NOT NULL
        CONSTRAINT operators_version_ck CHECK (version >= 1),
    id uuid NOT NULL,
    epoch int NOT NULL
        CONSTRAINT operators_epoch_ck CHECK (epoch >= 1),
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL
        CONSTRAINT operators_changed_by_ck CHECK (changed_by <> ''),
    username text NOT NULL
        CONSTRAINT operators_username_ck CHECK (char_length(username) BETWEEN 3 AND 100),
    full_name text
        CONSTRAINT operators_full_name_ck CHECK (full_name <> ''),
    role text NOT NULL
        CONSTRAINT operators_role_ck CHECK (role IN ('admin', 'manager', 'operator', 'viewer')),
    is_active boolean NOT NULL,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT operators_pk PRIMARY KEY (site_id, operator_id, version, id)
);
COMMENT ON TABLE loupe.operators IS 'People of the sites, every version of each; names, not accounts';
COMMENT ON COLUMN loupe.operators.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.operators.operator_id IS 'The person';
COMMENT ON COLUMN loupe.operators.version IS 'First, second, ...; the highest of the highest epoch holds';
COMMENT ON COLUMN loupe.operators.id IS 'UUIDv7 of this version, made on the device; that of the first names the person';
COMMENT ON COLUMN loupe.operators.epoch IS 'Of the device then; rises when a backup is put back';
COMMENT ON COLUMN loupe.operators.changed_at IS 'When';
COMMENT ON COLUMN loupe.operators.changed_by IS 'Who changed it';
COMMENT ON COLUMN loupe.operators.username IS 'What the person signs with; unique on the device without regard to case';
COMMENT ON COLUMN loupe.operators.full_name IS 'For people';
COMMENT ON COLUMN loupe.operators.role IS 'What the person is at the site';
COMMENT ON COLUMN loupe.operators.is_active IS 'false: retired, may sign nothing';
COMMENT ON COLUMN loupe.operators.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.operators.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, operator_id, version, id) ON loupe.operators TO loupe_device;
SELECT loupe.protect('loupe.operators');
CREATE INDEX operators_username_idx ON loupe.operators (site_id, device_id, lower(username), changed_at);

CREATE TABLE loupe.feedback (
    site_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id uuid NOT NULL,
    subject_kind text NOT NULL
        CONSTRAINT feedback_subject_kind_ck CHECK (subject_kind IN ('inspection', 'item', 'site')),
    subject_id uuid,
    subject_at timestamptz,
    inspection_id uuid,
    ordinal int
        CONSTRAINT feedback_ordinal_ck CHECK (ordinal >= 0),
    feedback_type text NOT NULL
        CONSTRAINT feedback_feedback_type_ck CHECK (feedback_type IN ('accurate', 'false_positive', 'missed_defect', 'severity_wrong', 'detection_accuracy', 'satisfaction')),
    rating int
        CONSTRAINT feedback_rating_ck CHECK (rating BETWEEN 1 AND 5),
    expected_severity int
        CONSTRAINT feedback_expected_severity_ck CHECK (expected_severity BETWEEN 1 AND 5),
    notes text
        CONSTRAINT feedback_notes_ck CHECK (char_length(notes) BETWEEN 1 AND 1000),
    author text NOT NULL
        CONSTRAINT feedback_author_ck CHECK (author <> ''),
    operator_id uuid,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT feedback_subject_ck CHECK ((subject_kind = 'site') = (inspection_id IS NULL)
        AND (subject_kind = 'site') = (subject_id IS NULL) AND (subject_kind = 'site') = (subject_at IS NULL)),
    CONSTRAINT feedback_item_ck CHECK ((subject_kind = 'item') = (ordinal IS NOT NULL)),
    CONSTRAINT feedback_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.feedback_default PARTITION OF loupe.feedback DEFAULT;
COMMENT ON TABLE loupe.feedback IS 'What people think of inspections, items and the site; what an item is, a review says';
COMMENT ON COLUMN loupe.feedback.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.feedback.occurred_at IS 'When it was said';
COMMENT ON COLUMN loupe.feedback.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.feedback.subject_kind IS 'What it is about: inspection, item or site';
COMMENT ON COLUMN loupe.feedback.subject_id IS 'Id of that row; NULL for the site';
COMMENT ON COLUMN loupe.feedback.subject_at IS 'captured_at of that row; NULL for the site';
COMMENT ON COLUMN loupe.feedback.inspection_id IS 'The inspection; NULL for the site';
COMMENT ON COLUMN loupe.feedback.ordinal IS 'Position of the item; NULL for anything else';
COMMENT ON COLUMN loupe.feedback.feedback_type IS 'accurate; false_positive: a good part was failed or held; missed_defect: a bad one passed; severity_wrong; detection_accuracy and satisfaction: opinions';
COMMENT ON COLUMN loupe.feedback.rating IS '1 poor to 5 excellent';
COMMENT ON COLUMN loupe.feedback.expected_severity IS 'What the defect should have been: 1 slight to 5 critical';
COMMENT ON COLUMN loupe.feedback.notes IS 'The author''s words';
COMMENT ON COLUMN loupe.feedback.author IS 'Who said it';
COMMENT ON COLUMN loupe.feedback.operator_id IS 'The person, where people were registered then';
COMMENT ON COLUMN loupe.feedback.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.feedback.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, occurred_at, id) ON loupe.feedback TO loupe_device;
-- First, so that the call after it does not make months of them.
SELECT loupe.register('loupe.feedback', 'verdict', 'year');
SELECT loupe.protect('loupe.feedback');
CREATE INDEX feedback_subject_idx ON loupe.feedback (site_id, subject_id, feedback_type);
CREATE INDEX feedback_inspection_idx ON loupe.feedback (site_id, inspection_id);

CREATE TABLE loupe.action_logs (
    site_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id uuid NOT NULL,
    inspection_id uuid NOT NULL,
    inspection_at timestamptz NOT NULL,
    action_taken text NOT NULL
        CONSTRAINT action_logs_action_taken_ck CHECK (char_length(action_taken) BETWEEN 1 AND 200),
    action_result text NOT NULL
        CONSTRAINT action_logs_action_result_ck CHECK (action_result IN ('resolved', 'pending', 'failed', 'deferred')),
    notes text
        CONSTRAINT action_logs_notes_ck CHECK (char_length(notes) BETWEEN 1 AND 1000),
    action_by text NOT NULL
        CONSTRAINT action_logs_action_by_ck CHECK (action_by <> ''),
    operator_id uuid,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT action_logs_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.action_logs_default PARTITION OF loupe.action_logs DEFAULT;
COMMENT ON TABLE loupe.action_logs IS 'What was done about inspections; of several of one inspection the last says how it stands';
COMMENT ON COLUMN loupe.action_logs.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.action_logs.occurred_at IS 'When it was logged';
COMMENT ON COLUMN loupe.action_logs.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.action_logs.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.action_logs.inspection_at IS 'captured_at of the inspection';
COMMENT ON COLUMN loupe.action_logs.action_taken IS 'What was done';
COMMENT ON COLUMN loupe.action_logs.action_result IS 'What came of it: resolved, pending, failed or deferred';
COMMENT ON COLUMN loupe.action_logs.notes IS 'The author''s words';
COMMENT ON COLUMN loupe.action_logs.action_by IS 'Who did it';
COMMENT ON COLUMN loupe.action_logs.operator_id IS 'The person, where people were registered then';
COMMENT ON COLUMN loupe.action_logs.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.action_logs.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, occurred_at, id) ON loupe.action_logs TO loupe_device;
SELECT loupe.register('loupe.action_logs', 'verdict', 'year');
SELECT loupe.protect('loupe.action_logs');
CREATE INDEX action_logs_inspection_idx ON loupe.action_logs (site_id, inspection_id, occurred_at);
CREATE INDEX action_logs_action_result_idx ON loupe.action_logs (site_id, action_result);

-- ---------------------------------------------------------------------------------------------------- views

CREATE VIEW loupe.v_operators WITH (security_barrier) AS
SELECT DISTINCT ON (o.site_id, o.operator_id) o.site_id, o.device_id, o.operator_id, o.username, o.full_name, o.role,
    o.is_active, o.version, o.changed_at, o.changed_by,
    (SELECT min(f.changed_at) FROM loupe.operators f
     WHERE f.site_id = o.site_id AND f.operator_id = o.operator_id) AS registered_at
FROM loupe.operators o
ORDER BY o.site_id, o.operator_id, o.epoch DESC, o.version DESC, o.changed_at DESC;
COMMENT ON VIEW loupe.v_operators IS 'Who works at each site? The version of each person that holds';

-- A review bears a name, as it was registered where people were. Of those who bore it on that device the one who did when
-- the review was written; for a review older than the register the first who did.
CREATE VIEW loupe.v_reviews WITH (security_barrier) AS
SELECT r.site_id, r.device_id, r.id AS review_id, r.occurred_at, r.inspection_id, r.subject_at, r.ordinal,
    r.review_status, r.shown_part_id, r.corrected_part_id, r.corrected_color_id, r.undoes_id, r.reviewer, r.reason,
    o.operator_id, o.full_name, o.role
FROM loupe.reviews r
LEFT JOIN LATERAL (
    SELECT p.operator_id, p.full_name, p.role FROM loupe.operators p
    WHERE p.site_id = r.site_id AND p.device_id = r.device_id AND lower(p.username) = lower(r.reviewer)
    ORDER BY p.changed_at > r.occurred_at,
        CASE WHEN p.changed_at > r.occurred_at THEN p.changed_at - r.occurred_at ELSE r.occurred_at - p.changed_at END
    LIMIT 1
) o ON true;
COMMENT ON VIEW loupe.v_reviews IS 'Who said what of which inspection? Reviews with the person, where the name is registered';

-- A complaint is open until the last action of its inspection that followed it says resolved.
CREATE VIEW loupe.v_feedback WITH (security_barrier) AS
SELECT f.site_id, f.device_id, f.id AS feedback_id, f.occurred_at, (f.occurred_at AT TIME ZONE 'UTC')::date AS day,
    f.subject_kind, f.inspection_id, f.subject_at, f.ordinal, f.feedback_type, f.rating, f.expected_severity, f.notes,
    f.author, f.operator_id, a.action_taken, a.action_result, a.action_by, a.action_at,
    f.feedback_type IN ('false_positive', 'missed_defect', 'severity_wrong')
        AND a.action_result IS DISTINCT FROM 'resolved' AS is_open
FROM loupe.feedback f
LEFT JOIN LATERAL (
    SELECT l.action_taken, l.action_result, l.action_by, l.occurred_at AS action_at FROM loupe.action_logs l
    WHERE l.site_id = f.site_id AND l.inspection_id = f.inspection_id AND l.occurred_at >= f.occurred_at
    ORDER BY l.occurred_at DESC, l.id DESC
    LIMIT 1
) a ON true;
COMMENT ON VIEW loupe.v_feedback IS 'What did people say, and what was done about it? Every feedback with the last action since';

CREATE VIEW loupe.v_feedback_daily WITH (security_barrier) AS
SELECT site_id, day, count(*) AS feedback_count,
    count(*) FILTER (WHERE feedback_type = 'accurate') AS accurate_count,
    count(*) FILTER (WHERE feedback_type = 'false_positive') AS false_positive_count,
    count(*) FILTER (WHERE feedback_type = 'missed_defect') AS missed_defect_count,
    count(*) FILTER (WHERE feedback_type = 'severity_wrong') AS severity_wrong_count,
    avg(rating) FILTER (WHERE feedback_type = 'detection_accuracy')::double precision AS avg_accuracy_rating,
    avg(rating) FILTER (WHERE feedback_type = 'satisfaction')::double precision AS avg_satisfaction_rating,
    count(*) FILTER (WHERE feedback_type = 'accurate')
        / NULLIF(count(*) FILTER (WHERE feedback_type IN ('accurate', 'false_positive', 'missed_defect', 'severity_wrong')), 0)
            ::double precision AS accurate_ratio,
    count(*) FILTER (WHERE is_open) AS open_count,
    count(DISTINCT author) AS author_count
FROM loupe.v_feedback
GROUP BY site_id, day;
COMMENT ON VIEW loupe.v_feedback_daily IS 'What do people say day by day: how many false positives and missed defects, how many still open?';

CREATE VIEW loupe.v_feedback_open WITH (security_barrier) AS
SELECT f.site_id, f.feedback_id, f.occurred_at, f.feedback_type, f.expected_severity, f.notes, f.author, f.inspection_id,
    f.subject_at, f.ordinal, i.code, i.station, i.recipe, i.verdict, f.action_taken, f.action_result, f.action_by,
    f.action_at, extract(epoch FROM now() - f.occurred_at)::double precision AS age_s
FROM loupe.v_feedback f
LEFT JOIN loupe.inspections i ON i.site_id = f.site_id AND i.captured_at = f.subject_at AND i.id = f.inspection_id
WHERE f.is_open;
COMMENT ON VIEW loupe.v_feedback_open IS 'Which false positives, missed defects and wrong severities wait for somebody?';

DO $$
DECLARE
    bare record;
BEGIN
    FOR bare IN
        SELECT c.relname, a.attname, w.words
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN (VALUES
            ('accurate_count', 'Decisions called right'),
            ('accurate_ratio', 'Of what is said of decisions, the share that calls them right'),
            ('action_at', 'When the last action since was logged'),
            ('action_by', 'Who did it'),
            ('action_result', 'What came of the last action since; NULL: none'),
            ('action_taken', 'The last action since'),
            ('age_s', 'Seconds since it was said'),
            ('author', 'Who said it'),
            ('author_count', 'People who said something'),
            ('avg_accuracy_rating', 'Mean rating of how well it sees, 1 to 5'),
            ('avg_satisfaction_rating', 'Mean rating of how one likes it, 1 to 5'),
            ('changed_at', 'When it last changed'),
            ('changed_by', 'Who changed it'),
            ('code', 'INS-…; NULL where the inspection has expired or is not here yet'),
            ('corrected_color_id', 'Its colour'),
            ('corrected_part_id', 'What it is, as the reviewer says'),
            ('day', 'UTC'),
            ('device_id', 'The device that wrote it'),
            ('expected_severity', 'What the defect should have been: 1 slight to 5 critical'),
            ('false_positive_count', 'Good parts that were failed or held'),
            ('feedback_count', 'All that was said'),
            ('feedback_id', 'The feedback'),
            ('feedback_type', 'What is said'),
            ('full_name', 'Name of the person for people'),
            ('inspection_id', 'The inspection; NULL for the site'),
            ('is_active', 'false: retired'),
            ('is_open', 'A complaint that no action since has resolved'),
            ('missed_defect_count', 'Bad parts that were passed, or defects not seen'),
            ('notes', 'The author''s words'),
            ('occurred_at', 'When it was said'),
            ('open_count', 'Complaints that no action since has resolved'),
            ('operator_id', 'The person; NULL where the name is not registered'),
            ('ordinal', 'Position of the item; NULL for the inspection or site'),
            ('rating', '1 poor to 5 excellent'),
            ('reason', 'Why'),
            ('recipe', 'Recipe by name'),
            ('registered_at', 'When the person was first registered'),
            ('review_id', 'The review'),
            ('review_status', 'How it leaves the subject; pending: taken back'),
            ('reviewer', 'The name that the review bears'),
            ('role', 'What the person is at the site'),
            ('severity_wrong_count', 'Defects graver or slighter than was said'),
            ('shown_part_id', 'What the search had put first'),
            ('site_id', 'The site'),
            ('station', 'Station by name'),
            ('subject_at', 'captured_at of what it is about; NULL for the site'),
            ('subject_kind', 'inspection, item or site'),
            ('undoes_id', 'The review that this one takes back'),
            ('username', 'What the person signs with'),
            ('verdict', 'pass, fail or hold'),
            ('version', 'How often the person''s row was written')
        ) AS w (name, words) ON w.name = a.attname
        WHERE c.relnamespace = 'loupe'::regnamespace
            AND c.relname IN ('v_operators', 'v_reviews', 'v_feedback', 'v_feedback_daily', 'v_feedback_open')
    LOOP
        EXECUTE format('COMMENT ON COLUMN loupe.%I.%I IS %L', bare.relname, bare.attname, bare.words);
    END LOOP;
END
$$;
GRANT SELECT ON loupe.v_operators, loupe.v_reviews, loupe.v_feedback, loupe.v_feedback_daily, loupe.v_feedback_open
    TO loupe_ops;

RESET ROLE;
