"""Service files: what is meant is read, what cannot be meant is refused with file, line and key."""

import copy
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from policy.errors import BadInput
from tasks.read import configuration, read_all, read_service

FULL: dict[str, Any] = {
    "version": 1,
    "service": "shop",
    "build": {
        "source": ".",
        "python": {"requirements": "requirements.txt", "version": "3.12"},
        "within": "5m",
    },
    "run": {
        "command": "serve --port {port}",
        "health": {"path": "/healthz", "successes": 3, "interval": "200ms", "timeout": "2s"},
        "replicas": 2,
        "env": {"LOG_LEVEL": "info"},
        "files": {"config.toml": "prod.toml"},
        "start": "30s",
        "drain": "30s",
        "grace": "10s",
        "limits": {"memory": "512M", "open_files": 1024, "processes": 64},
    },
    "route": {"host": "shop.example.org", "port": 8443},
    "rollout": {
        "strategy": "canary",
        "steps": ["5%", "25%", "50%", "100%"],
        "bake": "2m",
        "within": "1h",
        "approve": True,
        "judge": {
            "method": "threshold",
            "errors": "at most 1.5x stable",
            "p50": "at most 100ms",
            "p90": "at most 200ms",
            "p95": "at most 1.3x stable",
            "p99": "at most 500ms",
            "interval": "10s",
            "failure_limit": 1,
            "min_requests": 50,
            "unsure": "hold",
        },
        "cohort": {"header": "X-Beta: yes"},
        "sticky": True,
        "preview": "X-Preview: now",
        "keep": 3,
        "freeze": ["Fri 16:00 - Mon 08:00", {"cron": "0 16 * * FRI", "lasts": "64h"}],
        "time_zone": "Europe/Berlin",
        "freeze_at": "50%",
    },
    "scan": {
        "trivy": True,
        "database_age": "2d",
        "priority_age": "7d",
        "within": "10m",
        "compliance": ["docker-cis-1.6.0"],
        "pip_audit": {"osv": "https://osv.example.org/v1/query", "private": ["shop"]},
        "tools": [{"name": "ruff", "command": "ruff --output-file {sarif}"}],
    },
    "gates": {
        "findings": {"at_least": "high", "known_exploited": True, "epss_at_least": "10%"},
        "secrets": {"level": "warn"},
        "compliance": {"at_least": "low"},
        "lint": {"tools": ["ruff"], "at_most": 20, "more_than_serves": 0},
        "licenses": {"forbidden": ["AGPL-3.0-only"]},
    },
    "migration": "contract",
    "notify": {"to": ["team-slack", "$MAIL_URL"], "on": ["start", "fail"]},
    "environments": {
        "dev": {"rollout": {"strategy": "blue-green", "approve": False}},
        "prod": {"platform": "local", "run": {"replicas": 4}, "rollout": {"bake": "5m"}},
    },
}
REQUIRED = {
    ("version",),
    ("service",),
    ("build",),
    ("build", "python"),
    ("build", "python", "requirements"),
    ("run",),
    ("run", "command"),
    ("run", "health"),
    ("run", "health", "path"),
    ("rollout", "cohort", "header"),
    ("notify", "to"),
}
OUT_OF_RANGE: dict[tuple[str, ...], list[Any]] = {
    ("version",): [0, 2, -1, "one"],
    ("service",): ["Shop", "shop_1", "-shop", "x" * 37, ""],
    ("build", "within"): ["-1s", "soon"],
    ("build", "python", "version"): ["3", "2.7.1", "python3"],
    ("run", "command"): ["serve --port 80", [], "", "serve {port} '"],
    ("run", "replicas"): [0, -1, 101, 1.5],
    ("run", "start"): ["0s", "-5s", "5 parsecs"],
    ("run", "health", "path"): ["healthz", "", "/a b"],
    ("run", "health", "successes"): [0, 101],
    ("run", "health", "timeout"): ["0s"],
    ("run", "limits", "memory"): ["0M", "lots", -5],
    ("run", "limits", "open_files"): [1, -1],
    ("run", "env"): [{"A-B": "x"}, {"A": True}, {"A": None}, {"A": ["x"]}],
    ("run", "files"): [{"/etc/passwd": "x"}, {"../x": "x"}],
    ("environments",): [{"pre-prod": {}}, {"Prod": {}}, {"x" * 21: {}}],
    ("route", "port"): [0, 65536, -1],
    ("route", "host"): ["a b", "http://x"],
    ("rollout", "strategy"): ["blue-gren", "big-bang", ""],
    ("rollout", "steps"): [
        ["5%", "5%", "100%"],
        ["50%", "25%", "100%"],
        ["5%", "110%"],
        ["0%", "100%"],
        ["5%", "50%"],
        ["2.5%", "100%"],
        [],
    ],
    ("rollout", "bake"): ["-1s", "1s"],
    ("rollout", "within"): ["0s", "1m", "8m"],
    ("rollout", "keep"): [0, 101],
    ("rollout", "judge", "errors"): ["at most 3", "at most 5s", "under 2%", "at most 101%", "2%"],
    ("rollout", "judge", "p99"): ["at most 3%", "500ms"],
    ("rollout", "judge", "method"): ["guess"],
    ("rollout", "judge", "unsure"): ["promote"],
    ("rollout", "judge", "interval"): ["0s", "100ms", float("nan"), float("inf")],
    ("run", "drain"): [float("inf"), float("nan"), "31d"],
    ("rollout", "judge", "min_requests"): [0],
    ("rollout", "preview"): ["X-Preview", ": yes", "X Y: z"],
    ("rollout", "cohort", "header"): ["beta"],
    ("rollout", "freeze"): [
        ["Fri"],
        ["Fri 16:00 - 08:00"],
        ["Fri 16:00 - Xyz 08:00"],
        ["Fri 25:00 - Mon 08:00"],
        ["Dec 20 - Mon"],
        ["Dec 32 - Jan 2"],
        ["Fri 16:00 - Fri 16:00"],
        [7],
        [{"cron": "0 16 * * FRI"}],
        [{"cron": "0 16 * * FRX", "lasts": "64h"}],
        [{"cron": "0 16 * *", "lasts": "64h"}],
        [{"cron": "0 16 * * FRI", "lasts": "31d"}],
        [{"cron": "0 16 * * FRI", "lasts": "0s"}],
        [{"lasts": "64h"}],
        [{"cron": "0 16 * * FRI", "lasts": "64h", "between": "Fri - Mon"}],
        [{"cron": "0 16 * * FRI", "last": "64h"}],
        "Fri 16:00 - Mon 08:00",
    ],
    ("rollout", "time_zone"): ["Berlin", "", "Europe/Belin", "../etc/passwd", 1],
    ("rollout", "freeze_at"): ["0%", "101%", "2.5%", "some"],
    ("migration",): ["extend", "", True],
    ("notify", "to"): [[], ["slack://token"], ["Team"], [""], ["$"], [7], "team-slack"],
    ("notify", "on"): [[], ["strat"], [7], "fail"],
}


