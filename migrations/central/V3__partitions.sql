-- Monthly partitions, made ahead by `loupe db migrate` and by whatever runs loupe.ensure_partitions() daily.

SET LOCAL ROLE loupe_owner;

CREATE FUNCTION loupe.ensure_partitions(months_ahead int DEFAULT 3) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    parent record;
    month_start timestamptz;
    month_end timestamptz;
    partition_name text;
    holds_rows boolean;
BEGIN
    -- Two migrations at once would both find a month missing.
    PERFORM pg_advisory_xact_lock(hashtext('loupe.ensure_partitions'));
    FOR parent IN
        SELECT c.relname, a.attname
        FROM pg_partitioned_table p
        JOIN pg_class c ON c.oid = p.partrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
        WHERE n.nspname = 'loupe' AND p.partstrat = 'r'
        ORDER BY c.relname
    LOOP
        FOR i IN 0..months_ahead LOOP
            month_start := date_trunc('month', now()) + make_interval(months => i);
            month_end := month_start + interval '1 month';
            partition_name := format('%s_%s', parent.relname, to_char(month_start, 'YYYY_MM'));
            CONTINUE WHEN to_regclass(format('loupe.%I', partition_name)) IS NOT NULL;
            -- No device may put a row of this month into DEFAULT between the look and the attachment.
            EXECUTE format('LOCK TABLE loupe.%I IN SHARE ROW EXCLUSIVE MODE', parent.relname);
            EXECUTE format('SELECT EXISTS (SELECT FROM loupe.%I WHERE %I >= %L AND %I < %L)',
                parent.relname || '_default', parent.attname, month_start, parent.attname, month_end)
                INTO holds_rows;
            IF holds_rows THEN
                EXECUTE format('CREATE TABLE loupe.%I (LIKE loupe.%I INCLUDING ALL)', partition_name, parent.relname);
                EXECUTE format('WITH moved AS (DELETE FROM loupe.%I WHERE %I >= %L AND %I < %L RETURNING *) '
                    'INSERT INTO loupe.%I SELECT * FROM moved',
                    parent.relname || '_default', parent.attname, month_start, parent.attname, month_end,
                    partition_name);
                EXECUTE format('ALTER TABLE loupe.%I ATTACH PARTITION loupe.%I FOR VALUES FROM (%L) TO (%L)',
                    parent.relname, partition_name, month_start, month_end);
            ELSE
                EXECUTE format('CREATE TABLE loupe.%I PARTITION OF loupe.%I FOR VALUES FROM (%L) TO (%L)',
                    partition_name, parent.relname, month_start, month_end);
            END IF;
            RETURN NEXT partition_name;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loupe.ensure_partitions(int) IS
    'Makes the partitions of this month and those ahead, moving rows out of DEFAULT; returns the names of new ones';
REVOKE EXECUTE ON FUNCTION loupe.ensure_partitions(int) FROM PUBLIC;

RESET ROLE;
