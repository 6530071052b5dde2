"""What a restored database is held to, beyond its manifest: the team's expectations and ours, by
Great Expectations, orphans of foreign keys, freshness and smoke queries."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from blocks.expectations import Held, hold, smoke
from blocks.pg_facts import database_facts
from blocks.postgres import Server
from policy.backup import Expectation
from policy.backup_manifest import Manifest
from policy.drill import Check
from policy.expected import default_suites, fresh, referential
from policy.release import Verdict
from tasks.backup_site import BackupSite

SHOWN = 5


def held(
    site: BackupSite,
    manifest: Manifest,
    server: Server,
    folder: Path,
    until: datetime | None = None,
) -> list[Check]:
    """`until`: how far the log brought it, where there is one."""
    facts = manifest.facts.database
    if facts is None:
        # After the place where its manifest knows what there was, the log went on: what can be
        # asked of all rows alike is asked of what is there now.
        with server.connect() as connection:
            facts = database_facts(connection, hashes=False)
    newest = until.timestamp() if until else manifest.snapshot_at
    suites = default_suites(facts)
    ours = {_key(table, one.type, one.kwargs) for table, all_ in suites.items() for one in all_}
    for table, wanted in site.target.expectations.items():
        own = [one for one in wanted if isinstance(one, Expectation)]
        suites[table] = [*suites.get(table, []), *own]
    found = hold(server, suites, folder)
    # What nobody wrote down and Great Expectations cannot ask, of a composite type say, is no fault
    # of the data, which were compared already.
    mute = [
        one for one in found if one.error and _key(one.table, one.expectation, one.kwargs) in ours
    ]
    checks = [_told("expectations", [one for one in found if one not in mute], len(mute))]
    if orphans := referential(facts):
        checks.append(_told("foreign keys", smoke(server, orphans)))
    if aged := fresh(site.target.fresh, newest, facts.time_zone):
        checks.append(_told("freshness", smoke(server, aged)))
    if site.target.smoke:
        asked = {query: query for query in site.target.smoke}
        checks.append(_told("smoke queries", smoke(server, asked)))
    return checks


def _key(table: str, expectation: str, kwargs: Mapping[str, Any]) -> str:
    return json.dumps([table, expectation.removeprefix("expect_"), kwargs], sort_keys=True)


def _told(name: str, found: Sequence[Held], mute: int = 0) -> Check:
    bad = [one for one in found if not one.success]
    if not bad:
        words = f"{len(found)} hold" + (f"; {mute} more cannot be asked" if mute else "")
        return Check(name=name, verdict=Verdict.PASS, reason=words)
    words = "; ".join(map(str, bad[:SHOWN]))
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    reason = f"{len(bad)} of {len(found)} do not hold: {words}{more}"
    return Check(name=name, verdict=Verdict.FAIL, reason=reason)