def paths(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict) and key not in ("env", "files", "environments"):
            yield from paths(value, (*above, key))


def changed(path: tuple[str, ...], value: Any = None, *, name: str | None = None) -> dict[str, Any]:
    """The full document with one key set, renamed or, with neither, dropped."""
    document = copy.deepcopy(FULL)
    node = document
    for key in path[:-1]:
        node = node[key]
    old = node[path[-1]]
    if name:
        # In the place of the old one, so that the line is where a person would look.
        items = [(name if key == path[-1] else key, content) for key, content in node.items()]
        node.clear()
        node.update(items)
    elif value is None:
        del node[path[-1]]
    else:
        assert old != value
        node[path[-1]] = value
    return document


def misspelt(key: str) -> str:
    return key[:-1] + "x" if len(key) > 3 else key + "x"


def malformed() -> list[tuple[str, dict[str, Any]]]:
    cases = [(f"without {'.'.join(p)}", changed(p)) for p in sorted(REQUIRED)]
    for path in paths(FULL):
        cases.append((f"misspelt {'.'.join(path)}", changed(path, name=misspelt(path[-1]))))
        wrong = {"not": "this"} if path[-1] not in ("env", "files", "environments") else 7
        cases.append((f"mistyped {'.'.join(path)}", changed(path, wrong)))
    for path, values in OUT_OF_RANGE.items():
        cases += [(f"{'.'.join(path)}: {value!r}", changed(path, value)) for value in values]
    return cases


