-- What people at the sites say of decisions: corrections, confirmations, undos. Append-only, as the devices' rows are.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.reviews (
    site_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id uuid NOT NULL,
    subject_kind text NOT NULL
        CONSTRAINT reviews_subject_kind_ck CHECK (subject_kind IN ('inspection', 'item')),
    subject_id uuid NOT NULL,
    subject_at timestamptz NOT NULL,
    inspection_id uuid NOT NULL,
    ordinal int
        CONSTRAINT reviews_ordinal_ck CHECK (ordinal >= 0),
    review_status text NOT NULL
        CONSTRAINT reviews_review_status_ck CHECK (review_status IN ('pending', 'confirmed', 'rejected', 'needs_review', 'false_positive')),
    shown_part_id text,
    corrected_part_id text,
    corrected_color_id text,
    undoes_id uuid,
    reviewer text NOT NULL
        CONSTRAINT reviews_reviewer_ck CHECK (reviewer <> ''),
    reason text,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reviews_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.reviews_default PARTITION OF loupe.reviews DEFAULT;
COMMENT ON TABLE loupe.reviews IS 'What people say of decisions';
COMMENT ON COLUMN loupe.reviews.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.reviews.occurred_at IS 'When it was said';
COMMENT ON COLUMN loupe.reviews.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.reviews.subject_kind IS 'What it is about: inspection or item';
COMMENT ON COLUMN loupe.reviews.subject_id IS 'Id of that row';
COMMENT ON COLUMN loupe.reviews.subject_at IS 'captured_at of that row';
COMMENT ON COLUMN loupe.reviews.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.reviews.ordinal IS 'Position of the item; NULL for the inspection';
COMMENT ON COLUMN loupe.reviews.review_status IS 'How it leaves the subject; pending: taken back. Of several rows of one subject the last one wins';
COMMENT ON COLUMN loupe.reviews.shown_part_id IS 'What the search had put first';
COMMENT ON COLUMN loupe.reviews.corrected_part_id IS 'What it is; NULL when rejected: none of the catalogue';
COMMENT ON COLUMN loupe.reviews.corrected_color_id IS 'Its colour';
COMMENT ON COLUMN loupe.reviews.undoes_id IS 'The review that this one takes back';
COMMENT ON COLUMN loupe.reviews.reviewer IS 'Who said it';
COMMENT ON COLUMN loupe.reviews.reason IS 'Why';
COMMENT ON COLUMN loupe.reviews.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.reviews.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, occurred_at, id) ON loupe.reviews TO loupe_device;
SELECT loupe.protect('loupe.reviews');

CREATE INDEX reviews_subject_id_idx ON loupe.reviews (site_id, subject_id);
CREATE INDEX reviews_review_status_idx ON loupe.reviews (site_id, review_status);

RESET ROLE;
