"""Everything of a database's schema beside its columns, as the server itself writes it.

A name is "kind schema.name". A text is the same in a copy that pg_dump and pg_restore made on the
same major version; what is as it is by default has none, so a copy that lost it lacks the name.
"""

# ruff: noqa: S608 - the queries are built of constants of ours alone

import re
from typing import TYPE_CHECKING, Any

from blocks.pg_catalogue import KIND, NAME, RELATIONS, USERS, not_of_extension
from blocks.pg_grants import OWNERS_AND_GRANTS

if TYPE_CHECKING:
    from psycopg import Cursor

REGCLASS = (
    "(SELECT format('%s.%s', sn.nspname, s.relname) FROM pg_class s "
    "JOIN pg_namespace sn ON sn.oid = s.relnamespace WHERE s.oid = {})"
)
HOLD_ROWS = "c.relkind IN ('r', 'p', 'f')"
FUNCTION = "format('%s.%s(%s)', n.nspname, f.proname, pg_get_function_identity_arguments(f.oid))"

# Each row: kind, name, text, table that it hangs on.
QUERIES = (
    f"""SELECT 'schema', n.nspname, 'schema', NULL FROM pg_namespace n
        WHERE {USERS} AND {not_of_extension("pg_namespace", "n.oid")}""",
    f"""SELECT {KIND}, {NAME}, pg_get_viewdef(c.oid), {NAME}
        FROM {RELATIONS} WHERE c.relkind IN ('v', 'm')""",
    f"""SELECT 'options of', {NAME}, (SELECT string_agg(o, ', ' ORDER BY o COLLATE "C")
            FROM unnest(c.reloptions) o), {NAME}
        FROM {RELATIONS} WHERE c.reloptions IS NOT NULL AND c.relkind NOT IN ('i', 'I')""",
    f"""SELECT 'unlogged', {NAME}, 'unlogged', {NAME}
        FROM {RELATIONS} WHERE c.relpersistence = 'u' AND c.relkind NOT IN ('i', 'I', 'S')""",
    f"""SELECT 'access method of', {NAME}, m.amname, {NAME}
        FROM {RELATIONS} JOIN pg_am m ON m.oid = c.relam
        WHERE c.relkind IN ('r', 'p', 'm') AND m.amname <> 'heap'""",
    f"""SELECT 'replica identity of', {NAME}, CASE c.relreplident WHEN 'f' THEN 'full'
            WHEN 'n' THEN 'nothing' ELSE (SELECT 'index ' || ic.relname FROM pg_index i
                JOIN pg_class ic ON ic.oid = i.indexrelid
                WHERE i.indrelid = c.oid AND i.indisreplident) END, {NAME}
        FROM {RELATIONS} WHERE {HOLD_ROWS} AND c.relreplident <> 'd'""",
    f"""SELECT 'row security of', {NAME}, concat_ws(', ',
            CASE WHEN c.relrowsecurity THEN 'enabled' END,
            CASE WHEN c.relforcerowsecurity THEN 'forced' END), {NAME}
        FROM {RELATIONS} WHERE c.relrowsecurity OR c.relforcerowsecurity""",
    f"""SELECT 'partition key of', {NAME}, pg_get_partkeydef(c.oid), {NAME}
        FROM {RELATIONS} WHERE c.relkind = 'p'""",
    f"""SELECT 'partition', {NAME}, format('of %s %s', {REGCLASS.format("i.inhparent")},
            pg_get_expr(c.relpartbound, c.oid)), {NAME}
        FROM {RELATIONS} JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE c.relispartition AND {HOLD_ROWS}""",
    f"""SELECT 'inheritance of', {NAME},
            string_agg({REGCLASS.format("i.inhparent")}, ', ' ORDER BY i.inhseqno), {NAME}
        FROM {RELATIONS} JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE NOT c.relispartition AND {HOLD_ROWS} GROUP BY 2""",
    f"""SELECT 'column options of', format('%s.%s.%s', n.nspname, c.relname, a.attname),
            concat_ws(', ', nullif('statistics ' || a.attstattarget, 'statistics -1'),
            CASE WHEN a.attstorage <> t.typstorage THEN 'storage ' || a.attstorage::text END,
            array_to_string(a.attoptions, ', '), array_to_string(a.attfdwoptions, ', ')), {NAME}
        FROM {RELATIONS} JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
            AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relkind IN ('r', 'p', 'f', 'm') AND (a.attstattarget <> -1
            OR a.attstorage <> t.typstorage OR a.attoptions IS NOT NULL
            OR a.attfdwoptions IS NOT NULL)""",
    f"""SELECT 'index', format('%s.%s', n.nspname, ic.relname),
            concat_ws(' ', pg_get_indexdef(i.indexrelid),
            CASE WHEN i.indisclustered THEN 'clustered' END,
            CASE WHEN NOT i.indisvalid THEN 'INVALID' END), {NAME}
        FROM {RELATIONS} JOIN pg_index i ON i.indrelid = c.oid
        JOIN pg_class ic ON ic.oid = i.indexrelid WHERE c.relkind IN ('r', 'p', 'm')""",
    # NOT NULL is told with its column. A foreign key of a partitioned table has others at its
    # partitions, which get new names in a copy.
    f"""SELECT 'constraint', format('%s.%s.%s', n.nspname, c.relname, o.conname),
            pg_get_constraintdef(o.oid), {NAME}
        FROM {RELATIONS} JOIN pg_constraint o ON o.conrelid = c.oid
        WHERE o.contype NOT IN ('n', 't') AND NOT (o.contype = 'f' AND o.conparentid <> 0)""",
    f"""SELECT 'trigger', format('%s.%s.%s', n.nspname, c.relname, t.tgname),
            concat_ws(' ', pg_get_triggerdef(t.oid), CASE t.tgenabled WHEN 'D' THEN 'DISABLED'
            WHEN 'R' THEN 'ON REPLICA' WHEN 'A' THEN 'ALWAYS' END), {NAME}
        FROM {RELATIONS} JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal""",
    f"""SELECT 'rule', format('%s.%s.%s', n.nspname, c.relname, r.rulename),
            concat_ws(' ', pg_get_ruledef(r.oid), nullif(r.ev_enabled, 'O')), {NAME}
        FROM {RELATIONS} JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename <> '_RETURN'""",
    f"""SELECT 'policy', format('%s.%s.%s', n.nspname, c.relname, p.polname),
            concat_ws(' ', CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END,
            CASE p.polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update'
                WHEN 'd' THEN 'delete' ELSE 'all' END,
            'to', (SELECT string_agg(w, ', ' ORDER BY w COLLATE "C") FROM (SELECT
                CASE WHEN one = 0 THEN 'public' ELSE pg_get_userbyid(one)::text END AS w
                FROM unnest(p.polroles) one) x),
            'using ' || pg_get_expr(p.polqual, p.polrelid),
            'check ' || pg_get_expr(p.polwithcheck, p.polrelid)), {NAME}
        FROM {RELATIONS} JOIN pg_policy p ON p.polrelid = c.oid""",
    f"""SELECT CASE f.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, {FUNCTION},
            pg_get_functiondef(f.oid), NULL
        FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
        WHERE {USERS} AND f.prokind <> 'a' AND {not_of_extension("pg_proc", "f.oid")}""",
    f"""SELECT 'aggregate', {FUNCTION}, concat_ws(' ', pg_get_function_arguments(f.oid), 'returns',
            pg_get_function_result(f.oid), a.aggkind, a.aggtransfn, a.aggfinalfn, a.aggcombinefn,
            a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn,
            a.aggfinalextra, a.aggsortop::regoperator, format_type(a.aggtranstype, NULL),
            a.aggtransspace, a.agginitval, a.aggminitval, f.proparallel), NULL
        FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
        JOIN pg_aggregate a ON a.aggfnoid = f.oid
        WHERE {USERS} AND {not_of_extension("pg_proc", "f.oid")}""",
    f"""SELECT 'type', format('%s.%s', n.nspname, t.typname), CASE t.typtype
            WHEN 'e' THEN 'enum ' || (SELECT string_agg(quote_literal(e.enumlabel), ', '
                ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
            WHEN 'c' THEN 'composite ' || (SELECT string_agg(format('%s %s', a.attname,
                format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
                AND NOT a.attisdropped)
            WHEN 'd' THEN concat_ws(' ', 'domain of', format_type(t.typbasetype, t.typtypmod),
                CASE WHEN t.typnotnull THEN 'not null' END,
                'default ' || pg_get_expr(t.typdefaultbin, 0),
                (SELECT 'collate ' || l.collname FROM pg_collation l JOIN pg_type b
                    ON b.oid = t.typbasetype WHERE l.oid = t.typcollation
                    AND t.typcollation <> b.typcollation),
                (SELECT string_agg(format('%s %s', o.conname, pg_get_constraintdef(o.oid)), ', '
                    ORDER BY o.conname COLLATE "C") FROM pg_constraint o
                    WHERE o.contypid = t.oid AND o.contype = 'c'))
            WHEN 'r' THEN (SELECT concat_ws(' ', 'range of', format_type(r.rngsubtype, NULL),
                (SELECT o.opcname FROM pg_opclass o WHERE o.oid = r.rngsubopc),
                nullif(r.rngcanonical::oid, 0)::regproc, nullif(r.rngsubdiff::oid, 0)::regproc)
                FROM pg_range r WHERE r.rngtypid = t.oid)
            ELSE 'base' END, NULL
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
        LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE {USERS} AND t.typtype IN ('e', 'd', 'r', 'c', 'b') AND coalesce(c.relkind, 'c') = 'c'
            AND NOT EXISTS (SELECT FROM pg_type b WHERE b.typarray = t.oid)
            AND {not_of_extension("pg_type", "t.oid")}""",
    f"""SELECT 'statistics', format('%s.%s', sn.nspname, s.stxname),
            pg_get_statisticsobjdef(s.oid), {NAME}
        FROM {RELATIONS} JOIN pg_statistic_ext s ON s.stxrelid = c.oid
        JOIN pg_namespace sn ON sn.oid = s.stxnamespace""",
    f"""SELECT 'collation', format('%s.%s', n.nspname, l.collname), concat_ws(' ',
            l.collprovider, l.collcollate, l.collctype, l.collisdeterministic), NULL
        FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
        WHERE {USERS} AND {not_of_extension("pg_collation", "l.oid")}""",
    f"""SELECT 'text search configuration', format('%s.%s', n.nspname, t.cfgname),
            (SELECT string_agg(format('%s: %s', p.alias, d.dicts), ', ' ORDER BY p.alias)
                FROM ts_token_type(t.cfgparser) p JOIN (SELECT m.maptokentype, string_agg(
                    m.mapdict::regdictionary::text, ', ' ORDER BY m.mapseqno) AS dicts
                    FROM pg_ts_config_map m WHERE m.mapcfg = t.oid GROUP BY 1) d
                    ON d.maptokentype = p.tokid), NULL
        FROM pg_ts_config t JOIN pg_namespace n ON n.oid = t.cfgnamespace
        WHERE {USERS} AND {not_of_extension("pg_ts_config", "t.oid")}""",
    f"""SELECT 'text search dictionary', format('%s.%s', n.nspname, d.dictname),
            d.dictinitoption, NULL
        FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = d.dictnamespace
        WHERE {USERS} AND {not_of_extension("pg_ts_dict", "d.oid")}""",
    f"""SELECT 'event trigger', e.evtname, concat_ws(' ', 'on', e.evtevent,
            array_to_string(e.evttags, ', '), 'execute', e.evtfoid::regproc,
            CASE e.evtenabled WHEN 'D' THEN 'DISABLED' WHEN 'R' THEN 'ON REPLICA'
                WHEN 'A' THEN 'ALWAYS' END), NULL
        FROM pg_event_trigger e WHERE {not_of_extension("pg_event_trigger", "e.oid")}""",
    # Of these it is told that they are there; options of a foreign server or a user mapping may
    # be secret.
    *(
        f"""SELECT (x).type, (x).identity, 'is there', NULL FROM (SELECT
            pg_identify_object('{catalogue}'::regclass, o.oid, 0) AS x FROM {catalogue} o
            WHERE o.oid >= 16384 AND {not_of_extension(catalogue, "o.oid")}) y"""
        for catalogue in (
            *("pg_operator", "pg_opclass", "pg_opfamily", "pg_cast", "pg_conversion"),
            *("pg_language", "pg_transform", "pg_am", "pg_ts_parser", "pg_ts_template"),
            *("pg_foreign_data_wrapper", "pg_foreign_server"),
        )
    ),
    # Not by pg_describe_object: that speaks the language of the server's messages.
    f"""SELECT 'comment on', format('%s %s', (x).type, (x).identity), d.description, (
            SELECT {NAME} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND {HOLD_ROWS})
        FROM (SELECT *, pg_identify_object(classoid, objoid, objsubid) AS x FROM pg_description
            WHERE objoid >= 16384 AND classoid <> 'pg_extension'::regclass) d
        WHERE NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = d.classoid
            AND x.objid = d.objoid AND x.deptype = 'e')""",
    *OWNERS_AND_GRANTS,
)