def as_text(document: Any) -> str:
    out = StringIO()
    YAML().dump(document, out)
    return out.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "prod.toml").write_text("a = 1\n")
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path / "dafnck.yaml"


def test_the_full_file_is_good(file: Path) -> None:
    file.write_text(as_text(FULL))
    assert set(read_all(file)) == {"dev", "prod"}


CASES = malformed()


def test_there_are_a_hundred_at_least() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize(("what", "document"), CASES, ids=[what for what, _ in CASES])
def test_a_malformed_file_is_refused_with_file_line_and_key(
    what: str, document: dict[str, Any], file: Path
) -> None:
    text = as_text(document)
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_all(file)
    message = str(refused.value)
    match = re.match(r"(.+?):(\d+): ([\w.{}-]+(?:\.\S+)?): (.+)", message)
    assert match, message
    assert "\n" not in message, "one line"
    assert match[1] == str(file)
    line = text.splitlines()[int(match[2]) - 1]
    named = match[3].split(".")
    # The line is that of the key, or of the mapping that lacks it.
    item = named[-1].isdigit() and line.lstrip().startswith("-")
    assert item or any(part in line for part in named[-2:]) or what.startswith("without"), message
    assert refused.value.exit_code == 2
    assert {path.name for path in file.parent.iterdir()} == {
        "dafnck.yaml",
        "prod.toml",
        "requirements.txt",
    }


IMAGE: dict[str, Any] = {
    "version": 1,
    "service": "shop",
    "platform": "docker",
    "build": {
        "image": {
            "context": ".",
            "dockerfile": "Dockerfile",
            "target": "app",
            "args": {"LEVEL": "1"},
            "secrets": {"npm": "$NPM_TOKEN", "token": "prod.toml"},
            "push": "registry.example.org:5000/team/shop",
        }
    },
    "run": {
        "command": "serve",
        "port": 8000,
        "health": "/healthz",
        "writable": ["/var/cache"],
        "limits": {"memory": "64M"},
    },
    "tests": [{"name": "unit", "command": "run {junit}"}],
}
Keys = tuple[str | int, ...]
DROPPED = "(not there)"
WRONG_IMAGES: list[tuple[Keys, Any, str]] = [
    (("build", "image", "contxt"), ".", "build.image.contxt: unknown key; did you mean context?"),
    (("build", "image", "context"), "../x", "build.image.context: '../x' must stay inside"),
    (("build", "image", "context"), "nowhere", "build.image.context: there is no directory"),
    (("build", "image", "dockerfile"), "/Dockerfile", "build.image.dockerfile: '/Dockerfile' must"),
    (("build", "image", "dockerfile"), "other", "build.image.dockerfile: there is no file"),
    (("build", "image", "target"), "--push", "build.image.target: '--push' does not fit"),
    (("build", "image", "args"), {"A-B": "x"}, "build.image.args.A-B: 'A-B' does not fit"),
    (("build", "image", "args"), {"A": True}, "build.image.args.A: write the value as text"),
    (("build", "image", "args"), "A=1", "build.image.args: "),
    (("build", "image", "secrets"), {"a,b": "x"}, "build.image.secrets.a,b: 'a,b' does not fit"),
    (("build", "image", "secrets"), {"a": "$"}, "build.image.secrets.a: name a file, or a"),
    (("build", "image", "secrets"), {"a": "nowhere"}, "build.image.secrets.a: there is no file"),
    (("build", "image", "push"), "registry/shop:1", "build.image.push: 'registry/shop:1' does not"),
    (("build", "image", "push"), "r.example/Shop", "build.image.push: 'r.example/Shop' does not"),
    (("build", "image", "push"), "a@sha256:b", "build.image.push: 'a@sha256:b' does not fit"),
    (("build", "command"), "x {out}", "build: needs exactly one of python, image, command"),
    (("build", "image"), DROPPED, "build: needs exactly one of python, image, command"),
    (("build",), {"command": "x {out}"}, "build: platform docker runs images; needs image"),
    (("platform",), "local", "build.image: needs platform: docker or kubernetes"),
    (
        ("platform",),
        "dokcer",
        "platform: must be 'local', 'docker' or 'kubernetes', not 'dokcer'; did you mean",
    ),
    (("platform",), DROPPED, "build.image: needs platform: docker or kubernetes"),
    (("run", "port"), 0, "run.port: "),
    (("run", "port"), 65536, "run.port: "),
    (("run", "port"), DROPPED, "run.command: must contain {port}"),
    (("run",), {"health": "/x"}, "run.port: is missing: the port that the image listens on"),
    (("run", "writable"), ["cache"], "run.writable.0: 'cache' does not fit"),
    (("run", "writable"), ["/a:rw"], "run.writable.0: '/a:rw' does not fit"),
    (("run", "health"), {"healthcheck": "mine"}, "run.health.healthcheck: must be 'image'"),
    (("run", "health"), {"path": "/x", "healthcheck": "image"}, "run.health: needs exactly one of"),
    (("run", "limits", "memory"), "5M", "run.limits.memory: a container needs 6M at least"),
    (("tests", 0, "requirements"), "dev.txt", "tests.0.requirements: a suite runs in the image"),
]
WRONG_PROCESSES: list[tuple[Keys, Any, str]] = [
    (("run", "command"), DROPPED, "run.command: is missing"),
    (("run", "port"), 8000, "run.port: is of images (platform: docker or kubernetes)"),
    (("run", "writable"), ["/x"], "run.writable: is of images (platform: docker or kubernetes)"),
    (("run", "health"), {"healthcheck": "image"}, "run.health.healthcheck: needs platform: docker"),
    (("platform",), "docker", "build: platform docker runs images; needs image"),
]


