-- Roles, sites, and what every other table is protected by.
--
-- One site is one tenant. Each site logs in with a role of its own, bound to it in site_logins; row-level security lets
-- it write its own rows and read their keys, and nothing else.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_owner') THEN
        CREATE ROLE loupe_owner NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_device') THEN
        CREATE ROLE loupe_device NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loupe_ops') THEN
        CREATE ROLE loupe_ops NOLOGIN;
    END IF;
    IF NOT pg_has_role(session_user, 'loupe_owner', 'MEMBER') THEN
        EXECUTE format('GRANT loupe_owner TO %I', session_user);
    END IF;
END
$$;

ALTER SCHEMA loupe OWNER TO loupe_owner;
COMMENT ON SCHEMA loupe IS 'What the sites of this organisation inspected';
GRANT USAGE ON SCHEMA loupe TO loupe_device, loupe_ops;
REVOKE CREATE ON SCHEMA loupe FROM PUBLIC;

COMMENT ON TABLE loupe.schema_migrations IS 'Migrations applied here; written by `loupe db migrate`';
COMMENT ON COLUMN loupe.schema_migrations.version IS 'Number of the file';
COMMENT ON COLUMN loupe.schema_migrations.name IS 'Name of the file';
COMMENT ON COLUMN loupe.schema_migrations.applied_on IS 'When, RFC 3339';
COMMENT ON COLUMN loupe.schema_migrations.checksum IS 'Of the file; a changed file stops the next migration';
GRANT SELECT ON loupe.schema_migrations TO loupe_device, loupe_ops;

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.sites (
    id          uuid NOT NULL CONSTRAINT sites_pk PRIMARY KEY,
    code        text NOT NULL CONSTRAINT sites_code_uq UNIQUE
                CONSTRAINT sites_code_ck CHECK (code ~ '^[a-z0-9-]{2,40}$'),
    name        text NOT NULL CONSTRAINT sites_name_ck CHECK (name <> ''),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by  text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE loupe.sites IS 'Stores and plants; the tenants';
COMMENT ON COLUMN loupe.sites.id IS 'The site_id of every row of the site';
COMMENT ON COLUMN loupe.sites.code IS 'Short name, as in the login loupe_site_<code>';
COMMENT ON COLUMN loupe.sites.name IS 'Name for people';
COMMENT ON COLUMN loupe.sites.created_at IS 'When it was provisioned';
COMMENT ON COLUMN loupe.sites.created_by IS 'Login that provisioned it';

CREATE TABLE loupe.site_logins (
    role_name   text NOT NULL CONSTRAINT site_logins_pk PRIMARY KEY,
    site_id     uuid NOT NULL CONSTRAINT site_logins_site_fk REFERENCES loupe.sites (id),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by  text NOT NULL DEFAULT session_user,
    revoked_at  timestamptz
);
COMMENT ON TABLE loupe.site_logins IS 'Binds a login to its site';
COMMENT ON COLUMN loupe.site_logins.role_name IS 'Login role';
COMMENT ON COLUMN loupe.site_logins.site_id IS 'The only site it may write and read';
COMMENT ON COLUMN loupe.site_logins.created_at IS 'When it was bound';
COMMENT ON COLUMN loupe.site_logins.created_by IS 'Login that bound it';
COMMENT ON COLUMN loupe.site_logins.revoked_at IS 'Since when it may do nothing; NULL while it may';

-- The site of this session: the bound one for a site's login; for ops and owner logins the one they ask for.
-- A session may set loupe.site_id to anything, so a bound login that asks for another site gets NULL, no rows.
CREATE FUNCTION loupe.current_site() RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH asked AS (SELECT NULLIF(current_setting('loupe.site_id', true), '')::uuid AS site_id),
         bound AS (SELECT l.site_id, l.revoked_at FROM loupe.site_logins l WHERE l.role_name = session_user)
    SELECT CASE
        WHEN EXISTS (SELECT FROM bound) THEN
            (SELECT b.site_id FROM bound b
             WHERE b.revoked_at IS NULL AND (asked.site_id IS NULL OR asked.site_id = b.site_id))
        WHEN pg_has_role(session_user, 'loupe_owner', 'MEMBER') OR pg_has_role(session_user, 'loupe_ops', 'MEMBER')
            THEN asked.site_id
        END
    FROM asked
$$;
COMMENT ON FUNCTION loupe.current_site() IS 'The one site this session may touch; NULL: none';

CREATE FUNCTION loupe.reads_all() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NULLIF(current_setting('loupe.site_id', true), '') IS NULL
        AND (pg_has_role(session_user, 'loupe_owner', 'MEMBER') OR pg_has_role(session_user, 'loupe_ops', 'MEMBER'))
$$;
COMMENT ON FUNCTION loupe.reads_all() IS 'Whether this session reads every site: an ops or owner login that asked for none';

CREATE FUNCTION loupe.is_owner() RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_has_role(session_user, 'loupe_owner', 'MEMBER') $$;
COMMENT ON FUNCTION loupe.is_owner() IS 'Whether this login may provision sites';

-- Called in a transaction for each table that sites write.
CREATE FUNCTION loupe.protect(target regclass) RETURNS void
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
END
$$;
COMMENT ON FUNCTION loupe.protect(regclass) IS 'Row-level security and grants of a table that sites write';
REVOKE EXECUTE ON FUNCTION loupe.protect(regclass) FROM PUBLIC;

-- `sites` is keyed by id, and site_logins must be readable before a site is known: policies of their own.
ALTER TABLE loupe.sites ENABLE ROW LEVEL SECURITY;
ALTER TABLE loupe.sites FORCE ROW LEVEL SECURITY;
CREATE POLICY sites_read ON loupe.sites FOR SELECT TO PUBLIC
    USING ((SELECT loupe.reads_all()) OR id = (SELECT loupe.current_site()));
CREATE POLICY sites_provision ON loupe.sites FOR INSERT TO PUBLIC WITH CHECK ((SELECT loupe.is_owner()));
ALTER TABLE loupe.site_logins ENABLE ROW LEVEL SECURITY;
ALTER TABLE loupe.site_logins FORCE ROW LEVEL SECURITY;
CREATE POLICY site_logins_read ON loupe.site_logins FOR SELECT TO PUBLIC
    USING ((SELECT loupe.reads_all()) OR role_name = session_user);
CREATE POLICY site_logins_provision ON loupe.site_logins FOR INSERT TO PUBLIC WITH CHECK ((SELECT loupe.is_owner()));
GRANT SELECT ON loupe.sites TO loupe_device;
GRANT SELECT ON loupe.sites, loupe.site_logins TO loupe_ops;

RESET ROLE;
