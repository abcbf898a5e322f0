-- Who changed what, provably; which partitions there are and for how long; what must not be deleted.
--
-- One call makes a new table fit in: loupe.protect(table, class) for what devices write, loupe.protect_derived(table,
-- class, unit) for what jobs compute, loupe.protect_reference(table) for what people edit here (with its audit).

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_admin') THEN
        CREATE ROLE loupe_admin NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_job') THEN
        CREATE ROLE loupe_job NOLOGIN;
    END IF;
    GRANT loupe_ops TO loupe_admin;
    GRANT loupe_ops, loupe_owner TO loupe_job;
END
$$;

SET LOCAL ROLE loupe_owner;

CREATE FUNCTION loupe.uuid_v7() RETURNS uuid
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    -- A random UUID with the milliseconds in its first 48 bits; bits 52 and 53 turn its version from 4 to 7.
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;
COMMENT ON FUNCTION loupe.uuid_v7() IS 'A new id (RFC 9562) for a row born here';

CREATE FUNCTION loupe.writes_reference() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role(session_user, 'loupe_owner', 'MEMBER') OR pg_has_role(session_user, 'loupe_admin', 'MEMBER')
$$;
COMMENT ON FUNCTION loupe.writes_reference() IS 'Whether this login may edit sites, policies and what else people keep here';

-- ---------------------------------------------------------------------------------------------------- audit