def put(document: dict[str, Any], path: Keys, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    if value is DROPPED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


def test_a_file_of_an_image_is_good(file: Path) -> None:
    (file.parent / "Dockerfile").touch()
    file.write_text(as_text(IMAGE))
    (service,) = read_all(file).values()
    assert configuration(service, "local", file) == {}
    file.write_text(as_text(put(IMAGE, ("run", "command"), DROPPED)))
    assert read_all(file)


@pytest.mark.parametrize(
    ("document", "path", "value", "words"),
    [
        *((IMAGE, *case) for case in WRONG_IMAGES),
        *((put(FULL, ("environments",), {"local": {}}), *case) for case in WRONG_PROCESSES),
    ],
    ids=[f"{case[0]}: {case[1]!r:.30}" for case in WRONG_IMAGES + WRONG_PROCESSES],
)
def test_a_malformed_file_of_an_image_is_refused_where_it_is_wrong(
    document: dict[str, Any], path: Keys, value: Any, words: str, file: Path
) -> None:
    (file.parent / "Dockerfile").touch()
    text = as_text(put(document, path, value))
    file.write_text(text)

    def read() -> None:
        for environment, service in read_all(file).items():
            configuration(service, environment, file)

    with pytest.raises(BadInput) as refused:
        read()
    message = str(refused.value)
    assert "\n" not in message
    match = re.match(r"(.+?):(\d+): (.+)", message)
    assert match, message
    assert match[3].startswith(words), message
    line = text.splitlines()[int(match[2]) - 1]
    key = words.partition(": ")[0].split(".")
    assert any(part in line for part in key[-2:]) or line.lstrip().startswith("-"), message


def test_an_environment_may_be_of_another_platform(file: Path) -> None:
    environments = {"dev": {}, "prod": {"platform": "docker"}}
    file.write_text(as_text(put(FULL, ("environments",), environments)))
    with pytest.raises(BadInput, match=r"build: platform docker runs images; needs image"):
        read_all(file)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("repicas", "replicas"), ("comand", "command"), ("helth", "health"), ("grase", "grace")],
)
def test_the_nearest_known_key_is_named(file: Path, wrong: str, right: str) -> None:
    file.write_text(as_text(changed(("run", right), name=wrong)))
    with pytest.raises(BadInput, match=f"run.{wrong}: unknown key; did you mean {right}"):
        read_all(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1", b"a: [", b"a: b: c", b"\xff\xfe\x00", b"a: 1\na: 2", b"&a [*a]", b"7", b"\t: x"],
)
def test_what_is_no_service_file_at_all(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(str(file))):
        read_all(file)


def test_a_missing_file_and_a_directory(file: Path) -> None:
    for path in (file.parent / "none.yaml", file.parent):
        with pytest.raises(BadInput, match=re.escape(str(path))):
            read_all(path)


def test_an_environment_overrides(file: Path) -> None:
    file.write_text(as_text(FULL))
    dev, prod = (read_service(file, name)[0] for name in ("dev", "prod"))
    assert (dev.rollout.strategy, dev.rollout.shares, dev.run.replicas) == ("blue-green", [100], 2)
    assert (prod.rollout.strategy, prod.rollout.bake, prod.run.replicas) == ("canary", 300, 4)
    assert prod.rollout.shares == [5, 25, 50, 100]


def test_an_unknown_environment_names_the_known_ones(file: Path) -> None:
    file.write_text(as_text(FULL))
    with pytest.raises(BadInput, match="did you mean prod"):
        read_service(file, "prd")
    with pytest.raises(BadInput, match="name one of its environments by --env: dev, prod"):
        read_service(file)


def test_a_mistake_in_an_override_is_found_in_the_override(file: Path) -> None:
    document = copy.deepcopy(FULL)
    document["environments"]["prod"]["run"]["replicas"] = 0
    text = as_text(document)
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_all(file)
    line = next(n for n, words in enumerate(text.splitlines(), 1) if "replicas: 0" in words)
    assert str(refused.value).startswith(f"{file}:{line}: environments.prod.run.replicas: ")


def test_configuration_files_must_be_there(file: Path) -> None:
    file.write_text(as_text(FULL))
    wanted, environment = read_service(file, "prod")
    assert configuration(wanted, environment, file) == {"config.toml": b"a = 1\n"}
    (file.parent / "prod.toml").unlink()
    with pytest.raises(BadInput, match=r":\d+: run.files.config.toml: cannot read .*No such file"):
        configuration(wanted, environment, file)


def test_paths_of_the_build_must_be_there(file: Path) -> None:
    file.write_text(as_text(FULL))
    wanted, environment = read_service(file, "dev")
    (file.parent / "requirements.txt").unlink()
    with pytest.raises(BadInput, match=r":\d+: build.python.requirements: there is no file"):
        configuration(wanted, environment, file)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(paths(FULL))), json)
