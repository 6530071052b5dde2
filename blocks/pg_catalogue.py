"""Queries of PostgreSQL's catalogue: tables, columns, sequences, large objects, the database.

Names that a query needs are qualified by `search_path = pg_catalog`, which also makes the server
qualify the names of people in every text that it writes.
"""

# ruff: noqa: S608 - the queries are built of constants of ours alone

USERS = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'"


def not_of_extension(catalogue: str, oid: str) -> str:
    """What belongs to an extension is told by the extension's version, and what the server made for
    a type by the type."""
    kinds = "('e', 'i')" if catalogue in ("pg_proc", "pg_cast") else "('e')"
    return (
        f"NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = '{catalogue}'::regclass "
        f"AND x.objid = {oid} AND x.objsubid = 0 AND x.deptype IN {kinds})"
    )


# Relations of people: c and its schema n.
RELATIONS = f"""pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {USERS}
    AND c.relpersistence <> 't' AND {not_of_extension("pg_class", "c.oid")}"""
# Of such a relation: as in Table.full_name, unquoted.
NAME = "format('%s.%s', n.nspname, c.relname)"
KIND = """CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
    WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' ELSE 'table' END"""

# The database's own, or else the server's for all sessions; what this session's client asked for
# does not count.
TIME_ZONE = """
SELECT coalesce(
    (SELECT split_part(one, '=', 2)
        FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase,
            unnest(s.setconfig) one
        WHERE s.setrole = 0 AND lower(split_part(one, '=', 1)) = 'timezone'
            AND (s.setdatabase = 0 OR d.datname = current_database())
        ORDER BY s.setdatabase DESC LIMIT 1),
    (SELECT CASE WHEN source = 'client' THEN boot_val ELSE reset_val END
        FROM pg_settings WHERE name = 'TimeZone'))
"""


def head(version: int) -> str:
    """`version`: major, of the server."""
    icu = "d.datlocale" if version >= 17 else "d.daticulocale" if version >= 15 else "NULL"
    provider = "d.datlocprovider" if version >= 15 else "'c'"
    return f"""
SELECT d.datname, split_part(current_setting('server_version'), ' ', 1),
    pg_encoding_to_char(d.encoding),
    concat_ws(' ', CASE {provider} WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' END, {icu},
        d.datcollate, CASE WHEN d.datctype <> d.datcollate THEN 'ctype ' || d.datctype END),
    pg_database_size(d.oid),
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
        ELSE pg_current_wal_insert_lsn() END::text
FROM pg_database d WHERE d.datname = current_database()
"""


OWN_SETTINGS = """
SELECT coalesce(r.rolname, ''), unnest(s.setconfig)
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
EXTENSIONS = "SELECT extname::text, extversion FROM pg_extension ORDER BY 1"
# In which leaf a row lies that is partitioned by the hash of an enum depends on the enum's oids,
# which are others in a copy: such rows are counted in the table at the top, not in the leaves.
TABLES = f"""
WITH RECURSIVE gathering AS (SELECT p.partrelid FROM pg_partitioned_table p
    WHERE p.partstrat = 'h' AND EXISTS (SELECT FROM unnest(p.partclass) k
        JOIN pg_opclass o ON o.oid = k WHERE o.opcname = 'enum_ops')),
below AS (SELECT i.inhrelid FROM pg_inherits i JOIN gathering g ON i.inhparent = g.partrelid
    UNION SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.inhrelid)
SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(pg_table_size(c.oid), 0),
    NOT c.relispartition AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid),
    c.relpersistence = 'u', c.relispopulated,
    c.oid IN (SELECT partrelid FROM gathering), c.oid IN (SELECT inhrelid FROM below)
FROM {RELATIONS} WHERE c.relkind IN ('r', 'm', 'p', 'f')
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""
COLUMNS = f"""
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END,
    CASE WHEN a.attgenerated = 's' THEN 'stored: ' || pg_get_expr(d.adbin, d.adrelid)
        WHEN a.attgenerated <> '' THEN 'virtual: ' || pg_get_expr(d.adbin, d.adrelid)
        WHEN a.attidentity = 'a' THEN 'identity always'
        WHEN a.attidentity = 'd' THEN 'identity by default' END,
    CASE WHEN a.attcollation <> t.typcollation THEN format('%s.%s', ln.nspname, l.collname) END
FROM {RELATIONS} JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace
WHERE c.relkind IN ('r', 'm', 'p', 'f')
ORDER BY a.attrelid, a.attnum
"""
KEYS = f"""
SELECT o.conrelid, array(SELECT a.attname::text FROM unnest(o.conkey) WITH ORDINALITY k(num, at)
    JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.num ORDER BY k.at)
FROM {RELATIONS} JOIN pg_constraint o ON o.conrelid = c.oid AND o.contype IN ('p', 'u')
ORDER BY o.conrelid, o.contype, o.conname COLLATE "C"
"""
SEQUENCES = f"""
SELECT n.nspname, c.relname, format('%s start %s increment %s from %s to %s cache %s%s%s%s',
    format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
    CASE WHEN s.seqcycle THEN ' cycle' END,
    CASE WHEN c.relpersistence = 'u' THEN ' unlogged' END,
    ', of ' || o.tab || '.' || o.col), s.seqincrement, s.seqcycle, o.tab
FROM {RELATIONS} JOIN pg_sequence s ON s.seqrelid = c.oid
LEFT JOIN LATERAL (SELECT format('%s.%s', tn.nspname, t.relname) AS tab, a.attname AS col
    FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
    JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
        AND d.refclassid = 'pg_class'::regclass LIMIT 1) o ON true
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""
LARGE_OBJECTS = """
SELECT count(*), has_table_privilege('pg_largeobject', 'SELECT') FROM pg_largeobject_metadata
"""
# A copy has no holes, and no short pages before the last: a page counts as it is read, filled up
# with zeros, and not at all when it holds nothing else. The length counts by itself.
LARGE_OBJECT_PAGES = """
WITH page AS (SELECT current_setting('block_size')::int / 4 AS size),
zeros AS (SELECT size, decode(repeat('00', size), 'hex') AS zeros FROM page),
filled AS (SELECT l.loid, l.pageno, l.pageno::bigint * size + octet_length(l.data) AS until,
    zeros, l.data || substring(zeros FROM 1 FOR size - octet_length(l.data)) AS data
    FROM pg_largeobject l, zeros)
SELECT coalesce((SELECT sum(hashtextextended(format('%s/%s/%s', loid, pageno, md5(data)), 0))
        FROM filled WHERE data <> zeros), 0)
    + coalesce((SELECT sum(hashtextextended(format('%s ends at %s', m.oid,
            coalesce(ends.until, 0)), 0))
        FROM pg_largeobject_metadata m
        LEFT JOIN (SELECT loid, max(until) AS until FROM filled GROUP BY loid) ends
            ON ends.loid = m.oid), 0)
"""
ROLES = f"""
SELECT r.rolname FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
WHERE s.refclassid = 'pg_authid'::regclass
    AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION
-- The first superuser is nowhere in pg_shdepend.
SELECT pg_get_userbyid(c.relowner) FROM {RELATIONS}
UNION
SELECT pg_get_userbyid(f.proowner) FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
WHERE {USERS} AND {not_of_extension("pg_proc", "f.oid")}
ORDER BY 1
"""
