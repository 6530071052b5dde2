"""Traffic first: what gives traffic back, wherever a rollout died. No Prefect, no servers."""

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRouter, FakeWorkloads, a_release, a_site, serving

from policy.errors import NotApplied, Refused, Unreachable
from policy.release import Phase, Release, RolloutRecord
from tasks import put_back
from tasks.site import Site


def under_way(site: Site, share: int) -> tuple[Release, Release, RolloutRecord]:
    """A stable release and a new one that has this share. -> stable, new, rollout."""
    stable = serving(site)
    token = site.ledger.take_lease("shop", "prod", "test")
    rollout = site.ledger.open_rollout(
        "shop", "prod", token=token, kind="release", version="2", strategy="canary"
    )
    new = site.ledger.add_release(a_release(), rollout.id)
    site.platform.workloads.start(new, 2)
    site.platform.router.attach(site.platform.workloads.endpoints(new.id))
    if share:
        with site.ledger.act(rollout.id, "shift", share=share):
            site.platform.router.set_shares({stable.id: 100 - share, new.id: share})
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
