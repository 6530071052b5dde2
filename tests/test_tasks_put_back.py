"""Traffic first: what gives traffic back, wherever a rollout died. No Prefect, no servers."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeNotifier, FakeRouter, FakeWorkloads, a_release, a_site, serving

from policy.errors import NotApplied, Refused, Unreachable
from policy.notice import Event
from policy.release import Phase, Release, RolloutRecord
from tasks import put_back
from tasks.abort import abort_frozen
from tasks.frozen import none_frozen, way_back
from tasks.site import Site


def under_way(site: Site, share: int, **changes: Any) -> tuple[Release, Release, RolloutRecord]:
    """A stable release and a new one that has this share. -> stable, new, rollout."""
    stable = serving(site)
    token = site.ledger.take_lease("shop", "prod", "test")
    rollout = site.ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="2", strategy="canary"
    )
    new = site.ledger.add_release(a_release(**changes), rollout.id)
    site.platform.workloads.start(new, 2)
    site.platform.router.attach(site.platform.workloads.endpoints(new.id))
    if share:
        shares = {stable.id: 100 - share, new.id: share}
        with site.ledger.act(rollout.id, "shift", shares=shares):
            site.platform.router.set_shares(shares)
        site.ledger.set_phase(rollout.id, Phase.SHIFTING)
    return stable, new, site.ledger.rollout(rollout.id)


def fakes(site: Site) -> tuple[FakeRouter, FakeWorkloads]:
    router, workloads = site.platform.router, site.platform.workloads
    assert isinstance(router, FakeRouter)
    assert isinstance(workloads, FakeWorkloads)
    return router, workloads


def serves_alone(site: Site, release: Release) -> None:
    router, workloads = fakes(site)
    assert router.held == {release.id: 100}
    assert list(router.attached) == [release.id]
    assert workloads.running() == [release.id]


@pytest.mark.parametrize("share", [0, 10, 100])
def test_back_to_stable(tmp_path: Path, share: int) -> None:
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, share)
    end = put_back.put_back(site, rollout.id, "it failed")
    assert end is (Phase.ROLLED_BACK if share else Phase.FAILED)
    serves_alone(site, stable)
    done = site.ledger.rollout(rollout.id)
    assert (done.phase, done.reason) == (end, "it failed")
    assert site.ledger.stable("shop", "prod") == stable.id


def test_twice_is_once(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)
    put_back.put_back(site, rollout.id, "it failed")
    moves = len(fakes(site)[0].moves)
    assert put_back.put_back(site, rollout.id, "again") is Phase.ROLLED_BACK
    assert len(fakes(site)[0].moves) == moves
    assert site.ledger.rollout(rollout.id).reason == "it failed"
    serves_alone(site, stable)


def test_a_first_release_that_fails_leaves_nothing(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    token = site.ledger.take_lease("shop", "prod", "test")
    rollout = site.ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="1", strategy="canary"
    )
    new = site.ledger.add_release(a_release(), rollout.id)
    site.platform.workloads.start(new, 2)
    put_back.put_back(site, rollout.id, "no")
    router, workloads = fakes(site)
    assert (router.held, workloads.running()) == ({}, [])


def test_a_promoted_release_is_finished_not_rolled_back(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    _, new, rollout = under_way(site, 100)
    site.ledger.promote(rollout.id, "good")
    assert put_back.put_back(site, rollout.id, "died") is Phase.PROMOTED
    serves_alone(site, new)
    assert site.ledger.rollout(rollout.id).reason == "good"


def test_stable_gets_its_replicas_before_its_traffic(tmp_path: Path) -> None:
    """`rolling` and `recreate` took replicas away: argo-rollouts#3941 rolled back onto too few."""
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)
    router, workloads = fakes(site)
    workloads.start(stable, 1)
    put_back.put_back(site, rollout.id, "bad")
    assert workloads.wanted[stable.id] == stable.run.replicas
    assert len(router.attached[stable.id].urls) == stable.run.replicas


def autoscaled(site: Site, size: int) -> Site:
    """With an autoscaler that had given the release that serves so many replicas."""
    cluster: Any = SimpleNamespace(autoscaled=lambda _: size, apply_extras=lambda _: None)
    site.platform = replace(site.platform, cluster=cluster)
    return site


def test_stable_gets_the_size_that_an_autoscaler_had_given_it(tmp_path: Path) -> None:
    """`rolling` has left it just as many as its service file says."""
    site = autoscaled(a_site(tmp_path), 5)
    stable, _, rollout = under_way(site, 50)
    router, workloads = fakes(site)
    put_back.put_back(site, rollout.id, "bad")
    assert workloads.wanted[stable.id] == 5 > stable.run.replicas
    assert len(router.attached[stable.id].urls) == 5


