"""Whose an object of PostgreSQL is, and who may do what with it."""

# ruff: noqa: S608 - the queries are built of constants of ours alone

from blocks.pg_catalogue import KIND, NAME, RELATIONS, USERS, not_of_extension


def grants(acl: str) -> str:
    """In an order that does not depend on when they were given, nor on who gave them."""
    return f"""(SELECT coalesce(string_agg(one, ', ' ORDER BY one COLLATE "C"), 'nobody')
        FROM (SELECT format('%s: %s', CASE WHEN grantee = 0 THEN 'public'
            ELSE pg_get_userbyid(grantee)::text END, string_agg(DISTINCT privilege_type ||
            CASE WHEN is_grantable THEN ' with grant option' ELSE '' END, ', ')) AS one
            FROM aclexplode({acl}) GROUP BY grantee) g)"""


# kind, name, owner, acl, which acldefault, table
OWNED = f"""
SELECT {KIND} AS kind, {NAME} AS name, c.relowner AS owner, c.relacl AS acl,
    CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char" AS class,
    CASE WHEN c.relkind <> 'S' THEN {NAME} END AS tab
FROM {RELATIONS} WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
UNION ALL
SELECT 'schema', n.nspname, n.nspowner, n.nspacl, 'n', NULL
FROM pg_namespace n WHERE {USERS} AND {not_of_extension("pg_namespace", "n.oid")}
UNION ALL
SELECT CASE f.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
    format('%s.%s(%s)', n.nspname, f.proname, pg_get_function_identity_arguments(f.oid)),
    f.proowner, f.proacl, 'f', NULL
FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
WHERE {USERS} AND {not_of_extension("pg_proc", "f.oid")}
UNION ALL
SELECT 'type', format('%s.%s', n.nspname, t.typname), t.typowner, t.typacl, 'T', NULL
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE {USERS} AND t.typtype IN ('e', 'd', 'r', 'c', 'b') AND coalesce(c.relkind, 'c') = 'c'
    AND NOT EXISTS (SELECT FROM pg_type b WHERE b.typarray = t.oid)
    AND {not_of_extension("pg_type", "t.oid")}
UNION ALL
SELECT 'foreign server', s.srvname, s.srvowner, s.srvacl, 'S', NULL FROM pg_foreign_server s
WHERE {not_of_extension("pg_foreign_server", "s.oid")}
UNION ALL
SELECT 'foreign data wrapper', w.fdwname, w.fdwowner, w.fdwacl, 'F', NULL
FROM pg_foreign_data_wrapper w WHERE {not_of_extension("pg_foreign_data_wrapper", "w.oid")}
UNION ALL
SELECT 'publication', p.pubname, p.pubowner, NULL, NULL, NULL FROM pg_publication p
UNION ALL
SELECT 'event trigger', e.evtname, e.evtowner, NULL, NULL, NULL FROM pg_event_trigger e
WHERE {not_of_extension("pg_event_trigger", "e.oid")}
"""
# Grants are told where they are not those that an object of this owner has anyway.
OWNERS_AND_GRANTS = (
    f"""SELECT 'owner of', kind || ' ' || name, pg_get_userbyid(owner)::text, tab
        FROM ({OWNED}) o""",
    f"""SELECT 'grants on', kind || ' ' || name, given, tab FROM (SELECT kind, name, tab,
            {grants("acl")} AS given, {grants("acldefault(class, owner)")} AS anyway
        FROM ({OWNED}) o WHERE acl IS NOT NULL) g WHERE given <> anyway""",
    f"""SELECT 'grants on column', format('%s.%s.%s', n.nspname, c.relname, a.attname),
            {grants("a.attacl")}, {NAME}
        FROM {RELATIONS} JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE a.attacl IS NOT NULL AND NOT a.attisdropped AND cardinality(a.attacl) > 0""",
    f"""SELECT 'default grants', format('on %s in %s by %s', CASE d.defaclobjtype
            WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions'
            WHEN 'T' THEN 'types' WHEN 'n' THEN 'schemas' ELSE d.defaclobjtype::text END,
            coalesce('schema ' || s.nspname, 'all schemas'), pg_get_userbyid(d.defaclrole)),
            {grants("d.defaclacl")}, NULL
        FROM pg_default_acl d LEFT JOIN pg_namespace s ON s.oid = d.defaclnamespace""",
    f"""SELECT 'large objects of', owner, string_agg(format('%s with %s', number, given), '; '
            ORDER BY given COLLATE "C"), NULL
        FROM (SELECT pg_get_userbyid(owner)::text AS owner, given, count(*) AS number
            FROM (SELECT m.lomowner AS owner,
                {grants("coalesce(m.lomacl, acldefault('L', m.lomowner))")} AS given
                FROM pg_largeobject_metadata m) each GROUP BY 1, 2) g GROUP BY 2""",
)