def test_nothing_crashes_the_reader(path: tuple[str, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dafnck.yaml"
        document = copy.deepcopy(FULL)
        node = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        try:
            file.write_text(as_text(document))
        except Exception:  # not every generated text can be written as YAML; then it is no case
            return
        with suppress(BadInput):  # any other error is a crash of the reader
            read_all(file)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ({"errors": "at most 1x stable"}, "errors: that little can never be shown"),
        ({"errors": "at most 0%"}, "errors: no count can show zero"),
        ({"errors": "at most 2%", "interval": "2s"}, "interval: belongs to `method: threshold`"),
        ({"latency": "at most 500ms"}, "latency: has no single value"),
        ({"errors": "at most 2% and 3%"}, "errors: '3%' is not a limit"),
        ({"errors": "at most 2%", "false_rollbacks": "50%"}, "false_rollbacks: "),
        ({"errors": "at most 2%", "false_rollbacks": "0%"}, "false_rollbacks: "),
        ({"errors": "at most 2%", "bursts": "soon"}, "bursts: 'soon' is not a duration"),
        ({"bursts": "10s"}, "judge: needs one limit at least"),
        (
            {"method": "threshold", "errors": "at most 2%", "interval": "1s", "bursts": "9s"},
            "bursts: belongs to `method: sequential`",
        ),
        ({"metrics": [{"name": "queue", "at_most": 3}]}, "needs exactly one of promql, command"),
        ({"metrics": [{"name": "queue", "command": "x"}]}, "needs at_most or at_least"),
        (
            {"metrics": [{"name": "queue", "promql": "up", "at_most": 3}]},
            "promql and prometheus belong together",
        ),
        ({"metrics": [{"name": "q", "comand": "x"}]}, "unknown key; did you mean command?"),
        ({"errors": "at most 2%", "synthetic": {"per_second": 3}}, "file: is missing"),
    ],
)
def test_what_the_judge_cannot_do_is_refused(file: Path, judge: dict[str, Any], words: str) -> None:
    document = copy.deepcopy(FULL)
    document["rollout"]["judge"] = judge
    file.write_text(as_text(document))
    with pytest.raises(BadInput) as refused:
        read_all(file)
    assert re.match(rf"{re.escape(str(file))}:\d+: rollout\.judge", str(refused.value))
    assert words in str(refused.value)