CREATE TABLE loupe.audit_log (
    site_id     uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id          uuid NOT NULL,
    chain       text NOT NULL
        CONSTRAINT audit_log_chain_ck CHECK ((chain = 'central') = (site_id = '00000000-0000-0000-0000-000000000000')),
    chain_seq   bigint NOT NULL CONSTRAINT audit_log_chain_seq_ck CHECK (chain_seq >= 1),
    prev_sha256 bytea NOT NULL CONSTRAINT audit_log_prev_sha256_ck CHECK (octet_length(prev_sha256) = 32),
    row_sha256  bytea NOT NULL CONSTRAINT audit_log_row_sha256_ck CHECK (octet_length(row_sha256) = 32),
    actor_kind  text NOT NULL
        CONSTRAINT audit_log_actor_kind_ck CHECK (actor_kind IN ('user', 'device', 'system', 'central')),
    actor_id    text,
    actor_name  text NOT NULL,
    action      text NOT NULL
        CONSTRAINT audit_log_action_ck CHECK (action IN ('create', 'update', 'delete', 'view', 'download', 'export',
            'login', 'logout', 'login_failed', 'approve', 'override', 'deploy', 'rollback')),
    entity_type text NOT NULL,
    entity_id   text,
    old_values  jsonb,
    new_values  jsonb,
    details     jsonb,
    status      text NOT NULL CONSTRAINT audit_log_status_ck CHECK (status IN ('success', 'failure')),
    ip          inet,
    user_agent  text,
    request_id  text,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_log_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.audit_log_default PARTITION OF loupe.audit_log DEFAULT;
COMMENT ON TABLE loupe.audit_log IS 'Changes of what people keep here, each chained to the one before by its digest';
COMMENT ON COLUMN loupe.audit_log.site_id IS 'The nil UUID: the row was born at the centre';
COMMENT ON COLUMN loupe.audit_log.occurred_at IS 'When, by the clock of this server';
COMMENT ON COLUMN loupe.audit_log.id IS 'UUIDv7';
COMMENT ON COLUMN loupe.audit_log.chain IS 'Whose chain: central';
COMMENT ON COLUMN loupe.audit_log.chain_seq IS 'Position in its chain, from 1, without gaps';
COMMENT ON COLUMN loupe.audit_log.prev_sha256 IS 'row_sha256 of the position before; zeros at the first';
COMMENT ON COLUMN loupe.audit_log.row_sha256 IS 'SHA-256 of prev_sha256 and the row as loupe.audit_text() writes it';
COMMENT ON COLUMN loupe.audit_log.actor_kind IS 'user, device, system or central';
COMMENT ON COLUMN loupe.audit_log.actor_id IS 'What the session set as loupe.user_id: the person behind the login';
COMMENT ON COLUMN loupe.audit_log.actor_name IS 'The login';
COMMENT ON COLUMN loupe.audit_log.action IS 'What was done';
COMMENT ON COLUMN loupe.audit_log.entity_type IS 'To a row of which table, or to a partition';
COMMENT ON COLUMN loupe.audit_log.entity_id IS 'Key of that row; parts separated by a comma';
COMMENT ON COLUMN loupe.audit_log.old_values IS 'The row before, secrets as digests';
COMMENT ON COLUMN loupe.audit_log.new_values IS 'The row after, secrets as digests';
COMMENT ON COLUMN loupe.audit_log.details IS 'More, by action: an object';
COMMENT ON COLUMN loupe.audit_log.status IS 'success or failure';
COMMENT ON COLUMN loupe.audit_log.ip IS 'Address of the client; NULL on a local socket';
COMMENT ON COLUMN loupe.audit_log.user_agent IS 'application_name of the session';
COMMENT ON COLUMN loupe.audit_log.request_id IS 'What the session set as loupe.trace_id';
COMMENT ON COLUMN loupe.audit_log.ingested_at IS 'When it arrived here';
CREATE INDEX audit_log_chain_idx ON loupe.audit_log (chain, chain_seq);
CREATE INDEX audit_log_entity_idx ON loupe.audit_log (entity_type, entity_id);
CREATE INDEX audit_log_actor_idx ON loupe.audit_log (actor_name, occurred_at);
ALTER TABLE loupe.audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE loupe.audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY audit_log_reads ON loupe.audit_log FOR SELECT TO PUBLIC
    USING ((SELECT loupe.reads_all()) OR site_id = (SELECT loupe.current_site()));
-- Only loupe.audit() runs as loupe_owner without being asked to.
CREATE POLICY audit_log_writes ON loupe.audit_log FOR INSERT TO loupe_owner
    WITH CHECK (site_id = '00000000-0000-0000-0000-000000000000');
GRANT SELECT ON loupe.audit_log TO loupe_ops;

CREATE TABLE loupe.audit_heads (
    chain       text NOT NULL CONSTRAINT audit_heads_pk PRIMARY KEY,
    last_seq    bigint NOT NULL CONSTRAINT audit_heads_last_seq_ck CHECK (last_seq >= 0),
    last_sha256 bytea NOT NULL CONSTRAINT audit_heads_last_sha256_ck CHECK (octet_length(last_sha256) = 32)
);
COMMENT ON TABLE loupe.audit_heads IS 'Where each chain of audit_log ends, so that rows missing at its end are seen';
COMMENT ON COLUMN loupe.audit_heads.chain IS 'The chain';
COMMENT ON COLUMN loupe.audit_heads.last_seq IS 'Its highest position; 0 before the first';
COMMENT ON COLUMN loupe.audit_heads.last_sha256 IS 'row_sha256 there';

CREATE TABLE loupe.audit_anchors (
    chain       text NOT NULL,
    last_seq    bigint NOT NULL,
    last_sha256 bytea NOT NULL CONSTRAINT audit_anchors_last_sha256_ck CHECK (octet_length(last_sha256) = 32),
    dropped_to  timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_anchors_pk PRIMARY KEY (chain, last_seq)
);
COMMENT ON TABLE loupe.audit_anchors IS 'Where a chain continues after its expired rows were dropped';
COMMENT ON COLUMN loupe.audit_anchors.chain IS 'The chain';
COMMENT ON COLUMN loupe.audit_anchors.last_seq IS 'Highest position that was dropped';
COMMENT ON COLUMN loupe.audit_anchors.last_sha256 IS 'row_sha256 there: prev_sha256 of the next';
COMMENT ON COLUMN loupe.audit_anchors.dropped_to IS 'Rows before this time are gone';
COMMENT ON COLUMN loupe.audit_anchors.created_at IS 'When they were dropped';

DO $$
DECLARE
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY['audit_heads', 'audit_anchors'] LOOP
        EXECUTE format('ALTER TABLE loupe.%I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE loupe.%I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY %I ON loupe.%I FOR SELECT TO PUBLIC USING ((SELECT loupe.reads_all()))',
            target || '_reads', target);
        EXECUTE format('CREATE POLICY %I ON loupe.%I FOR ALL TO loupe_owner USING (true) WITH CHECK (true)',
            target || '_writes', target);
        EXECUTE format('GRANT SELECT ON loupe.%I TO loupe_ops', target);
    END LOOP;
END
$$;
INSERT INTO loupe.audit_heads VALUES ('central', 0, decode(repeat('00', 32), 'hex'));

-- RFC 8785: sorted keys, no blanks, least escapes; every value is a string or null, jsonb as PostgreSQL prints it.
CREATE FUNCTION loupe.audit_text(entry loupe.audit_log) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '{' || string_agg(to_json(f.name)::text || ':' || coalesce(to_json(f.value)::text, 'null'), ','
        ORDER BY f.name COLLATE "C") || '}'
    FROM (VALUES
        ('action', entry.action), ('actor_id', entry.actor_id), ('actor_kind', entry.actor_kind),
        ('actor_name', entry.actor_name), ('chain', entry.chain), ('chain_seq', entry.chain_seq::text),
        ('details', entry.details::text), ('entity_id', entry.entity_id), ('entity_type', entry.entity_type),
        ('id', entry.id::text), ('ip', host(entry.ip)), ('new_values', entry.new_values::text),
        ('occurred_at', to_char(entry.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        ('old_values', entry.old_values::text), ('request_id', entry.request_id), ('site_id', entry.site_id::text),
        ('status', entry.status), ('user_agent', entry.user_agent)
    ) AS f (name, value)
$$;
COMMENT ON FUNCTION loupe.audit_text(loupe.audit_log) IS 'The text of an audit row that its digest is over';

CREATE FUNCTION loupe.audit(
    the_action text, the_entity_type text, the_entity_id text,
    the_old_values jsonb DEFAULT NULL, the_new_values jsonb DEFAULT NULL, the_details jsonb DEFAULT NULL
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    entry loupe.audit_log%ROWTYPE;
BEGIN
    -- The lock orders writers; a session with an old snapshot gets a serialisation failure, never a fork.
    SELECT last_seq + 1, last_sha256 INTO STRICT entry.chain_seq, entry.prev_sha256
    FROM loupe.audit_heads WHERE chain = 'central' FOR UPDATE;
    entry.site_id := '00000000-0000-0000-0000-000000000000';
    entry.occurred_at := clock_timestamp();
    entry.id := loupe.uuid_v7();
    entry.chain := 'central';
    entry.actor_kind := 'central';
    entry.actor_id := NULLIF(current_setting('loupe.user_id', true), '');
    entry.actor_name := session_user;
    entry.action := the_action;
    entry.entity_type := the_entity_type;
    entry.entity_id := the_entity_id;
    entry.old_values := the_old_values;
    entry.new_values := the_new_values;
    entry.details := the_details;
    entry.status := 'success';
    entry.ip := inet_client_addr();
    entry.user_agent := NULLIF(current_setting('application_name', true), '');
    entry.request_id := NULLIF(current_setting('loupe.trace_id', true), '');
    entry.ingested_at := entry.occurred_at;
    entry.row_sha256 := sha256(entry.prev_sha256 || convert_to(loupe.audit_text(entry), 'UTF8'));
    INSERT INTO loupe.audit_log SELECT entry.*;
    UPDATE loupe.audit_heads SET last_seq = entry.chain_seq, last_sha256 = entry.row_sha256 WHERE chain = 'central';
END
$$;
COMMENT ON FUNCTION loupe.audit(text, text, text, jsonb, jsonb, jsonb) IS 'Append to the audit chain of the centre';
REVOKE EXECUTE ON FUNCTION loupe.audit(text, text, text, jsonb, jsonb, jsonb) FROM PUBLIC;

CREATE FUNCTION loupe.redacted(fields jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_object_agg(key, CASE
        WHEN key ~ '(password|secret|token)' AND value <> 'null'
            THEN to_jsonb('sha256:' || encode(sha256(convert_to(value::text, 'UTF8')), 'hex'))
        ELSE value END)
    FROM jsonb_each(fields)
$$;
COMMENT ON FUNCTION loupe.redacted(jsonb) IS 'A row with its secret columns (password, secret, token in the name) as digests';

-- Arguments: the columns of the key.
CREATE FUNCTION loupe.audit_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    before_row jsonb;
    after_row jsonb;
    entity text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM loupe.audit('delete', TG_TABLE_NAME, NULL, NULL, NULL, jsonb_build_object('truncated', true));
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        before_row := loupe.redacted(to_jsonb(OLD));
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after_row := loupe.redacted(to_jsonb(NEW));
    END IF;
    SELECT string_agg(coalesce(after_row, before_row) ->> k.name, ',' ORDER BY k.position) INTO entity
    FROM unnest(TG_ARGV) WITH ORDINALITY AS k (name, position);
    PERFORM loupe.audit(
        CASE TG_OP WHEN 'INSERT' THEN 'create' WHEN 'UPDATE' THEN 'update' ELSE 'delete' END,
        TG_TABLE_NAME, entity, before_row, after_row);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loupe.audit_row() IS 'Trigger: appends each change of a row to the audit chain';
REVOKE EXECUTE ON FUNCTION loupe.audit_row() FROM PUBLIC;

CREATE FUNCTION loupe.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('loupe.moves_rows', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION loupe.refuse_change() IS 'Trigger: refuses UPDATE, DELETE and TRUNCATE; a move between partitions may delete';
REVOKE EXECUTE ON FUNCTION loupe.refuse_change() FROM PUBLIC;
CREATE TRIGGER audit_log_keeps_rows BEFORE UPDATE OR DELETE ON loupe.audit_log
    FOR EACH ROW EXECUTE FUNCTION loupe.refuse_change();
CREATE TRIGGER audit_log_keeps_all BEFORE TRUNCATE ON loupe.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION loupe.refuse_change();

CREATE FUNCTION loupe.audited(target regclass) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_columns text;
BEGIN
    SELECT string_agg(quote_literal(a.attname), ', ' ORDER BY k.position) INTO STRICT key_columns
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = target AND i.indisprimary;
    EXECUTE format('CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON %s '
        'FOR EACH ROW EXECUTE FUNCTION loupe.audit_row(%s)', target, key_columns);
    EXECUTE format('CREATE TRIGGER audit_truncate AFTER TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION loupe.audit_row()', target);
END
$$;
COMMENT ON FUNCTION loupe.audited(regclass) IS 'From now on every change of a row of this table is in audit_log';
REVOKE EXECUTE ON FUNCTION loupe.audited(regclass) FROM PUBLIC;

CREATE FUNCTION loupe.touch_updated_at() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION loupe.touch_updated_at() IS 'Trigger: updated_at says when the row was last edited';
REVOKE EXECUTE ON FUNCTION loupe.touch_updated_at() FROM PUBLIC;

CREATE FUNCTION loupe.protect_reference(target regclass) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_site boolean;
BEGIN
    SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = 'site_id' AND NOT attisdropped)
        INTO has_site;
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY reference_reads ON %s FOR SELECT TO PUBLIC USING ((SELECT loupe.reads_all())%s)',
        target, CASE WHEN has_site THEN ' OR site_id IS NULL OR site_id = (SELECT loupe.current_site())' ELSE '' END);
    EXECUTE format('CREATE POLICY reference_inserts ON %s FOR INSERT TO PUBLIC '
        'WITH CHECK ((SELECT loupe.writes_reference()))', target);
    EXECUTE format('CREATE POLICY reference_updates ON %s FOR UPDATE TO PUBLIC '
        'USING ((SELECT loupe.writes_reference())) WITH CHECK ((SELECT loupe.writes_reference()))', target);
    EXECUTE format('GRANT SELECT ON %s TO loupe_ops', target);
    EXECUTE format('GRANT INSERT, UPDATE ON %s TO loupe_admin', target);
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = 'updated_at' AND NOT attisdropped) THEN
        EXECUTE format('CREATE TRIGGER touch_updated_at BEFORE UPDATE ON %s '
            'FOR EACH ROW EXECUTE FUNCTION loupe.touch_updated_at()', target);
    END IF;
    PERFORM loupe.audited(target);
END
$$;
COMMENT ON FUNCTION loupe.protect_reference(regclass) IS
    'Row-level security, grants, touch and audit of a table that people edit here; site_id NULL means every site';
REVOKE EXECUTE ON FUNCTION loupe.protect_reference(regclass) FROM PUBLIC;

-- ------------------------------------------------------------------------- sites: edited, switched off, audited

ALTER TABLE loupe.sites
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN is_active boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN loupe.sites.updated_at IS 'When it was last edited';
COMMENT ON COLUMN loupe.sites.is_active IS 'Whether its devices may deliver; false after `loupe db revoke-site`';
CREATE POLICY sites_update ON loupe.sites FOR UPDATE TO PUBLIC
    USING ((SELECT loupe.writes_reference())) WITH CHECK ((SELECT loupe.writes_reference()));
CREATE POLICY sites_admit ON loupe.sites FOR INSERT TO PUBLIC WITH CHECK ((SELECT loupe.writes_reference()));
CREATE POLICY site_logins_update ON loupe.site_logins FOR UPDATE TO PUBLIC
    USING ((SELECT loupe.writes_reference())) WITH CHECK ((SELECT loupe.writes_reference()));
CREATE POLICY site_logins_admit ON loupe.site_logins FOR INSERT TO PUBLIC WITH CHECK ((SELECT loupe.writes_reference()));
GRANT INSERT, UPDATE ON loupe.sites, loupe.site_logins TO loupe_admin;
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON loupe.sites FOR EACH ROW EXECUTE FUNCTION loupe.touch_updated_at();
SELECT loupe.audited('loupe.sites'), loupe.audited('loupe.site_logins');

-- --------------------------------------------------------------------------------- partitions and retention

CREATE TABLE loupe.partition_policies (
    table_name text NOT NULL CONSTRAINT partition_policies_pk PRIMARY KEY,
    unit       text NOT NULL CONSTRAINT partition_policies_unit_ck CHECK (unit IN ('week', 'month', 'year')),
    ahead      int NOT NULL CONSTRAINT partition_policies_ahead_ck CHECK (ahead BETWEEN 1 AND 60),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE loupe.partition_policies IS 'How each partitioned table is cut; one without a row here is cut by month';
COMMENT ON COLUMN loupe.partition_policies.table_name IS 'The table, in schema loupe';
COMMENT ON COLUMN loupe.partition_policies.unit IS 'Length of a partition, in UTC; a change holds for partitions not yet made';
COMMENT ON COLUMN loupe.partition_policies.ahead IS 'Partitions kept ready beyond the present one';
COMMENT ON COLUMN loupe.partition_policies.created_at IS 'When the row was made';
COMMENT ON COLUMN loupe.partition_policies.updated_at IS 'When it was last edited';
COMMENT ON COLUMN loupe.partition_policies.created_by IS 'Login that made it';

CREATE TABLE loupe.retention_policies (
    table_name text NOT NULL CONSTRAINT retention_policies_pk PRIMARY KEY,
    class      text NOT NULL CONSTRAINT retention_policies_class_ck CHECK (class IN ('verdict', 'detail', 'media',
        'telemetry', 'rollup', 'log', 'work', 'audit', 'keep')),
    keep_days  int CONSTRAINT retention_policies_keep_days_ck CHECK (keep_days BETWEEN 1 AND 36525),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL DEFAULT session_user,
    CONSTRAINT retention_policies_keep_ck CHECK ((class = 'keep') = (keep_days IS NULL))
);
COMMENT ON TABLE loupe.retention_policies IS 'How long rows are kept; a table without a row here is kept for ever';
COMMENT ON COLUMN loupe.retention_policies.table_name IS 'The table, in schema loupe';
COMMENT ON COLUMN loupe.retention_policies.class IS 'Retention class of the data model';
COMMENT ON COLUMN loupe.retention_policies.keep_days IS 'A partition is dropped when its last day is older; NULL: never';
COMMENT ON COLUMN loupe.retention_policies.created_at IS 'When the row was made';
COMMENT ON COLUMN loupe.retention_policies.updated_at IS 'When it was last edited';
COMMENT ON COLUMN loupe.retention_policies.created_by IS 'Login that made it';

CREATE TABLE loupe.legal_holds (
    id          uuid NOT NULL DEFAULT loupe.uuid_v7() CONSTRAINT legal_holds_pk PRIMARY KEY,
    site_id     uuid CONSTRAINT legal_holds_site_fk REFERENCES loupe.sites (id),
    starts_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL CONSTRAINT legal_holds_ends_at_ck CHECK (ends_at > starts_at),
    reason      text NOT NULL CONSTRAINT legal_holds_reason_ck CHECK (reason <> ''),
    released_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by  text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE loupe.legal_holds IS 'Rows that retention must not delete, whatever their age';
COMMENT ON COLUMN loupe.legal_holds.id IS 'UUIDv7';
COMMENT ON COLUMN loupe.legal_holds.site_id IS 'Rows of this site; NULL: of every site';
COMMENT ON COLUMN loupe.legal_holds.starts_at IS 'Rows with a key time from here';
COMMENT ON COLUMN loupe.legal_holds.ends_at IS 'to before here, in every partitioned table';
COMMENT ON COLUMN loupe.legal_holds.reason IS 'Why';
COMMENT ON COLUMN loupe.legal_holds.released_at IS 'Since when it holds no more; NULL while it does';
COMMENT ON COLUMN loupe.legal_holds.created_at IS 'When it was placed';
COMMENT ON COLUMN loupe.legal_holds.updated_at IS 'When it was last edited';
COMMENT ON COLUMN loupe.legal_holds.created_by IS 'Login that placed it';

SELECT loupe.protect_reference('loupe.partition_policies');
SELECT loupe.protect_reference('loupe.retention_policies');
SELECT loupe.protect_reference('loupe.legal_holds');

CREATE FUNCTION loupe.keep_days_of(class text) RETURNS int
    LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    -- Months of the data model in days, rounded up; work: after its end.
    SELECT CASE class WHEN 'verdict' THEN 1097 WHEN 'detail' THEN 397 WHEN 'media' THEN 397 WHEN 'telemetry' THEN 30
        WHEN 'rollup' THEN 762 WHEN 'log' THEN 90 WHEN 'work' THEN 397 WHEN 'audit' THEN 2558 END
$$;
COMMENT ON FUNCTION loupe.keep_days_of(text) IS 'Days that a retention class is kept unless a policy says otherwise';

CREATE FUNCTION loupe.register(target regclass, class text, unit text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bare_name text;
BEGIN
    SELECT relname INTO STRICT bare_name FROM pg_class WHERE oid = target AND relkind = 'p';
    INSERT INTO loupe.partition_policies (table_name, unit, ahead)
    VALUES (bare_name, unit, CASE unit WHEN 'week' THEN 12 WHEN 'month' THEN 3 ELSE 1 END)
    ON CONFLICT (table_name) DO NOTHING;
    INSERT INTO loupe.retention_policies (table_name, class, keep_days)
    VALUES (bare_name, class, loupe.keep_days_of(class))
    ON CONFLICT (table_name) DO NOTHING;
END
$$;
COMMENT ON FUNCTION loupe.register(regclass, text, text) IS 'Give a partitioned table its first policies';
REVOKE EXECUTE ON FUNCTION loupe.register(regclass, text, text) FROM PUBLIC;

CREATE FUNCTION loupe.protect(target regclass, class text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY site_reads ON %s FOR SELECT TO PUBLIC USING '
        '((SELECT loupe.reads_all()) OR site_id = (SELECT loupe.current_site()))', target);
    EXECUTE format('CREATE POLICY site_inserts ON %s FOR INSERT TO PUBLIC WITH CHECK '
        '(site_id = (SELECT loupe.current_site()))', target);
    EXECUTE format('GRANT INSERT ON %s TO loupe_device', target);
    EXECUTE format('GRANT SELECT ON %s TO loupe_ops', target);
    IF (SELECT relkind = 'p' FROM pg_class WHERE oid = target) THEN
        PERFORM loupe.register(target, class, 'month');
    END IF;
END
$$;
COMMENT ON FUNCTION loupe.protect(regclass, text) IS
    'Row-level security, grants and retention class of a table that sites write';
REVOKE EXECUTE ON FUNCTION loupe.protect(regclass, text) FROM PUBLIC;

-- The longest class, until a migration or an admin says otherwise.
CREATE OR REPLACE FUNCTION loupe.protect(target regclass) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$ SELECT loupe.protect(target, 'verdict') $$;

CREATE FUNCTION loupe.protect_derived(target regclass, class text, unit text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY site_reads ON %s FOR SELECT TO PUBLIC USING '
        '((SELECT loupe.reads_all()) OR site_id = (SELECT loupe.current_site()))', target);
    EXECUTE format('CREATE POLICY job_inserts ON %s FOR INSERT TO PUBLIC '
        'WITH CHECK ((SELECT loupe.is_owner()))', target);
    EXECUTE format('CREATE POLICY job_updates ON %s FOR UPDATE TO PUBLIC '
        'USING ((SELECT loupe.is_owner())) WITH CHECK ((SELECT loupe.is_owner()))', target);
    EXECUTE format('GRANT SELECT ON %s TO loupe_ops', target);
    IF (SELECT relkind = 'p' FROM pg_class WHERE oid = target) THEN
        PERFORM loupe.register(target, class, unit);
    END IF;
END
$$;
COMMENT ON FUNCTION loupe.protect_derived(regclass, text, text) IS
    'Row-level security, grants and policies of a table that jobs compute from what sites wrote';
REVOKE EXECUTE ON FUNCTION loupe.protect_derived(regclass, text, text) FROM PUBLIC;

SELECT loupe.register('loupe.audit_log', 'audit', 'month');
SELECT loupe.register('loupe.inspections', 'verdict', 'month');
SELECT loupe.register('loupe.items', 'detail', 'month');
SELECT loupe.register('loupe.anomaly_maps', 'detail', 'month');
SELECT loupe.register('loupe.frame_qa_logs', 'detail', 'month');
SELECT loupe.register('loupe.gpu_stats', 'telemetry', 'month');
SELECT loupe.register('loupe.ingest_batches', 'detail', 'month');
SELECT loupe.register('loupe.reviews', 'verdict', 'month');
SELECT loupe.register('loupe.kit_sessions', 'verdict', 'month');
-- The stock is the sum of its bookings; nothing yet writes an opening balance for those that would be dropped.
SELECT loupe.register('loupe.stock_ledger', 'keep', 'month');

CREATE FUNCTION loupe.partition_bounds() RETURNS TABLE (
    table_name text, key_column text, partition_name text, is_default boolean,
    starts_at timestamptz, ends_at timestamptz
)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO'
AS $$
    SELECT p.relname::text, a.attname::text, c.relname::text, t.partdefid = c.oid,
        (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz,
        (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz
    FROM pg_partitioned_table t
    JOIN pg_class p ON p.oid = t.partrelid
    JOIN pg_namespace n ON n.oid = p.relnamespace
    JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum = t.partattrs[0]
    JOIN pg_inherits i ON i.inhparent = p.oid
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE n.nspname = 'loupe' AND t.partstrat = 'r'
$$;
COMMENT ON FUNCTION loupe.partition_bounds() IS 'Every partition here, with its range; DEFAULT has none';

CREATE FUNCTION loupe.partition_name(table_name text, unit text, starts_at timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
    SELECT table_name || '_' || to_char(starts_at,
        CASE unit WHEN 'week' THEN 'IYYY_"w"IW' WHEN 'month' THEN 'YYYY_MM' ELSE 'YYYY' END)
$$;
COMMENT ON FUNCTION loupe.partition_name(text, text, timestamptz) IS 'inspections_2026_11, audit_log_2026, gpu_stats_2026_w47';

-- Make the partition that `at` falls into, with the rows that DEFAULT holds of it. NULL: it is there, or one in its way.
CREATE FUNCTION loupe.make_partition(of_table text, at timestamptz) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    period text;
    starts timestamptz;
    ends timestamptz;
    new_name text;
    key_name text;
    default_name text;
    columns text;
    holds_rows boolean;
BEGIN
    -- Two jobs at once would both find it missing.
    PERFORM pg_advisory_xact_lock(hashtext('loupe.ensure_partitions'));
    SELECT coalesce((SELECT unit FROM loupe.partition_policies WHERE table_name = of_table), 'month') INTO period;
    starts := date_trunc(period, at);
    ends := starts + ('1 ' || period)::interval;
    new_name := loupe.partition_name(of_table, period, starts);
    IF to_regclass(format('loupe.%I', new_name)) IS NOT NULL OR EXISTS (
        SELECT FROM loupe.partition_bounds() b
        WHERE b.table_name = of_table AND b.starts_at < ends AND b.ends_at > starts
    ) THEN
        RETURN NULL;
    END IF;
    SELECT b.key_column, b.partition_name INTO STRICT key_name, default_name
    FROM loupe.partition_bounds() b WHERE b.table_name = of_table AND b.is_default;
    -- No device may put a row of this time into DEFAULT between the look and the attachment.
    EXECUTE format('LOCK TABLE loupe.%I IN SHARE ROW EXCLUSIVE MODE', of_table);
    EXECUTE format('SELECT EXISTS (SELECT FROM loupe.%I WHERE %I >= %L AND %I < %L)',
        default_name, key_name, starts, key_name, ends) INTO holds_rows;
    IF holds_rows THEN
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns
        FROM pg_attribute
        WHERE attrelid = format('loupe.%I', of_table)::regclass AND attnum > 0 AND NOT attisdropped
            AND attgenerated = '';
        EXECUTE format('CREATE TABLE loupe.%I (LIKE loupe.%I INCLUDING ALL)', new_name, of_table);
        PERFORM set_config('loupe.moves_rows', 'on', true);
        EXECUTE format('WITH moved AS (DELETE FROM loupe.%I WHERE %I >= %L AND %I < %L RETURNING *) '
            'INSERT INTO loupe.%I (%s) SELECT %s FROM moved',
            default_name, key_name, starts, key_name, ends, new_name, columns, columns);
        PERFORM set_config('loupe.moves_rows', 'off', true);
        EXECUTE format('ALTER TABLE loupe.%I ATTACH PARTITION loupe.%I FOR VALUES FROM (%L) TO (%L)',
            of_table, new_name, starts, ends);
    ELSE
        EXECUTE format('CREATE TABLE loupe.%I PARTITION OF loupe.%I FOR VALUES FROM (%L) TO (%L)',
            new_name, of_table, starts, ends);
    END IF;
    RETURN new_name;
END
$$;
COMMENT ON FUNCTION loupe.make_partition(text, timestamptz) IS
    'Makes the partition of that time, moving rows out of DEFAULT; its name, or NULL where there is one';
REVOKE EXECUTE ON FUNCTION loupe.make_partition(text, timestamptz) FROM PUBLIC;

CREATE OR REPLACE FUNCTION loupe.ensure_partitions(months_ahead int DEFAULT NULL) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    parent record;
    made text;
BEGIN
    FOR parent IN
        SELECT c.relname::text AS table_name, coalesce(p.unit, 'month') AS unit,
            coalesce(months_ahead, p.ahead, 3) AS ahead
        FROM pg_partitioned_table t
        JOIN pg_class c ON c.oid = t.partrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN loupe.partition_policies p ON p.table_name = c.relname
        WHERE n.nspname = 'loupe' AND t.partstrat = 'r'
        ORDER BY c.relname
    LOOP
        FOR i IN 0..parent.ahead LOOP
            made := loupe.make_partition(parent.table_name,
                date_trunc(parent.unit, now()) + i * ('1 ' || parent.unit)::interval);
            IF made IS NOT NULL THEN
                RETURN NEXT made;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loupe.ensure_partitions(int) IS
    'Makes the present partition of each table and those ahead (how many: its policy), moving rows out of DEFAULT; returns the names of new ones';

RESET ROLE;