def publications(version: int) -> str:
    """`version`: major, of the server."""
    tables = f"""SELECT string_agg({REGCLASS.format("r.prrelid")}, ', '
        ORDER BY {REGCLASS.format("r.prrelid")} COLLATE "C")
        FROM pg_publication_rel r WHERE r.prpubid = p.oid"""
    schemas = "NULL"
    if version >= 15:
        tables = f"""SELECT string_agg(one, ', ' ORDER BY one COLLATE "C") FROM (SELECT
            concat_ws(' ', {REGCLASS.format("r.prrelid")}, (SELECT format('(%s)', string_agg(
                a.attname, ', ' ORDER BY a.attname)) FROM pg_attribute a
                WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)
                HAVING count(*) > 0),
            'where ' || pg_get_expr(r.prqual, r.prrelid)) AS one
            FROM pg_publication_rel r WHERE r.prpubid = p.oid) x"""
        schemas = """(SELECT string_agg('schema ' || s.nspname, ', ' ORDER BY s.nspname)
            FROM pg_publication_namespace m JOIN pg_namespace s ON s.oid = m.pnnspid
            WHERE m.pnpubid = p.oid)"""
    return f"""SELECT 'publication', p.pubname, concat_ws(' ', 'of',
            CASE WHEN p.puballtables THEN 'all tables' END, ({tables}), {schemas},
            CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
            CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END,
            CASE WHEN p.pubviaroot THEN 'via root' END), NULL
        FROM pg_publication p WHERE {not_of_extension("pg_publication", "p.oid")}"""