def test_synthetic_requests_must_be_readable(file: Path) -> None:
    document = copy.deepcopy(FULL)
    document["rollout"]["judge"] = {"errors": "at most 2%", "synthetic": {"file": "asks.txt"}}
    file.write_text(as_text(document))
    wanted, environment = read_service(file, "prod")
    with pytest.raises(BadInput, match=r"synthetic\.file: cannot read .*asks\.txt"):
        configuration(wanted, environment, file)
    (file.parent / "asks.txt").write_text("GET /a\nb\n")
    with pytest.raises(BadInput, match="line 2: write a path"):
        configuration(wanted, environment, file)


@pytest.mark.parametrize("wrong", [["slack://TokenA"], "slack://TokenA", {"slack": "TokenA"}])
def test_a_url_in_the_place_of_a_name_is_not_repeated(file: Path, wrong: object) -> None:
    file.write_text(as_text(changed(("notify", "to"), wrong)))
    with pytest.raises(
        BadInput, match=r":\d+: notify.to(.0)?: (is no|must be a list of) name"
    ) as refused:
        read_all(file)
    assert "Token" not in str(refused.value)


@pytest.mark.parametrize(
    ("scan", "gates", "words"),
    [
        ({"compliance": ["k8s-cis-1.23"]}, {}, "is about a whole cluster"),
        ({"compliance": ["docker-cis"]}, {}, "there is no report 'docker-cis'"),
        ({"compliance": ["docker-cis-1.6.0"] * 2}, {}, "the same report twice"),
        (
            {"compliance": ["docker-cis-1.6.0"], "trivy": False, "pip_audit": True},
            {},
            "Trivy makes the reports",
        ),
        ({"trivy": False}, {}, "leaves nothing that scans"),
        ({"trivy": False, "pip_audit": False}, {}, "leaves nothing that scans"),
        ({"pip_audit": {"osv": "osv.example.org"}}, {}, "does not fit"),
        ({"pip_audit": {"osv": "https://me:word@osv.example.org"}}, {}, "does not fit"),
        ({"pip_audit": {"privat": ["shop"]}}, {}, "did you mean private?"),
        ({"pip_audit": "yes"}, {}, "must be a mapping"),
        ({"tools": [{"name": "pip-audit", "command": "x {sarif}"}]}, {}, "have the same name"),
        ({"priority_age": "0s"}, {}, "greater than 0"),
        ({}, {"compliance": {}}, "no report is asked for"),
        ({}, {"lint": {"at_most": 0}}, "there are no linters"),
        (
            {"tools": [{"name": "ruff", "command": "x {sarif}"}]},
            {"lint": {"tools": ["rufff"], "at_most": 0}},
            "rufff is none of scan.tools: ruff",
        ),
        (
            {"tools": [{"name": "ruff", "command": "x {sarif}"}]},
            {"lint": {"tools": ["ruff"]}},
            "needs at_most or more_than_serves",
        ),
        ({}, {"findings": {"epss_at_least": "110%"}}, "outside 0% to 100%"),
        ({}, {"findings": {"exploited": True}}, "did you mean known_exploited?"),
    ],
)
def test_scans_and_gates_that_cannot_be_are_refused(
    file: Path, scan: dict[str, Any], gates: dict[str, Any], words: str
) -> None:
    file.write_text(as_text({**copy.deepcopy(FULL), "scan": scan, "gates": gates}))
    with pytest.raises(BadInput, match=r":\d+: (scan|gates)") as refused:
        read_all(file)
    assert words in str(refused.value)


def test_pip_audit_by_a_word_and_by_a_mapping(file: Path) -> None:
    def read(value: Any) -> Any:
        document = {**copy.deepcopy(FULL), "scan": {"pip_audit": value}, "gates": {}}
        document["environments"]["dev"]["scan"] = {"pip_audit": False}
        file.write_text(as_text(document))
        both = read_all(file)
        assert both["dev"].scan
        assert both["dev"].scan.pip_audit is None
        return both["prod"].scan and both["prod"].scan.pip_audit

    assert read(True).osv is None
    assert read({"osv": "https://osv.example.org/v1/query"}).osv.endswith("/v1/query")
    assert read(None) is None
