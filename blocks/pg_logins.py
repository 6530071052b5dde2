"""Two logins of PostgreSQL that take turns as one secret: while one is given a new password, all
that runs still logs in by the other one.

A password never reaches the server in the clear: it is told the SCRAM verifier, so no log of
statements holds one. What the logins make belongs to their common role.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from blocks.postgres import Server, server_of
from policy.errors import BadInput, DafnckError, NotAllowed, NotApplied, Refused, Unreachable
from policy.rotation import PostgresLogins

BYTES = 32  # of a password: 43 characters
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class PostgresLoginPair:
    """A Rotator. `admin`: the URL of a role that may change both. `others`: tells name -> value of
    the other secrets of the stack, which may be URLs of the same logins."""

    def __init__(
        self,
        wanted: PostgresLogins,
        admin: str,
        others: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._wanted, self._admin = wanted, _server(admin, "the secret of `admin`")
        self._others = others

    def make(self, current: str) -> str:
        server = _server(current, "the secret")
        with self._as_admin() as admin:
            if _attribute(admin, server.user, "rolsuper"):
                raise Refused(
                    f"{server.user} is a superuser, and would be closed in the end; nothing was "
                    "changed. Set the secret to an ordinary login first: dafnck secret set"
                )
        user = next(one for one in self._wanted.users if one != server.user)
        self._must_be_nobody_elses(user, server)
        return _with_login(current, user, secrets.token_urlsafe(BYTES))

    def set(self, value: str, current: str) -> None:
        from psycopg import sql

        server, now = _server(value, "the new value"), _server(current, "the secret")
        if server.user == now.user:
            raise Refused(
                f"{server.user} is the login that everybody uses now; nothing was changed"
            )
        self._must_be_nobody_elses(server.user, server)
        user, role = sql.Identifier(server.user), sql.Identifier(self._wanted.role)
        with self._as_admin() as admin:
            if _attribute(admin, self._wanted.role, "rolname") is None:
                raise Refused(
                    f"there is no role {self._wanted.role} in {self._admin}; nothing was changed"
                )
            verifier = admin.pgconn.encrypt_password(
                server.parameters["password"].encode(), server.user.encode(), b"scram-sha-256"
            ).decode()
            there = _attribute(admin, server.user, "rolname") is not None
            begin = sql.SQL(
                "ALTER ROLE {} LOGIN PASSWORD {}" if there else "CREATE ROLE {} LOGIN PASSWORD {}"
            )
            with admin.transaction():
                admin.execute(begin.format(user, sql.Literal(verifier)))
                admin.execute(sql.SQL("GRANT {} TO {}").format(role, user))
                admin.execute(
                    sql.SQL("ALTER ROLE {} SET role TO {}").format(
                        user, sql.Literal(self._wanted.role)
                    )
                )

    def test(self, value: str) -> None:
        server = _server(value, "the new value")
        try:
            with server.connect() as connection:
                acts_as = connection.execute("SELECT current_user").fetchone()[0]
        except DafnckError as error:
            raise NotApplied(f"{server.user} cannot log in: {error}") from None
        if acts_as != self._wanted.role:
            raise NotApplied(f"{server.user} acts as {acts_as}, not as {self._wanted.role}")

    def in_use(self, value: str, current: str) -> list[str]:
        user = _server(value, "the old value").user
        if user == _server(current, "the secret").user:
            return []  # its sessions may have logged in by either
        query = (
            "SELECT coalesce(client_addr::text, 'the local socket'), application_name, "
            "coalesce(backend_start::timestamp(0)::text, 'some time') FROM pg_stat_activity "
            "WHERE usename = %s AND pid <> pg_backend_pid() "
            "AND coalesce(backend_type, 'client backend') = 'client backend' "
            "ORDER BY backend_start"
        )
        with self._as_admin() as admin:
            if self._left_open(admin, _server(value, "the old value")):
                return []
            rows = admin.execute(query, (user,)).fetchall()
        return [f"{name or 'a client'} from {where} since {since}" for where, name, since in rows]

    def close(self, value: str, current: str) -> str:
        from psycopg import sql

        server, now = _server(value, "the old value"), _server(current, "the secret")
        if server.user == now.user:
            return self._same_login(server, now)
        with self._as_admin() as admin:
            if why := self._left_open(admin, server):
                return why
            close = sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL")
            admin.execute(close.format(sql.Identifier(server.user)))
            try:
                server.connect().close()
            except DafnckError as error:
                # By the server, not for want of one: it lets the admin in, and the role out.
                if _attribute(admin, server.user, "rolcanlogin") is False:
                    return str(error)
                raise
        raise NotApplied(f"{server.user} still logs in with the old password")

    def _same_login(self, server: Server, now: Server) -> str:
        """Somebody gave the login that is in use another password, or named its server otherwise:
        never is that login closed."""
        if server.parameters.get("password") == now.parameters.get("password"):
            return f"not closed: {server.user} has the same password now"
        try:
            server.connect().close()
        except NotAllowed as error:
            if "password authentication failed" in str(error):
                return str(error)
            raise NotApplied(f"nothing shows that the old password is refused: {error}") from None
        raise NotApplied(f"{server.user} still logs in with the old password")

    def _left_open(self, admin: Any, server: Server) -> str:
        """Why a login is not ours to close; empty when it is."""
        if _attribute(admin, server.user, "rolname") is None:
            return f"there is no role {server.user} any more"
        if _attribute(admin, server.user, "rolsuper"):
            return f"not closed: {server.user} is a superuser"
        if server.user == self._admin.user:
            return f"not closed: {server.user} is the login that changes the others"
        if name := self._used_by(server.user, server):
            return f"not closed: {name} has the login {server.user}"
        return ""

    def _must_be_nobody_elses(self, user: str, server: Server) -> None:
        if name := self._used_by(user, server):
            raise Refused(
                f"{name} has the login {user}, which would get another password; nothing was "
                "changed. Two secrets that turn over need four logins"
            )

    def _used_by(self, user: str, server: Server) -> str:
        """The other secret that has this login, perhaps of the same server; empty when none has."""
        for name, value in self._others().items():
            with suppress(BadInput):
                other = _server(value, name)
                if other.user == user and _place(other) == _place(server):
                    return name
        return ""

    @contextmanager
    def _as_admin(self) -> Iterator[Any]:
        import psycopg

        with self._admin.connect(autocommit=True) as connection:
            try:
                yield connection
            except psycopg.errors.InsufficientPrivilege as error:
                raise Refused(
                    f"{self._admin.user} may not do that: {error.diag.message_primary}; what was "
                    "current still is. Give it CREATEROLE"
                ) from None
            except psycopg.Error as error:
                words = self._admin.without_secrets(str(error))
                raise Unreachable(f"{self._admin}: {words}") from None


def _place(server: Server) -> tuple[str, str]:
    """Host and port, all ways to this machine as one."""
    host = (server.parameters.get("hostaddr") or server.parameters.get("host") or "").lower()
    here = not host or host.startswith("/") or host in LOOPBACK
    return "" if here else host.rstrip("."), server.parameters.get("port") or "5432"


def _attribute(admin: Any, user: str, name: str) -> Any:
    from psycopg import sql

    query = sql.SQL("SELECT {} FROM pg_roles WHERE rolname = %s").format(sql.Identifier(name))
    row = admin.execute(query, (user,)).fetchone()
    return row[0] if row else None


def _server(value: str, what: str) -> Server:
    """Raises BadInput, which does not tell the value."""
    try:
        if "://" in value and not value.startswith(("postgres://", "postgresql://")):
            raise BadInput("")  # never the name of a variable or a file
        server = server_of(value)
    except BadInput:
        raise BadInput(f"{what} holds no URL of PostgreSQL; nothing was changed") from None
    if "user" not in server.parameters:
        raise BadInput(f"{what} names no user; nothing was changed")
    return server


def _with_login(value: str, user: str, password: str) -> str:
    """The same URL, or words of libpq, with another login."""
    if "://" not in value:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(value, user=user, password=password)
    parts = urlsplit(value)
    at = parts.netloc.rpartition("@")[2]
    return urlunsplit(
        parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{at}")
    )
