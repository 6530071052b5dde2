"""What a recovery brought back, for people: the same tables in the terminal and as a page."""

import time
from pathlib import Path

from blocks.files import write_atomically
from policy.quantities import in_words
from policy.recovery import Came, Recovery, Served

Row = dict[str, str]


def data_rows(told: Recovery) -> list[Row]:
    return [_came(told, one) for one in told.came]


def _came(told: Recovery, one: Came) -> Row:
    lost = told.lost_seconds(one.until)
    return {
        "data": one.key,
        "backup": one.backup_id or "none",
        "all until": _at(one.until),
        "lost at most (RPO)": "unknown" if lost is None else _words(lost),
        "asked for": _words(one.rpo),
        "took (RTO)": _words(one.seconds),
        "objective": _words(one.rto),
        "result": one.trouble or "compared: equal",
    }


def service_rows(told: Recovery) -> list[Row]:
    return [_served(one) for one in told.served]


def _served(one: Served) -> Row:
    return {
        "service": one.service,
        "environment": one.environment,
        "release": one.release,
        "version": one.version,
        "result": one.trouble or "serves",
    }


def step_rows(told: Recovery) -> list[Row]:
    return [{"step": name, "took": _words(seconds)} for name, seconds in told.done.items()]


def facts(told: Recovery) -> list[tuple[str, str]]:
    lost = told.lost_seconds(told.own_until)
    found = [
        ("store", told.store),
        ("to", told.host),
        ("newest sign of life", _at(told.lost_at)),
        ("own state as of", _at(told.own_until)),
        ("of that lost at most", "unknown" if lost is None else _words(lost)),
        ("began", _at(told.began_at)),
        ("until all was checked", "not over" if told.seconds is None else _words(told.seconds)),
        ("attempts", str(told.attempts)),
    ]
    if told.to_time is not None:
        found.append(("asked for, not later than", _at(told.to_time)))
    return found


def verdict(told: Recovery) -> str:
    if told.finished_at is None:
        return "under way"
    return f"{len(told.troubles)} troubles" if told.troubles else "recovered"


def summed_up(told: Recovery) -> str:
    """In one line: what was lost, and how long it took."""
    lost = [told.lost_seconds(one.until) for one in told.came]
    known = [seconds for seconds in lost if seconds is not None]
    words = f"at most {_words(max(known))} were lost" if known else "it has no data of its own"
    took = f", after {_words(told.seconds)}" if told.seconds is not None else ""
    return f"{words}{took}"


def write_page(told: Recovery, reports: Path) -> Path:
    """-> its path: `<reports>/recovery-<when it began>.html`"""
    from jinja2 import Environment, FileSystemLoader

    tables = [
        ("Data", data_rows(told)),
        ("Services", service_rows(told)),
        ("How long it took", step_rows(told)),
    ]
    page = (
        Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        .get_template("recovery.html.j2")
        .render(
            title=f"Recovery on {told.host}",
            css="rolled" if told.troubles else "promoted",
            verdict=verdict(told),
            facts=facts(told),
            tables=[(heading, rows) for heading, rows in tables if rows],
            notes=told.notes,
        )
    )
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(told.began_at))
    path = reports / f"recovery-{began}.html"
    write_atomically(path, page)
    return path


def _at(at: float | None) -> str:
    return "unknown" if at is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _words(seconds: float) -> str:
    return in_words(round(seconds, 1) if seconds < 60 else round(seconds))
