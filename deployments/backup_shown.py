"""One backup in words, for `dafnck backup show`."""

from collections.abc import Iterator

from blocks.backup_catalogue import Entry
from policy.quantities import in_words
from tasks.backup_report import at, state

MOST_TABLES = 30


def shown(entry: Entry) -> str:
    return "\n".join(_lines(entry))


def _lines(entry: Entry) -> Iterator[str]:
    yield f"{entry.id}  {entry.place}  {state(entry)}"
    if entry.trouble:
        yield f"trouble: {entry.trouble}"
    if (manifest := entry.manifest) is not None:
        took = in_words(manifest.finished_at - manifest.started_at)
        yield f"{manifest.kind}, as of {at(manifest.snapshot_at)}, took {took}"
        if manifest.locked_until:
            yield f"locked until {at(manifest.locked_until)}"
        for stream in manifest.streams:
            yield (
                f"  {stream.name}: {stream.plain_bytes:,} bytes, {stream.size_bytes:,} stored, "
                f"SHA-256 {stream.sha256}"
            )
        yield f"readable by {', '.join(manifest.recipients)}"
        yield f"with {', '.join(f'{name} {said}' for name, said in manifest.tools.items())}"
        if database := manifest.facts.database:
            yield f"database {database.name}, PostgreSQL {database.server_version}, {database.lsn}"
            largest = sorted(database.tables, key=lambda table: -table.rows)
            for table in largest[:MOST_TABLES]:
                yield f"  {table.full_name}: {table.rows:,} rows, {table.content_hash}"
            if len(largest) > MOST_TABLES:
                yield f"  and {len(largest) - MOST_TABLES} more tables"
        if wal := manifest.facts.wal:
            yield (
                f"server {wal.system_identifier}, PostgreSQL {wal.server_version}, timeline "
                f"{wal.timeline}: from {wal.start_lsn} to {wal.stop_lsn}, needs "
                f"{len(wal.segments)} segments of the log from {wal.segments[0]} on"
            )
            rows = sum(table.rows for one in wal.at_stop for table in one.tables)
            yield (
                f"  proved at {wal.proved_lsn}, {at(wal.proved_at)}: {len(wal.at_stop)} databases, "
                f"{rows:,} rows"
            )
        if tree := manifest.facts.tree:
            yield f"{tree.count:,} files, {tree.total_bytes:,} bytes, {tree.digest}"
        for name, words in manifest.facts.detail.items():
            yield f"  {name}: {words}"
    for drill in entry.drills:
        yield f"drill of {at(drill.at)}: {drill.verdict}"
        for check in drill.checks:
            yield f"  {check.verdict:6} {check.name}: {check.reason}"