def definitions_of(
    cursor: "Cursor[tuple[Any, ...]]", version: int
) -> tuple[dict[str, str], dict[str, str]]:
    """-> "kind name" -> text, sorted; and on which table it hangs. Wants `search_path` to be
    pg_catalog."""
    found, hangs_on = {}, {}
    for query in (*QUERIES, publications(version)):
        for kind, name, text, table in cursor.execute(query):
            key = f"{kind} {name}"
            found[key] = settled(text or "")
            if table:
                hangs_on[key] = table
    return dict(sorted(found.items())), dict(sorted(hangs_on.items()))


_CAST = re.compile(r"\)::((?:\"[^\"]*\"|[\w. ]|\(\d+(?:,\d+)?\))+)\[\]")
_ARRAY = "(ARRAY["


def settled(text: str) -> str:
    """The text that the server writes for what it read from this text. It reads
    `(ARRAY['a'::character varying])::text[]`, which it makes of `status IN ('a')`, as
    `ARRAY[('a'::character varying)::text]`, and stays with that."""
    start = text.find(_ARRAY)
    while start >= 0:
        parts, end = _elements(text, start + len(_ARRAY))
        if cast := _CAST.match(text, end):
            elements = ", ".join(f"({part})::{cast[1]}" for part in parts)
            text = f"{text[:start]}ARRAY[{elements}]{text[cast.end() :]}"
        start = text.find(_ARRAY, start + 1)
    return text


def _elements(text: str, begin: int) -> tuple[list[str], int]:
    """Of the array whose content begins there: -> elements, and where it is after its `]`."""
    depth, quote, parts = 0, "", []
    for at in range(begin, len(text)):
        letter = text[at]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]" and depth:
            depth -= 1
        elif letter in ",]" and not depth:
            parts.append(text[begin:at].strip())
            begin = at + 1
            if letter == "]":
                return parts, begin
    return parts, len(text)
