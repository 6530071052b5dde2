"""References to secrets, their versions, and what a rotation does next."""

import pytest

from policy.rotation import (
    DAY,
    Create,
    Disable,
    Done,
    Renew,
    Rotation,
    Seen,
    SetTestFinish,
    WaitFor,
    next_step,
)
from policy.secrets import Reference, Version, Versions, read_name, read_reference

LOGINS = {"admin": "secret://shop/admin", "role": "shop", "users": ["shop_a", "shop_b"]}
ROTATION = Rotation.model_validate({"postgres": LOGINS, "every": "30d", "grace": "1h"})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("secret://shop/database-url", Reference("secret", "shop/database-url")),
        ("secret://shop-db/tls.key", Reference("secret", "shop-db/tls.key")),
        ("env://DATABASE_URL", Reference("env", "DATABASE_URL")),
        ("prefect://shop-database", Reference("prefect", "shop-database")),
        ("aws://prod/shop#url", Reference("aws", "prod/shop#url")),
        (
            "aws://arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf",
            Reference("aws", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf"),
        ),
    ],
)
def test_a_reference_is_read(text: str, meant: Reference) -> None:
    assert read_reference(text) == meant
    assert str(meant) == text


@pytest.mark.parametrize(
    "text",
    ["", "hunter2", "secret://shop", "secret://shop/..", "secret://../x", "secret://a/b/c",
     "secret:///etc/passwd", "env://A B", "vault://x/y", "secret://Shop/x", "aws://a b"],
)  # fmt: skip
def test_what_names_no_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no secret") as told:
        read_reference(text)
    assert not text or text not in str(told.value), "it may be the secret itself"


def test_a_name_is_read_with_and_without_its_scheme() -> None:
    assert read_name("secret://shop/url") == read_name("shop/url") == "shop/url"
    for wrong in ("shop", "shop/", "/url", "shop/.hidden", ".releases/x", "shop/a/b"):
        with pytest.raises(ValueError, match="no name of a secret"):
            read_name(wrong)


def seen(
    now: float,
    *versions: Version,
    current: int | None = 1,
    pending: int | None = None,
    behind: tuple[str, ...] = (),
    moved_at: float | None = None,
    asked_for: bool = False,
) -> Seen:
    of = Versions("shop/url", versions, current, pending, moved_at)
    return Seen(now, of, behind, asked_for)


OLD = Version(1, made_at=0.0, current_since=0.0)
NEW = Version(2, made_at=31 * DAY, current_since=31 * DAY)


def test_it_turns_over_when_it_is_old_or_somebody_asks() -> None:
    assert isinstance(next_step(ROTATION, seen(29.9 * DAY, OLD)), Done)
    assert isinstance(next_step(ROTATION, seen(30 * DAY, OLD)), Create)
    assert isinstance(next_step(ROTATION, seen(1.0, OLD, asked_for=True)), Create)
    assert next_step(ROTATION, seen(1.0, current=None)) == Done("there is no value yet")


def test_a_pending_value_goes_on_whatever_else_is_true() -> None:
    state = seen(1.0, OLD, Version(2, 1.0), pending=2, behind=("shop-prod-1",), asked_for=True)
    assert next_step(ROTATION, state) == SetTestFinish(2)


def test_the_old_one_is_closed_after_all_have_moved_and_the_grace_time() -> None:
    now = 31 * DAY + 10
    behind = seen(now, OLD, NEW, current=2, behind=("shop-prod-1",))
    assert next_step(ROTATION, behind) == Renew(("shop-prod-1",))
    moved = seen(now, OLD, NEW, current=2, moved_at=now - 4)
    assert next_step(ROTATION, moved) == WaitFor(3596.0)
    later = seen(now + 3596, OLD, NEW, current=2, moved_at=now - 4)
    assert next_step(ROTATION, later) == Disable(OLD)
    nobody = seen(now, OLD, NEW, current=2)
    assert next_step(ROTATION, nobody) == WaitFor(3600.0), "who has no consumers waits as well"


def test_who_came_back_with_an_old_one_is_renewed_whatever_was_closed() -> None:
    closed = Version(1, 0.0, 0.0, disabled_at=1.0)
    back = seen(31 * DAY, closed, NEW, current=2, behind=("shop-prod-1",))
    assert next_step(ROTATION, back) == Renew(("shop-prod-1",))


def test_what_was_begun_is_ended_before_another_begins() -> None:
    state = seen(99 * DAY, OLD, NEW, current=2, moved_at=99 * DAY, asked_for=True)
    assert isinstance(next_step(ROTATION, state), WaitFor)
    closed = Version(1, 0.0, 0.0, disabled_at=32 * DAY)
    assert isinstance(next_step(ROTATION, seen(99 * DAY, closed, NEW, current=2)), Create)


def test_versions_know_which_of_them_count() -> None:
    never = Version(3, 40 * DAY)  # proposed, and dropped
    closed = Version(1, 0.0, 0.0, disabled_at=1.0)
    of = Versions("shop/url", (closed, NEW, never), current=2)
    assert of.superseded == ()
    assert [of.counts(number) for number in (1, 2, 9)] == [False, True, False]
    assert of.age(33 * DAY) == 2 * DAY


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"users": ["a", "a"]}, "three different names"),
        ({"users": ["shop", "a"]}, "three different names"),
        ({"users": ["a"]}, "at least 2"),
        ({"users": ["a; DROP", "b"]}, "pattern"),
        ({"admin": "postgres://u:hunter2@h/d"}, "names no secret"),
    ],
)
def test_a_rotation_that_cannot_be_meant(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rotation.model_validate({"postgres": LOGINS | wrong})


def test_a_grace_time_ends_before_the_next_rotation() -> None:
    with pytest.raises(ValueError, match="shorter than every"):
        Rotation.model_validate({"postgres": LOGINS, "every": "1d", "grace": "1d"})