def test_the_way_back_takes_no_replica_from_stable(tmp_path: Path) -> None:
    """An autoscaler has grown it past its service file, and some are not ready."""
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)
    _, workloads = fakes(site)
    workloads.start(stable, 5)
    workloads.sick[stable.id] = "no database"
    with pytest.raises(NotApplied):
        put_back.put_back(site, rollout.id, "bad")
    assert workloads.wanted[stable.id] == 5


def test_autoscalers_that_cannot_be_asked_do_not_hold_traffic_up(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)

    def away(_: str) -> int:
        raise Unreachable("the cluster does not answer")

    cluster: Any = SimpleNamespace(autoscaled=away, apply_extras=lambda _: None)
    site.platform = replace(site.platform, cluster=cluster)
    put_back.put_back(site, rollout.id, "bad")
    serves_alone(site, stable)


def test_no_traffic_to_a_stable_release_that_cannot_start(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 100)
    router, workloads = fakes(site)
    workloads.stop(stable.id, 0)
    workloads.sick[stable.id] = "no database"
    with pytest.raises(NotApplied, match=r"no ready replica \(no database\); traffic is unchanged"):
        put_back.put_back(site, rollout.id, "bad")
    assert router.held == {new.id: 100}


def test_a_router_that_is_down_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 50)
    router, _ = fakes(site)
    router.down = True
    answer, asked = router._answer, []

    def back_at_the_third_question() -> None:
        asked.append(1)
        router.down = len(asked) < 3
        answer()

    router._answer = back_at_the_third_question  # type: ignore[method-assign]
    put_back.traffic_to_stable(site, rollout, "bad")
    assert router.held == {stable.id: 100}
    assert site.ledger.rollout(rollout.id).phase is Phase.ROLLING_BACK


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the process may handle it, and nothing is written after."""


@pytest.mark.parametrize("way", ["back", "forward"])
def test_killed_at_any_call_it_is_ended_by_the_next_one(tmp_path: Path, way: str) -> None:
    """Cut at the first call to a platform, at the second, …: what comes after ends it rightly."""
    cut = 0
    while True:
        site = a_site(tmp_path / f"{way}{cut}")
        stable, new, rollout = under_way(site, 100 if way == "forward" else 50)
        if way == "forward":
            site.ledger.promote(rollout.id, "good")
        calls = 0
        restore: list[Any] = []

        def cutting(target: Any, name: str, restore: list[Any] = restore) -> None:
            real = getattr(target, name)
            restore.append((target, name, real))

            def counted(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > cut:  # noqa: B023 - read in this round alone
                    raise Killed
                return real(*arguments, **named)

            setattr(target, name, counted)

        for name in ("attach", "detach", "set_shares", "match"):
            cutting(site.platform.router, name)
        for name in ("start", "stop"):
            cutting(site.platform.workloads, name)
        for name in ("set_phase", "_outcome"):
            cutting(site.ledger, name)
        try:
            put_back.put_back(site, rollout.id, "died")
            killed = False
        except Killed:
            killed = True
        for target, name, real in restore:
            setattr(target, name, real)
        put_back.put_back(site, rollout.id, "died")
        serves_alone(site, new if way == "forward" else stable)
        assert site.ledger.unfinished() == []
        site.ledger.close()
        if not killed:
            break
        cut += 1
    assert cut >= 5, f"{way}: only {cut} places were cut"


def test_unfinished_rollouts_are_ended_first(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, _, _ = under_way(site, 10)
    assert put_back.unfinished_first(site) == [Phase.ROLLED_BACK]
    assert put_back.unfinished_first(site) == []
    serves_alone(site, stable)
    assert "its process died" in site.ledger.history("shop")[0].reason


def test_draining_waits_for_connections_and_no_longer_than_allowed(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    release = serving(site, a_release(run=a_release().run.model_copy(update={"drain": 0.3})))
    assert put_back.drain(site, release.id, quiet_seconds=0.05) == 0
    fakes(site)[1].connections[release.id] = 2
    assert put_back.drain(site, release.id, quiet_seconds=0.05) == 4  # two replicas, two each


def test_unreachable_is_not_swallowed_by_put_back(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    _, _, rollout = under_way(site, 0)
    router, _ = fakes(site)

    def down() -> None:
        raise Unreachable("gone")

    router.detach = lambda release_id: down()  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        put_back.put_back(site, rollout.id, "x")
    assert site.ledger.unfinished() != []
    with pytest.raises(Refused):
        site.ledger.take_lease("shop", "prod", "somebody else")


# -- contract migrations: past the point nobody goes back by themselves ---------------------------

CONTRACT: dict[str, Any] = {"migration": "contract"}


def told(site: Site) -> list[tuple[Event, str]]:
    """What people heard: events and reasons."""
    site.outbox.close()
    notifier = site.outbox._notifier
    assert isinstance(notifier, FakeNotifier)
    return [(notice.event, dict(notice.facts)["reason"]) for notice in notifier.recorded]


def test_a_dead_contract_release_is_frozen_where_it_was(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 50, **CONTRACT)
    assert put_back.unfinished_first(site) == [Phase.FROZEN]
    router, workloads = fakes(site)
    assert router.held == {stable.id: 50, new.id: 50}
    assert workloads.running() == [stable.id, new.id]
    assert site.ledger.unfinished() == []
    assert [r.id for r in site.ledger.frozen("shop", "prod")] == [rollout.id]
    assert put_back.unfinished_first(site) == [], "a second look changes nothing"
    events = told(site)
    assert [event for event, _ in events] == [Event.CRASH, Event.PAUSE]
    assert "dafnck approve shop --env prod or dafnck abort shop" in events[1][1]
    with pytest.raises(Refused, match="is frozen, because its process died"):
        none_frozen(site)


def test_below_its_point_it_goes_back(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    late = a_release().rollout.model_copy(update={"freeze_at": 60})
    stable, _, rollout = under_way(site, 50, **CONTRACT, rollout=late)
    assert put_back.put_back(site, rollout.id, "bad") is Phase.ROLLED_BACK
    serves_alone(site, stable)
    none_frozen(site)


def test_a_person_takes_it_back_all_the_same(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, new, _ = under_way(site, 50, **CONTRACT)
    put_back.unfinished_first(site)
    lease = site.ledger.lease("shop", "prod")
    assert lease
    site.ledger.remove_lease(lease)
    with pytest.raises(Refused, match="--even-unsafe"):
        abort_frozen(site, "no", None, "ada")
    assert fakes(site)[0].held == {stable.id: 50, new.id: 50}
    done = abort_frozen(site, "aborted by ada: no data yet", "no data yet", "ada")
    assert done
    assert (done.phase, done.unsafe_reason, done.unsafe_by) == (
        *(Phase.ROLLED_BACK, "no data yet"),
        "ada",
    )
    serves_alone(site, stable)
    assert site.ledger.lease("shop", "prod") is None
    assert site.ledger.contracts_after(stable) == [new.id], "it had traffic"
    assert abort_frozen(site, "again", "again", "ada") is None


def test_the_share_of_replicas_that_do_not_exist_is_lent_to_stable(tmp_path: Path) -> None:
    """Certain errors for it, and stable runs on that database with the rest of the requests."""
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 20, **CONTRACT)
    router, workloads = fakes(site)
    put_back.put_back(site, rollout.id, "bad")
    assert router.held == {stable.id: 80, new.id: 20}
    workloads.sick[new.id] = "it crashes"
    put_back.unfinished_first(site)
    assert router.held == {stable.id: 100}
    assert workloads.running() == [stable.id, new.id], "for a person who lets it go on"
    put_back.unfinished_first(site)
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN
    assert [event for event, _ in told(site)] == [Event.PAUSE, Event.PAUSE]


def test_stable_is_not_brought_back_when_the_new_release_has_everything(tmp_path: Path) -> None:
    """Errors end with a repair; what old code does to a contracted database does not."""
    site = a_site(tmp_path)
    _, new, rollout = under_way(site, 100, **CONTRACT)
    router, workloads = fakes(site)
    workloads.sick[new.id] = "it crashes"
    assert put_back.put_back(site, rollout.id, "dead") is Phase.FROZEN
    assert router.held == {new.id: 100}


def test_nothing_is_lent_to_a_stable_release_that_is_not_ready(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 20, **CONTRACT)
    router, workloads = fakes(site)
    workloads.sick |= {new.id: "it crashes", stable.id: "so does this"}
    put_back.put_back(site, rollout.id, "dead")
    assert router.held == {stable.id: 80, new.id: 20}


def test_frozen_with_everything_away_it_is_frozen_all_the_same(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    _, _, rollout = under_way(site, 20, **CONTRACT)
    fakes(site)[0].down = True
    assert put_back.put_back(site, rollout.id, "dead") is Phase.FROZEN
    assert site.ledger.rollout(rollout.id).phase is Phase.FROZEN


def test_killed_at_any_call_a_contract_release_is_frozen_by_the_next_one(tmp_path: Path) -> None:
    for cut in range(4):
        site = a_site(tmp_path / str(cut))
        stable, new, rollout = under_way(site, 50, **CONTRACT)
        fakes(site)[1].sick[new.id] = "it crashes"
        calls = 0

        def cutting(target: Any, name: str, cut: int = cut) -> Any:
            real = getattr(target, name)

            def counted(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > cut:
                    raise Killed
                return real(*arguments, **named)

            setattr(target, name, counted)
            return real

        names = [(site.platform.router, "set_shares")]
        names += [(site.ledger, name) for name in ("set_phase", "_outcome")]  # type: ignore[list-item]
        real = [(target, name, cutting(target, name)) for target, name in names]
        with suppress(Killed):
            put_back.put_back(site, rollout.id, "died")
        for target, name, method in real:
            setattr(target, name, method)
        assert put_back.put_back(site, rollout.id, "died") is Phase.FROZEN
        assert fakes(site)[0].held == {stable.id: 100}
        site.ledger.close()


def test_a_rollback_past_a_promoted_contract_release_is_refused(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    first = serving(site)
    second = serving(site, a_release(migration="expand"))
    assert way_back(site, first, None) is None
    third = serving(site, a_release(migration="contract"))
    fourth = serving(site)
    for target in (first, second):
        with pytest.raises(Refused, match=f"{target.id} .* is older than {third.id}"):
            way_back(site, target, None)
        assert way_back(site, target, "the column is there") == "the column is there"
    for target in (third, fourth):
        assert way_back(site, target, None) is None
        assert way_back(site, target, "not needed") is None


def test_a_frozen_rollout_goes_on_once(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    _, _, rollout = under_way(site, 50, **CONTRACT)
    put_back.put_back(site, rollout.id, "bad")
    lease = site.ledger.lease("shop", "prod")
    assert lease
    site.ledger.remove_lease(lease)
    token = site.ledger.take_lease("shop", "prod", "resume")
    site.ledger.go_on(rollout.id, token=token, who="ada", flow_run_id="run-2")
    led = site.ledger.rollout(rollout.id)
    assert (led.phase, led.approved_by, led.flow_run_id) == (Phase.SHIFTING, "ada", "run-2")
    held = site.ledger.lease("shop", "prod")
    assert held
    assert held.rollout_id == rollout.id
    with pytest.raises(Refused, match="is not frozen any more"):
        site.ledger.go_on(rollout.id, token=token, who="eve", flow_run_id=None)
    assert site.ledger.rollout(rollout.id).approved_by == "ada"


# -- what cannot be put right now -----------------------------------------------------------------


def test_before_a_new_release_what_cannot_be_put_right_is_passed_over(tmp_path: Path) -> None:
    """The new one may be the cure. It is over for the ledger only when its traffic is elsewhere."""
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 50)
    router, workloads = fakes(site)
    workloads.stop(stable.id, 0)
    workloads.sick[stable.id] = "no database"
    with pytest.raises(NotApplied):
        put_back.unfinished_first(site)
    assert put_back.unfinished_first(site, before_a_new_one=True) == []
    assert router.held == {stable.id: 50, new.id: 50}
    assert site.ledger.rollout(rollout.id).finished_at is None
    lease = site.ledger.lease("shop", "prod")
    assert lease
    cure = site.ledger.open_rollout(
        *("shop", "prod"), token=lease.token, kind="release", version="3", strategy="blue-green"
    )
    site.ledger.add_release(a_release(), cure.id)
    site.ledger.promote(cure.id, "good", token=lease.token)
    over = site.ledger.rollout(rollout.id)
    assert (over.phase, over.finished_at is not None) == (Phase.ROLLED_BACK, True)
    assert over.reason.endswith("; 3 took its traffic")
    assert [r.id for r in site.ledger.unfinished()] == [cure.id]


def test_without_a_share_what_cannot_be_put_right_is_over(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    stable, _, rollout = under_way(site, 0)
    router, workloads = fakes(site)
    router.held = {}
    workloads.stop(stable.id, 0)
    workloads.sick[stable.id] = "no database"
    assert put_back.unfinished_first(site, before_a_new_one=True) == [Phase.FAILED]
    assert "not put right: " in site.ledger.rollout(rollout.id).reason


def test_a_shrunken_stable_release_gets_its_replicas_before_it_is_lent_traffic(
    tmp_path: Path,
) -> None:
    site = a_site(tmp_path)
    stable, new, rollout = under_way(site, 75, **CONTRACT)
    router, workloads = fakes(site)
    workloads.start(stable, 1)
    router.attach(workloads.endpoints(stable.id))
    workloads.sick[new.id] = "it crashes"
    put_back.put_back(site, rollout.id, "bad")
    assert router.held == {stable.id: 100}
    assert workloads.wanted[stable.id] == stable.run.replicas
    assert len(router.attached[stable.id].urls) == stable.run.replicas
