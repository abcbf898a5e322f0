-- Fits (what the match stage of one index generation asks for) flow down; what became of recipes and fits at the devices
-- flows up; and two tables get the retention class that the data model gives them.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.fits (
    generation_sha256 bytea NOT NULL CONSTRAINT fits_generation_sha256_ck CHECK (octet_length(generation_sha256) = 32),
    sha256 bytea NOT NULL,
    body text NOT NULL CONSTRAINT fits_body_ck CHECK (octet_length(body) BETWEEN 1 AND 1048576),
    CONSTRAINT fits_sha256_ck CHECK (sha256 = pg_catalog.sha256(convert_to(body, 'UTF8')))
);
COMMENT ON TABLE loupe.fits IS 'Learned weights and thresholds of an index generation; a newer fit of the generation takes the place of the one before, which stands in the audit';
COMMENT ON COLUMN loupe.fits.generation_sha256 IS 'The index generation that it was learned for, and with it the embedding model';
COMMENT ON COLUMN loupe.fits.sha256 IS 'Of body, octet by octet; stands in the provenance of what is decided by it';
COMMENT ON COLUMN loupe.fits.body IS 'The JSON text that `loupe index fit` wrote';
SELECT loupe.share('loupe.fits');
CREATE UNIQUE INDEX fits_generation_uq ON loupe.fits (generation_sha256, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));
SELECT loupe.audited('loupe.fits');

-- What the data model calls recipe_activations, for fits as well, and with the refusals.
CREATE TABLE loupe.provision_reports (
    site_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id uuid NOT NULL,
    subject_kind text NOT NULL
        CONSTRAINT provision_reports_subject_kind_ck CHECK (subject_kind IN ('recipe', 'fit')),
    subject text NOT NULL
        CONSTRAINT provision_reports_subject_ck CHECK (subject <> ''),
    sha256 bytea NOT NULL
        CONSTRAINT provision_reports_sha256_ck CHECK (octet_length(sha256) = 32),
    previous_sha256 bytea
        CONSTRAINT provision_reports_previous_sha256_ck CHECK (octet_length(previous_sha256) = 32),
    outcome text NOT NULL
        CONSTRAINT provision_reports_outcome_ck CHECK (outcome IN ('serving', 'refused', 'withdrawn')),
    detail text,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT provision_reports_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.provision_reports_default PARTITION OF loupe.provision_reports DEFAULT;
COMMENT ON TABLE loupe.provision_reports IS 'What became of recipes and fits at the devices: the state of what is wanted, as they say';
COMMENT ON COLUMN loupe.provision_reports.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.provision_reports.occurred_at IS 'When';
COMMENT ON COLUMN loupe.provision_reports.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.provision_reports.subject_kind IS 'What kind of thing it is about';
COMMENT ON COLUMN loupe.provision_reports.subject IS 'Of a recipe the station by name, of a fit the index generation by name';
COMMENT ON COLUMN loupe.provision_reports.sha256 IS 'The recipe or fit';
COMMENT ON COLUMN loupe.provision_reports.previous_sha256 IS 'What served until then; where this one was refused, what goes on serving; NULL: nothing';
COMMENT ON COLUMN loupe.provision_reports.outcome IS 'serving: in service from now on; refused: cannot be used there; withdrawn: taken out of service';
COMMENT ON COLUMN loupe.provision_reports.detail IS 'Why, in a sentence';
COMMENT ON COLUMN loupe.provision_reports.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.provision_reports.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, occurred_at, id) ON loupe.provision_reports TO loupe_device;
SELECT loupe.register('loupe.provision_reports', 'verdict', 'year');
SELECT loupe.protect('loupe.provision_reports');
CREATE INDEX provision_reports_subject_idx ON loupe.provision_reports (site_id, subject_kind, subject, occurred_at DESC);

CREATE VIEW loupe.v_provisioning_state WITH (security_barrier) AS
SELECT last.site_id, last.device_id, last.subject_kind, last.subject, last.outcome, last.sha256, last.previous_sha256,
    last.detail, last.occurred_at, coalesce(recipe.sha256, fit.sha256) AS wanted_sha256,
    last.outcome = 'serving' AND last.sha256 = coalesce(recipe.sha256, fit.sha256) AS is_as_wanted
FROM (
    SELECT DISTINCT ON (r.site_id, r.device_id, r.subject_kind, r.subject) r.*
    FROM loupe.provision_reports r
    ORDER BY r.site_id, r.device_id, r.subject_kind, r.subject, r.occurred_at DESC, r.id DESC
) last
LEFT JOIN LATERAL (
    SELECT c.sha256 FROM loupe.recipe_assignments a JOIN loupe.recipes c ON c.id = a.recipe_id
    WHERE last.subject_kind = 'recipe' AND a.is_active AND (a.site_id IS NULL OR a.site_id = last.site_id)
        AND coalesce(a.station, last.subject) = last.subject
    ORDER BY a.site_id IS NULL, a.station IS NULL LIMIT 1
) recipe ON true
LEFT JOIN LATERAL (
    SELECT f.sha256 FROM loupe.fits f
    WHERE last.subject_kind = 'fit' AND f.is_active AND (f.site_id IS NULL OR f.site_id = last.site_id)
        AND last.subject = 'gen-' || left(encode(f.generation_sha256, 'hex'), 12)
    ORDER BY f.site_id IS NULL LIMIT 1
) fit ON true;
COMMENT ON VIEW loupe.v_provisioning_state IS 'Which recipes and fits serve at each site, which were refused and why, and is it what is wanted?';
COMMENT ON COLUMN loupe.v_provisioning_state.site_id IS 'The site';
COMMENT ON COLUMN loupe.v_provisioning_state.device_id IS 'The device';
COMMENT ON COLUMN loupe.v_provisioning_state.subject_kind IS 'recipe or fit';
COMMENT ON COLUMN loupe.v_provisioning_state.subject IS 'Station, or index generation, by name';
COMMENT ON COLUMN loupe.v_provisioning_state.outcome IS 'What the device said last';
COMMENT ON COLUMN loupe.v_provisioning_state.sha256 IS 'Of the recipe or fit that it said it of';
COMMENT ON COLUMN loupe.v_provisioning_state.previous_sha256 IS 'What served before, or goes on serving where the other was refused';
COMMENT ON COLUMN loupe.v_provisioning_state.detail IS 'Why, in a sentence';
COMMENT ON COLUMN loupe.v_provisioning_state.occurred_at IS 'When it was so';
COMMENT ON COLUMN loupe.v_provisioning_state.wanted_sha256 IS 'What is published for it now; NULL: nothing';
COMMENT ON COLUMN loupe.v_provisioning_state.is_as_wanted IS 'Whether what serves is what is published';
GRANT SELECT ON loupe.v_provisioning_state TO loupe_ops;

-- The classes of the data model, where nobody has set another time.
UPDATE loupe.retention_policies SET class = 'media', keep_days = loupe.keep_days_of('media')
WHERE table_name = 'artifacts' AND class = 'verdict' AND keep_days = loupe.keep_days_of('verdict');
UPDATE loupe.retention_policies SET class = 'rollup', keep_days = loupe.keep_days_of('rollup')
WHERE table_name = 'refusals' AND class = 'verdict' AND keep_days = loupe.keep_days_of('verdict');

RESET ROLE;
