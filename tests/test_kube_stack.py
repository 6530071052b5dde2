"""`dafnck up` and `down` in a cluster: what they touch, what they leave and what they say of it."""

import base64

import pytest
from kube_fixtures import Kube, kube  # noqa: F401

from deployments.kube_secrets import DATABASE, POSTGRES, have_secrets
from deployments.kube_stack import Place, down, grant, reach, up
from policy.errors import BadInput, Unreachable

IMAGE = "registry.test/dafnck@sha256:" + "0" * 64
ENFORCE = "pod-security.kubernetes.io/enforce"


@pytest.fixture(autouse=True)
def _cluster(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))


def began(place: Place = Place()) -> list[str]:  # noqa: B008
    said: list[str] = []
    with pytest.raises(Unreachable, match="not everything is ready"):
        up(place, said.append, image=IMAGE, ready_seconds=0)
    return said


def test_a_namespace_of_others_is_left_as_it_is(kube: Kube) -> None:  # noqa: F811
    kube.namespace("tools")
    said = began(Place(namespace="tools"))
    assert [line for line in said if line.startswith("the namespace tools is there and bears no")]
    found = kube.find("Namespace", "", "tools")
    assert found
    assert ENFORCE not in (found["metadata"].get("labels") or {})


def test_one_of_ours_is_held_to_the_standard(kube: Kube) -> None:  # noqa: F811
    for _ in range(2):
        assert not [line for line in began() if "is there and bears no" in line]
        found = kube.find("Namespace", "", "dafnck")
        assert found
        assert found["metadata"]["labels"][ENFORCE] == "restricted"


def test_down_says_what_is_left_elsewhere(kube: Kube) -> None:  # noqa: F811
    for name in ("dafnck", "shop", "infra", "other"):
        kube.namespace(name)
    said: list[str] = []
    grant(Place(), said.append, release=["shop"], gateway=["infra"])
    grant(Place(namespace="other"), said.append, release=["other"], gateway=[])
    said.clear()
    down(Place(), said.append)
    told = [line.partition(": ")[2] for line in said if "take it back" in line]
    assert sorted(told) == [
        "kubectl -n infra delete rolebinding,role dafnck-gateway",
        "kubectl -n shop delete rolebinding,role dafnck-release",
    ]
    assert kube.find("RoleBinding", "shop", "dafnck-release")


def test_the_next_step_is_told_for_this_place() -> None:
    assert "up --kubernetes --release-namespace" in reach(Place())[-1]
    said = reach(Place("east", "tools"))[-1]
    assert "up --kubernetes --context east --namespace tools --release-namespace" in said


def passwords(kube: Kube, **values: str) -> None:  # noqa: F811
    kube.namespace("dafnck")
    data = {
        f"{of}-password": base64.b64encode(value.encode()).decode() for of, value in values.items()
    }
    kube.make("Secret", {"metadata": {"name": POSTGRES}, "data": data}, "dafnck")


def test_passwords_of_yours_are_written_into_urls_as_such(kube: Kube) -> None:  # noqa: F811
    passwords(kube, superuser="a", prefect="p@s/s:w%rd#", ledger="b c")
    have_secrets(kube.api(), "dafnck", own_database=True)
    made = kube.find("Secret", "dafnck", DATABASE)
    assert made
    urls = {name: base64.b64decode(value).decode() for name, value in made["data"].items()}
    assert urls == {
        "prefect-url": "postgresql+asyncpg://prefect:p%40s%2Fs%3Aw%25rd%23@postgres:5432/prefect",
        "ledger-url": "postgresql+psycopg://dafnck:b%20c@postgres:5432/dafnck",
    }


def test_a_password_that_is_missing_is_named(kube: Kube) -> None:  # noqa: F811
    passwords(kube, superuser="a", prefect="b")
    with pytest.raises(BadInput, match="Secret dafnck-postgres in dafnck has no ledger-password"):
        have_secrets(kube.api(), "dafnck", own_database=True)
    assert kube.find("Secret", "dafnck", DATABASE) is None


def test_no_command_that_is_told_has_a_password_in_it(kube: Kube) -> None:  # noqa: F811
    kube.namespace("dafnck")
    with pytest.raises(BadInput, match="--from-env-file") as told:
        have_secrets(kube.api(), "dafnck", own_database=False)
    assert "--from-literal" not in str(told.value)
