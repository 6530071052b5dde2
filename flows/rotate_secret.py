"""Every hour: secrets that are too old turn over, and what was begun goes on to its end."""

from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from blocks.ledger import Ledger
from blocks.secret_files import SecretFiles
from blocks.stack import Stack, open_stack
from flows import death_hooks
from flows.backup import backup
from flows.ended import failed
from flows.renew import renew
from flows.run_names import called
from policy.backup import OWN
from policy.errors import BadInput, DafnckError, NotApplied
from tasks.frozen import FreezeWindow, outside_freeze
from tasks.publish import published
from tasks.rotate import Rotating, turn_over
from tasks.rotate_wanted import publish_rotations, tell_of_trouble, wanted_rotations
from tasks.site import site_of


@flow(
    name="rotate_secret",
    flow_run_name=called("rotate", "secret"),
    validate_parameters=True,
    on_failure=[death_hooks.rotation_died],
    on_crashed=[death_hooks.rotation_died],
    on_cancellation=[death_hooks.rotation_died],
)
def rotate_secret(
    secret: str | None = None,
    now: bool = False,
    patience_seconds: float = 0.0,
    by: str = "somebody in the Prefect UI",
) -> State[Any]:
    """Turn secrets over: a new value, accepted and tried; consumers rolled; the old one closed and
    seen to be refused.

    Args:
        secret: this one alone, name/key; default: all that a service's file says
        now: whatever its age; with a secret
        patience_seconds: how long a grace time may hold this run up; else the next run goes on
        by: who asks, for the record
    """
    ledger = Ledger((stack := open_stack()).ledger_url)
    try:
        if now and secret is None:
            raise BadInput("now: name the secret")
        rows = []
        with published("rotations") as publisher:
            wanted, unclear = wanted_rotations(ledger, secret)
            for name, words in unclear.items():
                tell_of_trouble(stack, ledger, name, words)
                rows.append({"secret": name, "now": "", "trouble": words})
            before = {name: SecretFiles(stack).versions(name) for name in wanted}
            for name, rotation in wanted.items():
                rotating = Rotating(stack, ledger, name, rotation, by=by)
                rows.append(_rotate(stack, ledger, rotating, now, patience_seconds, by))
            if before != {name: SecretFiles(stack).versions(name) for name in wanted}:
                # Else the state that a recovery brings back has a value that was closed since.
                backup(service=OWN, by="the rotation of secrets", return_state=True)
            publish_rotations(publisher, rows)
    except DafnckError as error:
        return failed(error)
    finally:
        ledger.close()
    if bad := [f"{row['secret']}: {row['trouble']}" for row in rows if row["trouble"]]:
        return Failed(message=f"{len(bad)} of {len(rows)} failed: {'; '.join(bad)}")
    said = "; ".join(f"{row['secret']}: {row['now']}" for row in rows)
    return Completed(message=said or "no service's file says that a secret turns over")


def _rotate(
    stack: Stack, ledger: Ledger, rotating: Rotating, now: bool, patience: float, by: str
) -> dict[str, str]:
    """-> a row for people. Its trouble is told, and holds no other secret up."""
    row = {"secret": rotating.name, "now": "", "trouble": ""}

    def renewed(release_id: str) -> str:
        release = ledger.release(release_id)
        site = site_of(stack, ledger, release.service, release.environment)
        try:
            outside_freeze(release.rollout, str(site), site.clock(), None)
        except FreezeWindow as window:
            return f"{release_id} serves with the older value until then: {window}"
        state = renew(
            release.service,
            release.environment,
            instead_of=release_id,
            by=f"the rotation of {rotating}, {by}",
            return_state=True,
        )
        if not state.is_completed():
            raise NotApplied(
                f"{release_id} was not renewed ({state.message}); it serves with the older value, "
                "which stays good"
            )
        return ""

    try:
        row["now"] = turn_over(rotating, renewed, asked_for=now, patience_seconds=patience)
    except Exception as error:
        # Whatever it is: the other secrets have their turn, and the run ends as failed.
        row["trouble"] = str(error) or type(error).__name__
        tell_of_trouble(stack, ledger, rotating.name, row["trouble"])
    return row
