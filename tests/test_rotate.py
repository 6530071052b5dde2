"""Two logins of a real PostgreSQL that take turns: with logins all the while, and killed before and
after every call."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import wait_for
from fakes import a_release, a_site, serving

from blocks.pg_logins import PostgresLoginPair
from blocks.pg_throwaway import throwaway
from blocks.ports import Rotator
from blocks.postgres import Server
from blocks.release_secrets import ReleaseSecrets
from blocks.secret_files import SecretFiles
from blocks.stack import Ports, Stack
from policy.errors import BadInput, NotApplied, Refused, Unreachable
from policy.rotation import PostgresLogins, Rotation
from tasks import rotate
from tasks.rotate import Rotating, renew_all, turn_over, users_of

NAME = "shop/database-url"
LOGINS = PostgresLogins(admin="secret://shop/admin", role="shop", users=["shop_a", "shop_b"])
HBA = "local all postgres trust\nlocal all shop_admin trust\nlocal all all scram-sha-256\n"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """One that asks everybody but its administrators for a password."""
    room = Path(tempfile.mkdtemp(prefix="dafnck-test-", dir="/var/tmp"))
    room.chmod(0o711)
    try:
        with throwaway(room / "postgres", settings={"log_statement": "all"}) as server:
            with server.connect(autocommit=True) as connection:
                (hba,) = connection.execute("SHOW hba_file").fetchone()
                Path(hba).write_text(HBA)
                connection.execute("SELECT pg_reload_conf()")
                connection.execute("CREATE ROLE shop NOLOGIN")
                connection.execute("CREATE ROLE shop_admin LOGIN CREATEROLE IN ROLE shop")
                connection.execute("CREATE DATABASE shop OWNER shop")
            yield server
    finally:
        shutil.rmtree(room)


def url(server: Server, user: str, password: str) -> str:
    host = server.parameters["host"]
    return f"postgresql://{user}:{password}@/shop?host={host}&port=5432"


@pytest.fixture
def fresh(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Stage":
    monkeypatch.setattr(rotate, "carry_out_step", rotate.carry_out_step.fn)
    with postgres.connect(autocommit=True) as connection:
        for user in ("shop_a", "shop_b"):
            connection.execute(f"DROP ROLE IF EXISTS {user}")
        connection.execute("CREATE ROLE shop_a LOGIN PASSWORD 'first-word' IN ROLE shop")
        connection.execute("ALTER ROLE shop_a SET role TO shop")
    return Stage(postgres, tmp_path)


class Stage:
    """A service that runs with the secret, on fakes but for the database and the store."""

    def __init__(self, postgres: Server, folder: Path) -> None:
        self.postgres, self.folder = postgres, folder
        self.stack = Stack(
            home=folder / "home", ports=Ports(), ledger_url=str(folder / "ledger.db")
        )
        self.files = SecretFiles(self.stack)
        self.files.put("shop/admin", f"postgresql://shop_admin@/shop?host={self.host}&port=5432")
        self.files.put(NAME, url(postgres, "shop_a", "first-word"))
        self.site = a_site(folder, time.time)
        self.rotation = Rotation(postgres=LOGINS, grace=0.0)
        run = a_release().run.model_copy(update={"secrets": {"URL": f"secret://{NAME}"}})
        self.stable = serving(
            self.site,
            a_release().model_copy(update={"run": run, "rotate": {NAME: self.rotation}}),
        )
        self.secrets = ReleaseSecrets(self.stack)
        self.secrets.provide(self.stable)

    @property
    def host(self) -> str:
        return self.postgres.parameters["host"]

    def rotating(self, rotator: Rotator | None = None) -> Rotating:
        return Rotating(self.stack, self.site.ledger, NAME, self.rotation, rotator=rotator)

    def renew(self, release_id: str) -> str:
        """As the flow does, without its processes."""
        again = self.site.ledger.release(release_id)
        new = serving(self.site, again)
        self.secrets.provide(new)
        return ""

    def turn(self, **more: Any) -> str:
        return turn_over(self.rotating(), self.renew, asked_for=True, **more)

    def in_use(self) -> str:
        """What the application connects with now."""
        (release_id,) = [one for _, _, one, _ in self.site.ledger.stables()]
        return self.secrets.values(release_id)["URL"]


def user_of(value: str) -> str:
    with psycopg.connect(value) as connection:
        row = connection.execute("SELECT session_user, current_user").fetchone()
    assert row
    assert row[1] == "shop", "what it makes belongs to the common role"
    return str(row[0])


def test_it_keeps_to_the_port(fresh: Stage) -> None:
    assert isinstance(PostgresLoginPair(LOGINS, fresh.files.read("shop/admin")[1]), Rotator)


def test_they_take_turns_and_the_old_one_is_refused(fresh: Stage) -> None:
    seen = [fresh.files.read(NAME)[1]]
    for user in ("shop_b", "shop_a", "shop_b"):
        fresh.turn()
        seen.append(fresh.in_use())
        assert user_of(seen[-1]) == user
        for old in seen[:-1]:
            with pytest.raises(psycopg.OperationalError, match="FATAL"):
                psycopg.connect(old)
    versions = fresh.files.versions(NAME)
    assert (versions.current, versions.pending, versions.superseded) == (4, None, ())
    assert len(set(seen)) == 4


def test_no_password_is_in_the_servers_log_or_in_the_clear_at_home(fresh: Stage) -> None:
    fresh.turn()
    value = fresh.in_use()
    word = value.partition("shop_b:")[2].partition("@")[0]
    assert len(word) == 43
    log = (Path(fresh.host) / "log").read_bytes()
    assert b"ALTER ROLE" in log
    assert word.encode() not in log
    for path in fresh.folder.rglob("*"):
        if path.is_file():
            assert word.encode() not in path.read_bytes(), path


def test_no_login_fails_while_it_turns_over(fresh: Stage) -> None:
    """By the value that each consumer has at that moment, through two rotations."""
    failed: list[str] = []
    count = [0]
    over = threading.Event()
    using = [fresh.in_use()]

    def renew(release_id: str) -> str:
        fresh.renew(release_id)
        using[0] = fresh.in_use()
        return ""

    def log_in() -> None:
        while not over.wait(0.02):
            try:
                psycopg.connect(using[0], connect_timeout=10).close()
                count[0] += 1
            except psycopg.OperationalError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=log_in) for _ in range(6)]
    began = time.monotonic()
    for one in threads:
        one.start()
    fresh.rotation = Rotation(postgres=LOGINS, grace=1.0)  # longer than one login takes
    try:
        for _ in range(2):
            turn_over(fresh.rotating(), renew, asked_for=True, patience_seconds=5)
    finally:
        over.set()
        for one in threads:
            one.join()
    assert failed == []
    assert count[0] / (time.monotonic() - began) > 50, "there were logins"
    assert user_of(fresh.in_use()) == "shop_a"


def test_who_still_uses_the_old_one_is_named_and_it_stays_good(fresh: Stage) -> None:
    old = fresh.in_use()
    with psycopg.connect(old, application_name="a report"):
        with pytest.raises(Refused, match=r"version 1 of .* still in use: a report from"):
            fresh.turn()
        assert user_of(fresh.in_use()) == "shop_b"
        assert user_of(old) == "shop_a"
    wait_for(
        lambda: not fresh.rotating().rotator().in_use(old, fresh.in_use()), "the report is gone"
    )
    turn_over(fresh.rotating(), fresh.renew)
    with pytest.raises(psycopg.OperationalError, match="FATAL"):
        psycopg.connect(old)


def test_a_password_that_a_person_changed_closes_no_login_that_is_in_use(fresh: Stage) -> None:
    """The same login, another password: by hand, and `dafnck secret set`."""
    old, new = fresh.in_use(), url(fresh.postgres, "shop_a", "second-word")
    with fresh.postgres.connect(autocommit=True) as connection:
        connection.execute("ALTER ROLE shop_a PASSWORD 'second-word'")
    fresh.files.put(NAME, new)
    turn_over(fresh.rotating(), fresh.renew)
    assert fresh.files.versions(NAME).superseded == ()
    assert fresh.in_use() == new
    assert user_of(new) == "shop_a"
    with pytest.raises(psycopg.OperationalError, match="FATAL"):
        psycopg.connect(old)


def test_the_same_login_by_another_name_is_left_alone(fresh: Stage) -> None:
    other = url(fresh.postgres, "shop_a", "first-word") + "&application_name=shop"
    fresh.files.put(NAME, other)
    said = turn_over(fresh.rotating(), fresh.renew)
    assert "version 1: not closed: shop_a has the same password now" in said
    assert user_of(other) == "shop_a"


def test_a_superuser_that_was_the_secret_is_left_open(fresh: Stage) -> None:
    fresh.files.put(NAME, f"postgresql://postgres@/shop?host={fresh.host}&port=5432")
    fresh.files.put(NAME, url(fresh.postgres, "shop_a", "first-word"))
    said = turn_over(fresh.rotating(), fresh.renew)
    assert "version 2: not closed: postgres is a superuser" in said
    fresh.postgres.connect().close()


def test_a_login_that_another_secret_has_is_not_touched(fresh: Stage) -> None:
    with fresh.postgres.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE shop_b LOGIN PASSWORD 'reports' IN ROLE shop")
    reports = url(fresh.postgres, "shop_b", "reports")
    fresh.files.put("reports/url", reports)
    with pytest.raises(Refused, match="reports/url has the login shop_b"):
        fresh.turn()
    assert fresh.files.versions(NAME).pending is None
    psycopg.connect(reports).close()


def test_what_cannot_be_closed_is_given_up(fresh: Stage) -> None:
    fresh.files.put(NAME, "postgresql://shop_a:gone@127.0.0.1:9/shop?connect_timeout=2")
    fresh.files.put(NAME, url(fresh.postgres, "shop_a", "first-word"))
    with pytest.raises(Unreachable):
        turn_over(fresh.rotating(), fresh.renew)
    fresh.files.drop(NAME, 2)
    turn_over(fresh.rotating(), fresh.renew)
    assert fresh.files.versions(NAME).superseded == ()


def test_a_renewal_that_changes_nothing_is_not_repeated_for_ever(fresh: Stage) -> None:
    with pytest.raises(NotApplied, match="shop-prod-1 still serves with an older value"):
        turn_over(fresh.rotating(), lambda _: "", asked_for=True)


def test_all_consumers_have_their_turn(fresh: Stage) -> None:
    """One that fails, and one that must wait, hold no other up."""
    tried = []

    def renew(release_id: str) -> str:
        tried.append(release_id)
        if release_id == "b":
            raise NotApplied("b was not renewed")
        return "c waits" if release_id == "c" else ""

    with pytest.raises(NotApplied, match="b was not renewed"):
        renew_all(["a", "b", "c"], renew)
    assert tried == ["a", "b", "c"]
    assert renew_all(["a", "c"], renew) == "c waits"


def test_a_release_that_is_on_its_way_keeps_the_old_one_open(fresh: Stage) -> None:
    """Its rollout began with it, and ends after the rotation."""
    old = fresh.in_use()
    ledger = fresh.site.ledger
    token = ledger.take_lease("other", "prod", "a release")
    rollout = ledger.open_rollout(
        "other", "prod", token=token, kind="release", version="1", strategy="canary"
    )
    run = fresh.stable.run
    new = ledger.add_release(
        a_release().model_copy(update={"service": "other", "run": run}), rollout.id
    )
    fresh.secrets.provide(new)
    with pytest.raises(Refused, match="still in use: other-prod-1, whose rollout is not over"):
        fresh.turn()
    assert user_of(old) == "shop_a"
    assert user_of(fresh.in_use()) == "shop_b"


def test_two_at_once_are_one(fresh: Stage) -> None:
    with fresh.files.alone(NAME):
        assert fresh.turn() == "another process turns it over now"
    assert fresh.files.read(NAME)[0] == 1
    fresh.turn()
    assert fresh.files.read(NAME)[0] == 2


def test_a_renewal_that_fails_leaves_the_old_value_good(fresh: Stage) -> None:
    old = fresh.in_use()

    def fails(release_id: str) -> str:
        raise NotApplied("its canary failed")

    with pytest.raises(NotApplied, match="canary"):
        turn_over(fresh.rotating(), fails, asked_for=True)
    assert user_of(old) == "shop_a"
    assert users_of(fresh.stack, fresh.site.ledger, NAME) == {fresh.stable.id: ["1"]}
    turn_over(fresh.rotating(), fresh.renew)
    assert user_of(fresh.in_use()) == "shop_b"


def test_a_grace_time_is_left_to_the_next_run(fresh: Stage) -> None:
    fresh.rotation = Rotation(postgres=LOGINS, grace=3600.0)
    said = turn_over(fresh.rotating(), fresh.renew, asked_for=True)
    assert "the old value stays good for 3600 s more; the next run closes it" in said
    assert [one.number for one in fresh.files.versions(NAME).superseded] == [1]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"role": "nobody_knows"}, Refused, "no role nobody_knows"),
        ({"users": ["shop_c", "shop_a"], "role": "postgres"}, NotApplied, "cannot log in|acts as"),
    ],
)
def test_what_cannot_be_is_told_and_the_old_one_stays(
    fresh: Stage, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    logins = LOGINS.model_copy(update=change)
    fresh.rotation = Rotation.model_construct(postgres=logins, every=1.0, grace=0.0)
    old = fresh.in_use()
    with pytest.raises((kind, Refused), match=f"{words}|may not do that"):
        fresh.turn()
    assert user_of(old) == "shop_a"
    assert fresh.files.read(NAME)[0] == 1


def test_a_superuser_is_never_closed(fresh: Stage) -> None:
    fresh.files.put(NAME, f"postgresql://postgres@/shop?host={fresh.host}&port=5432")
    with pytest.raises(Refused, match="postgres is a superuser"):
        fresh.turn()
    assert fresh.files.versions(NAME).pending is None


@pytest.mark.parametrize("value", ["hunter2", "postgresql:///shop", "env://HOME", "file:///x"])
def test_a_value_that_is_no_url_is_not_told(fresh: Stage, value: str) -> None:
    fresh.files.put(NAME, value)
    with pytest.raises(BadInput) as told:
        fresh.turn()
    assert value not in str(told.value)


class Dies:
    """A rotator, and a store, that take the process with them at the n-th call."""

    def __init__(self, of: Any, left: list[int], after: bool, names: set[str]) -> None:
        self._of, self._left, self._after, self._names = of, left, after, names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)
        if name not in self._names:
            return method

        def call(*words: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] < 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = method(*words)
            if self._left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call


CALLS = {"make", "set", "test", "in_use", "close", "propose", "promote", "disable"}


def killed(folder: str, host: str, step: int, after: bool) -> None:
    """In a process of its own: a rotation that dies at this call."""
    stage = resumed(folder, host)
    left = [step]
    rotating = stage.rotating()
    rotating._rotator = Dies(rotating.rotator(), left, after, CALLS)  # type: ignore[assignment]
    rotating.files = Dies(stage.files, left, after, CALLS)  # type: ignore[assignment]
    rotate.carry_out_step = rotate.carry_out_step.fn  # type: ignore[assignment]
    turn_over(rotating, stage.renew, asked_for=True)


def resumed(folder: str, host: str) -> Stage:
    stage = Stage.__new__(Stage)
    stage.folder = Path(folder)
    stage.postgres = Server(
        {"host": host, "port": "5432", "user": "postgres", "dbname": "postgres"}
    )
    stage.stack = Stack(
        home=stage.folder / "home", ports=Ports(), ledger_url=str(stage.folder / "ledger.db")
    )
    stage.files = SecretFiles(stage.stack)
    stage.site = a_site(stage.folder, time.time)
    stage.rotation = Rotation(postgres=LOGINS, grace=0.0)
    stage.secrets = ReleaseSecrets(stage.stack)
    return stage


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_call_the_next_run_ends_it(fresh: Stage, after: bool) -> None:
    """The application connects all the while."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_rotate"])
    died = 0
    for step in range(20):
        before = fresh.in_use()
        words = (str(fresh.folder), fresh.host, step, after)
        process = context.Process(target=killed, args=words)
        process.start()
        process.join()
        died += process.exitcode == -signal.SIGKILL
        user_of(fresh.in_use())
        stage = resumed(str(fresh.folder), fresh.host)
        turn_over(stage.rotating(), stage.renew)
        versions = fresh.files.versions(NAME)
        assert (versions.pending, versions.superseded) == (None, ())
        now = fresh.in_use()
        user_of(now)
        if now != before:
            with pytest.raises(psycopg.OperationalError, match="FATAL"):
                psycopg.connect(before)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert died == len(CALLS)
