"""Databases made, removed, and put in the place of another by a swap of names.

The swap is one transaction: killed anywhere, either the old database or the new one has the name.
"""

import threading
import time
from datetime import UTC, datetime
from typing import Any

from blocks.postgres import Server
from policy.database_facts import DatabaseFacts
from policy.errors import NotApplied, Refused

SWAP_SECONDS = 30.0
MAINTENANCE = "postgres"  # a database that is not the one in question
NAME_BYTES = 63


def create_database(server: Server, name: str, like: DatabaseFacts | None) -> None:
    """An empty one, with the encoding, the collation and the settings of `like`. Raises Refused
    when there is one of this name."""
    from psycopg import Error
    from psycopg.errors import DuplicateDatabase
    from psycopg.sql import SQL, Identifier, Literal

    words = [SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name))]
    if like is not None:
        words.append(SQL("ENCODING {}").format(Literal(like.encoding)))
        provider, locale, collate, ctype = _read_collation(like.collation)
        words.append(SQL("LC_COLLATE {} LC_CTYPE {}").format(Literal(collate), Literal(ctype)))
        if provider == "icu":
            words.append(SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(Literal(locale)))
        elif provider == "builtin":
            words.append(SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(Literal(locale)))
    with server.at(MAINTENANCE).connect(autocommit=True) as connection:
        try:
            connection.execute(SQL(" ").join(words))
            for setting, value in (like.settings if like else {}).items():
                if ":" not in setting:  # of a role in this database
                    alter = SQL("ALTER DATABASE {} SET {} = {}")
                    connection.execute(alter.format(Identifier(name), SQL(setting), Literal(value)))
        except DuplicateDatabase:
            raise Refused(f"there is a database {name} already; nothing was changed") from None
        except Error as error:
            words_ = server.without_secrets(str(error))
            raise NotApplied(f"the database {name} was not made: {words_}") from None


def _read_collation(text: str) -> tuple[str, str, str, str]:
    """'icu de-DE en_US.UTF-8 ctype C' -> ('icu', 'de-DE', 'en_US.UTF-8', 'C'); of libc 'C.UTF-8'
    alone -> ('libc', '', 'C.UTF-8', 'C.UTF-8')."""
    words, provider, locale = text.split(), "libc", ""
    if words[0] in ("icu", "builtin"):
        provider, locale = words.pop(0), words.pop(0)
    collate = words.pop(0)
    return provider, locale, collate, words[1] if words else collate


def drop_database(server: Server, name: str) -> None:
    """Also while somebody is connected, and when it is not there."""
    from psycopg.sql import SQL, Identifier

    with server.at(MAINTENANCE).connect(autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def swap(server: Server, name: str, restored: str) -> str:
    """`restored` is `name` from now on. -> the name under which the old one is kept. Connections to
    both are ended. Raises NotApplied: nothing is changed then."""
    from psycopg import Error
    from psycopg.sql import SQL, Identifier

    aside = _aside(name)
    rename = SQL("ALTER DATABASE {} RENAME TO {}")
    ending = threading.Event()
    trouble = ""
    with server.at(MAINTENANCE).connect() as connection:
        # The rename holds off new connections and waits for the old ones to go: they are ended
        # meanwhile, by another connection.
        enders = threading.Thread(
            target=_end_connections, args=(server, (name, restored), ending), daemon=True
        )
        enders.start()
        try:
            give_up = time.monotonic() + SWAP_SECONDS
            while time.monotonic() < give_up:
                try:
                    with connection.transaction():
                        connection.execute(rename.format(Identifier(name), Identifier(aside)))
                        connection.execute(rename.format(Identifier(restored), Identifier(name)))
                    return aside
                except Error as error:
                    trouble = server.without_secrets(str(error))
                    if error.sqlstate != "55006":  # object_in_use
                        break
        finally:
            ending.set()
            enders.join()
    raise NotApplied(
        f"{name} could not be replaced: {trouble}; it is what it was. What was restored is in the "
        f"database {restored}"
    )


def _end_connections(server: Server, names: tuple[str, ...], ending: threading.Event) -> None:
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = ANY(%s) AND pid <> pg_backend_pid()"
    )
    connection: Any
    with server.at(MAINTENANCE).connect(autocommit=True) as connection:
        while not ending.wait(0.05):
            connection.execute(query, [list(names)])


def _aside(name: str) -> str:
    tail = f"_before_{datetime.fromtimestamp(time.time(), UTC):%Y%m%d_%H%M%S}"
    return name.encode()[: NAME_BYTES - len(tail)].decode(errors="ignore") + tail
