-- What the centre tells its sites: catalogue, kits and recipes. Devices read the rows of their site and of all; who
-- publishes (loupe_admin, loupe_owner) writes them; nothing is deleted, a row that ends gets is_active = false.
--
-- A device asks for the rows with a change_seq above the highest one it has seen. Two publishers at once would break
-- that: the one with the lower number may commit later, when the devices have passed it already. So whoever changes a
-- shared table first takes one lock and holds it until its COMMIT: numbers become visible in the order in which they
-- were given. (Transaction ids and pg_snapshot_xmin would need no lock, but start anew when the database is restored
-- into another cluster, and then devices would miss what follows.) Publishing is a person's work: waiting costs nothing.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_admin') THEN
        CREATE ROLE loupe_admin NOLOGIN;
    END IF;
    GRANT loupe_ops TO loupe_admin;
END
$$;

SET LOCAL ROLE loupe_owner;

CREATE SEQUENCE loupe.change_numbers;
COMMENT ON SEQUENCE loupe.change_numbers IS 'Numbers every change of a shared table, given under the lock of loupe.order_writers()';

CREATE FUNCTION loupe.may_publish() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role(session_user, 'loupe_owner', 'MEMBER') OR pg_has_role(session_user, 'loupe_admin', 'MEMBER')
$$;
COMMENT ON FUNCTION loupe.may_publish() IS 'Whether this login may tell sites what to use';

-- Before the statement, so that no row is locked yet: two publishers of the same rows wait for one another, not in a circle.
CREATE FUNCTION loupe.order_writers() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('loupe.change_numbers'));
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loupe.order_writers() IS 'Holds back other publishers until this transaction has ended';

CREATE FUNCTION loupe.number_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.site_id IS DISTINCT FROM OLD.site_id THEN
        RAISE EXCEPTION 'a row of %.% stays with its site: withdraw it and publish it anew', TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'check_violation';
    END IF;
    NEW.change_seq := nextval('loupe.change_numbers');
    NEW.updated_at := clock_timestamp();
    NEW.updated_by := session_user;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION loupe.number_change() IS 'Gives a changed row the next number, for the cursors of the devices';

CREATE FUNCTION loupe.refuse_deletion() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'rows of %.% are withdrawn (is_active = false), not deleted: devices could not learn of it',
        TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'check_violation';
END
$$;
COMMENT ON FUNCTION loupe.refuse_deletion() IS 'Keeps rows that devices may have';

-- Called in a transaction for each table that flows down: common columns, order, row-level security, grants.
CREATE FUNCTION loupe.share(target regclass) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    short text := (SELECT relname FROM pg_class WHERE oid = target);
    said record;
BEGIN
    EXECUTE format('ALTER TABLE %s
        ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT %I PRIMARY KEY,
        ADD COLUMN site_id uuid CONSTRAINT %I REFERENCES loupe.sites (id),
        ADD COLUMN format int NOT NULL DEFAULT 1 CONSTRAINT %I CHECK (format >= 1),
        ADD COLUMN is_active boolean NOT NULL DEFAULT true,
        ADD COLUMN change_seq bigint NOT NULL CONSTRAINT %I UNIQUE,
        ADD COLUMN created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ADD COLUMN created_by text NOT NULL DEFAULT session_user,
        ADD COLUMN updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ADD COLUMN updated_by text NOT NULL DEFAULT session_user',
        target, short || '_pk', short || '_site_fk', short || '_format_ck', short || '_change_seq_uq');
    FOR said IN SELECT * FROM (VALUES
        ('id', 'Of the row'),
        ('site_id', 'The site it is for; NULL: every site'),
        ('format', 'Layout of the row; a device sets aside what is newer than it knows'),
        ('is_active', 'false: withdrawn, devices take it back'),
        ('change_seq', 'Number of its last change; the cursor of the devices'),
        ('created_at', 'When it was first published'),
        ('created_by', 'Login that did'),
        ('updated_at', 'When it last changed'),
        ('updated_by', 'Login that changed it')) AS c (name, words)
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', target, said.name, said.words);
    END LOOP;
    EXECUTE format('CREATE TRIGGER a_order_writers BEFORE INSERT OR UPDATE ON %s
        FOR EACH STATEMENT EXECUTE FUNCTION loupe.order_writers()', target);
    EXECUTE format('CREATE TRIGGER b_number_change BEFORE INSERT OR UPDATE ON %s
        FOR EACH ROW EXECUTE FUNCTION loupe.number_change()', target);
    EXECUTE format('CREATE TRIGGER c_refuse_deletion BEFORE DELETE OR TRUNCATE ON %s
        FOR EACH STATEMENT EXECUTE FUNCTION loupe.refuse_deletion()', target);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY shared_reads ON %s FOR SELECT TO PUBLIC USING ((SELECT loupe.reads_all())
        OR site_id = (SELECT loupe.current_site())
        OR (site_id IS NULL AND (SELECT loupe.current_site()) IS NOT NULL))', target);
    EXECUTE format('CREATE POLICY published_inserts ON %s FOR INSERT TO PUBLIC WITH CHECK ((SELECT loupe.may_publish()))', target);
    EXECUTE format('CREATE POLICY published_updates ON %s FOR UPDATE TO PUBLIC USING ((SELECT loupe.may_publish()))
        WITH CHECK ((SELECT loupe.may_publish()))', target);
    EXECUTE format('GRANT SELECT ON %s TO loupe_device, loupe_ops', target);
    EXECUTE format('GRANT INSERT, UPDATE ON %s TO loupe_admin', target);
END
$$;
COMMENT ON FUNCTION loupe.share(regclass) IS 'Common columns, order of changes, row-level security and grants of a table that flows down';
REVOKE EXECUTE ON FUNCTION loupe.share(regclass) FROM PUBLIC;

-- One number may have a row for every site and one for a site, which then has its own: keys are by number and scope,
-- and rows name one another by number.

CREATE TABLE loupe.categories (
    code text NOT NULL CONSTRAINT categories_code_ck CHECK (code <> ''),
    name_en text NOT NULL CONSTRAINT categories_name_en_ck CHECK (name_en <> ''),
    name_ko text,
    parent_code text
);
COMMENT ON TABLE loupe.categories IS 'Categories of parts';
COMMENT ON COLUMN loupe.categories.code IS 'What parts name it by';
COMMENT ON COLUMN loupe.categories.name_en IS 'Name in English';
COMMENT ON COLUMN loupe.categories.name_ko IS 'Name in Korean';
COMMENT ON COLUMN loupe.categories.parent_code IS 'The wider category';
SELECT loupe.share('loupe.categories');
CREATE UNIQUE INDEX categories_code_uq ON loupe.categories (code, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.colors (
    color_id int NOT NULL,
    name text NOT NULL CONSTRAINT colors_name_ck CHECK (name <> ''),
    name_ko text,
    rgb text NOT NULL CONSTRAINT colors_rgb_ck CHECK (rgb ~ '^[0-9A-F]{6}$'),
    is_transparent boolean NOT NULL
);
COMMENT ON TABLE loupe.colors IS 'Colours of parts';
COMMENT ON COLUMN loupe.colors.color_id IS 'Number of the colour';
COMMENT ON COLUMN loupe.colors.name IS 'Name in English';
COMMENT ON COLUMN loupe.colors.name_ko IS 'Name in Korean';
COMMENT ON COLUMN loupe.colors.rgb IS 'RRGGBB, hexadecimal';
COMMENT ON COLUMN loupe.colors.is_transparent IS 'Lets light through';
SELECT loupe.share('loupe.colors');
CREATE UNIQUE INDEX colors_color_id_uq ON loupe.colors (color_id, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.parts (
    part_number text NOT NULL CONSTRAINT parts_part_number_ck CHECK (part_number <> ''),
    name_en text NOT NULL CONSTRAINT parts_name_en_ck CHECK (name_en <> ''),
    name_ko text,
    category_code text,
    length_mm double precision CONSTRAINT parts_length_mm_ck CHECK (length_mm > 0 AND length_mm < 'Infinity'),
    width_mm double precision CONSTRAINT parts_width_mm_ck CHECK (width_mm > 0 AND width_mm < 'Infinity'),
    height_mm double precision CONSTRAINT parts_height_mm_ck CHECK (height_mm > 0 AND height_mm < 'Infinity'),
    weight_g double precision CONSTRAINT parts_weight_g_ck CHECK (weight_g > 0 AND weight_g < 'Infinity'),
    confusion_group text
);
COMMENT ON TABLE loupe.parts IS 'Parts that sites inspect; how far a part is prepared is each site''s own evidence';
COMMENT ON COLUMN loupe.parts.part_number IS 'What templates and items name it by';
COMMENT ON COLUMN loupe.parts.name_en IS 'Name in English';
COMMENT ON COLUMN loupe.parts.name_ko IS 'Name in Korean';
COMMENT ON COLUMN loupe.parts.category_code IS 'Its category';
COMMENT ON COLUMN loupe.parts.length_mm IS 'Along x';
COMMENT ON COLUMN loupe.parts.width_mm IS 'Along z';
COMMENT ON COLUMN loupe.parts.height_mm IS 'Along y, upwards';
COMMENT ON COLUMN loupe.parts.weight_g IS 'Of one';
COMMENT ON COLUMN loupe.parts.confusion_group IS 'Code of the group of parts it is confused with';
SELECT loupe.share('loupe.parts');
CREATE UNIQUE INDEX parts_part_number_uq ON loupe.parts (part_number, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.part_relations (
    part_number text NOT NULL,
    related_part_number text NOT NULL,
    kind text NOT NULL DEFAULT 'similar' CONSTRAINT part_relations_kind_ck CHECK (kind IN ('similar')),
    similarity double precision NOT NULL CONSTRAINT part_relations_similarity_ck CHECK (similarity BETWEEN -1.001 AND 1.001),
    CONSTRAINT part_relations_order_ck CHECK (part_number < related_part_number COLLATE "C")
);
COMMENT ON TABLE loupe.part_relations IS 'Parts that look alike';
COMMENT ON COLUMN loupe.part_relations.part_number IS 'The lesser number of the two';
COMMENT ON COLUMN loupe.part_relations.related_part_number IS 'The greater';
COMMENT ON COLUMN loupe.part_relations.kind IS 'How they are related';
COMMENT ON COLUMN loupe.part_relations.similarity IS 'Cosine';
SELECT loupe.share('loupe.part_relations');
CREATE UNIQUE INDEX part_relations_parts_uq ON loupe.part_relations
    (part_number, related_part_number, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.access_policies (
    subject_kind text NOT NULL CONSTRAINT access_policies_subject_kind_ck CHECK (subject_kind IN ('part', 'kit', 'product', 'recipe')),
    subject text NOT NULL CONSTRAINT access_policies_subject_ck CHECK (subject <> ''),
    security_level text NOT NULL
        CONSTRAINT access_policies_security_level_ck CHECK (security_level IN ('public', 'internal', 'restricted', 'secret')),
    allowed_groups text[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE loupe.access_policies IS 'Who may see what at the sites';
COMMENT ON COLUMN loupe.access_policies.subject_kind IS 'What it is about';
COMMENT ON COLUMN loupe.access_policies.subject IS 'Part number, kit code or name';
COMMENT ON COLUMN loupe.access_policies.security_level IS 'How far it may be seen';
COMMENT ON COLUMN loupe.access_policies.allowed_groups IS 'Names of groups';
SELECT loupe.share('loupe.access_policies');
CREATE UNIQUE INDEX access_policies_subject_uq ON loupe.access_policies
    (subject_kind, subject, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.kits (
    kit_code text NOT NULL CONSTRAINT kits_kit_code_ck CHECK (kit_code <> ''),
    name text NOT NULL CONSTRAINT kits_name_ck CHECK (name <> '')
);
COMMENT ON TABLE loupe.kits IS 'Expected parts and counts; flows down with its lines as one';
COMMENT ON COLUMN loupe.kits.kit_code IS 'What people call it by';
COMMENT ON COLUMN loupe.kits.name IS 'For people';
SELECT loupe.share('loupe.kits');
CREATE UNIQUE INDEX kits_kit_code_uq ON loupe.kits (kit_code, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE TABLE loupe.kit_parts (
    kit_id uuid NOT NULL CONSTRAINT kit_parts_kit_fk REFERENCES loupe.kits (id),
    ordinal int NOT NULL CONSTRAINT kit_parts_ordinal_ck CHECK (ordinal >= 0),
    part_number text NOT NULL,
    color_id int,
    quantity int NOT NULL CONSTRAINT kit_parts_quantity_ck CHECK (quantity >= 1),
    is_spare boolean NOT NULL,
    alternate_group text,
    CONSTRAINT kit_parts_pk PRIMARY KEY (kit_id, ordinal)
);
COMMENT ON TABLE loupe.kit_parts IS 'Lines of kits; a change of them is a change of their kit';
COMMENT ON COLUMN loupe.kit_parts.kit_id IS 'The kit';
COMMENT ON COLUMN loupe.kit_parts.ordinal IS 'Position of the line';
COMMENT ON COLUMN loupe.kit_parts.part_number IS 'What is expected';
COMMENT ON COLUMN loupe.kit_parts.color_id IS 'In this colour only; NULL: in any';
COMMENT ON COLUMN loupe.kit_parts.quantity IS 'How many';
COMMENT ON COLUMN loupe.kit_parts.is_spare IS 'May be there and need not';
COMMENT ON COLUMN loupe.kit_parts.alternate_group IS 'Lines of one group stand in for one another';

CREATE FUNCTION loupe.touch_kits() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE loupe.kits k SET updated_at = clock_timestamp() WHERE k.id IN (SELECT c.kit_id FROM changed c);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loupe.touch_kits() IS 'Numbers the kits whose lines changed';
CREATE TRIGGER touch_kits_insert AFTER INSERT ON loupe.kit_parts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION loupe.touch_kits();
CREATE TRIGGER touch_kits_update AFTER UPDATE ON loupe.kit_parts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION loupe.touch_kits();
CREATE TRIGGER touch_kits_delete AFTER DELETE ON loupe.kit_parts REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION loupe.touch_kits();

ALTER TABLE loupe.kit_parts ENABLE ROW LEVEL SECURITY;
ALTER TABLE loupe.kit_parts FORCE ROW LEVEL SECURITY;
-- As far as its kit may be read: the policies of kits apply to this look.
CREATE POLICY shared_reads ON loupe.kit_parts FOR SELECT TO PUBLIC
    USING (EXISTS (SELECT FROM loupe.kits k WHERE k.id = kit_parts.kit_id));
CREATE POLICY published_writes ON loupe.kit_parts FOR ALL TO PUBLIC
    USING ((SELECT loupe.may_publish())) WITH CHECK ((SELECT loupe.may_publish()));
GRANT SELECT ON loupe.kit_parts TO loupe_device, loupe_ops;
GRANT INSERT, UPDATE, DELETE ON loupe.kit_parts TO loupe_admin;

CREATE TABLE loupe.recipes (
    sha256 bytea NOT NULL,
    name text NOT NULL CONSTRAINT recipes_name_ck CHECK (name <> ''),
    version_label text NOT NULL,
    body text NOT NULL CONSTRAINT recipes_body_ck CHECK (octet_length(body) BETWEEN 1 AND 262144),
    CONSTRAINT recipes_sha256_ck CHECK (sha256 = pg_catalog.sha256(convert_to(body, 'UTF8')))
);
COMMENT ON TABLE loupe.recipes IS 'Inspection programs with their thresholds; content-addressed, never edited';
COMMENT ON COLUMN loupe.recipes.sha256 IS 'Of body, octet by octet';
COMMENT ON COLUMN loupe.recipes.name IS 'As body says';
COMMENT ON COLUMN loupe.recipes.version_label IS 'As body says';
COMMENT ON COLUMN loupe.recipes.body IS 'The recipe''s TOML text';
SELECT loupe.share('loupe.recipes');
CREATE UNIQUE INDEX recipes_sha256_uq ON loupe.recipes (sha256, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)));

CREATE FUNCTION loupe.refuse_edit() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'rows of %.% are named by their content and never edited: publish another', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END
$$;
COMMENT ON FUNCTION loupe.refuse_edit() IS 'Keeps what is named by its content as it is';
CREATE TRIGGER refuse_edit BEFORE UPDATE OF sha256, name, version_label, body ON loupe.recipes
    FOR EACH ROW WHEN ((OLD.sha256, OLD.name, OLD.version_label, OLD.body) IS DISTINCT FROM (NEW.sha256, NEW.name, NEW.version_label, NEW.body))
    EXECUTE FUNCTION loupe.refuse_edit();

CREATE TABLE loupe.recipe_assignments (
    station text CONSTRAINT recipe_assignments_station_ck CHECK (station <> ''),
    recipe_id uuid NOT NULL CONSTRAINT recipe_assignments_recipe_fk REFERENCES loupe.recipes (id),
    note text
);
COMMENT ON TABLE loupe.recipe_assignments IS
    'Which recipe a site''s stations are to run. A new one ends the one before it, which stays as a withdrawn row: from created_at to updated_at';
COMMENT ON COLUMN loupe.recipe_assignments.station IS 'Station by name; NULL: every station of the site that takes its recipe from here';
COMMENT ON COLUMN loupe.recipe_assignments.recipe_id IS 'The recipe';
COMMENT ON COLUMN loupe.recipe_assignments.note IS 'Why, in a sentence';
SELECT loupe.share('loupe.recipe_assignments');
CREATE UNIQUE INDEX recipe_assignments_active_uq ON loupe.recipe_assignments
    ((coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)), (coalesce(station, ''))) WHERE is_active;
CREATE INDEX recipe_assignments_recipe_id_idx ON loupe.recipe_assignments (recipe_id);

RESET ROLE;
