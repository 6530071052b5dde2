"""Reads a service file, and says where in it a mistake is: file, line, key, nearest known key."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from blocks.extra_manifests import read_manifests
from policy.backup import Backup, Expectation, Fresh, Keep, Target
from policy.errors import BadInput
from policy.findings import Waiver
from policy.freeze_window import FreezeWindow
from policy.gates import Gates
from policy.gates_of_age import SecretAgeGate
from policy.gates_of_scans import (
    ComplianceGate,
    FindingsGate,
    LicensesGate,
    LintGate,
    SecretsGate,
)
from policy.gates_of_size import SizeGate
from policy.gates_of_tests import (
    BenchmarksGate,
    CoverageGate,
)
from policy.image import ImageBuild
from policy.judge import CustomMetric, Judge, Synthetic, read_requests
from policy.kubernetes import Kubernetes, Metrics, Requests
from policy.notice import Notify
from policy.part import NamedValue, Part
from policy.pipeline import PipAudit, Scans, SmokeTest, Suite, Tool
from policy.rotation import PostgresLogins, Rotation
from policy.service_file import (
    Build,
    Cohort,
    GitSource,
    Health,
    Limits,
    Override,
    PythonBuild,
    Rollout,
    Route,
    Run,
    ServiceFile,
    environment_names,
    laid_over,
)

PARTS: dict[str, type[BaseModel]] = {
    "build": Build,
    "git": GitSource,
    "python": PythonBuild,
    "image": ImageBuild,
    "run": Run,
    "health": Health,
    "limits": Limits,
    "route": Route,
    "tests": Suite,
    "smoke": SmokeTest,
    "scan": Scans,
    "tools": Tool,
    "pip_audit": PipAudit,
    "gates": Gates,
    "findings": FindingsGate,
    "secrets": SecretsGate,
    "compliance": ComplianceGate,
    "lint": LintGate,
    "licenses": LicensesGate,
    "coverage": CoverageGate,
    "benchmarks": BenchmarksGate,
    "size": SizeGate,
    "secret_age": SecretAgeGate,
    "waivers": Waiver,
    "rollout": Rollout,
    "judge": Judge,
    "metrics": CustomMetric,
    "synthetic": Synthetic,
    "cohort": Cohort,
    "header": NamedValue,
    "cookie": NamedValue,
    "preview": NamedValue,
    "freeze": FreezeWindow,
    "kubernetes": Kubernetes,
    "requests": Requests,
    "kubernetes.metrics": Metrics,
    "notify": Notify,
    "backup": Backup,
    "keep": Keep,
    "postgres": PostgresLogins,
    "expectations": Expectation,
}
# Mappings whose keys are names: what lies under each.
NAMED: dict[str, type[BaseModel]] = {"targets": Target, "fresh": Fresh, "rotate": Rotation}
KEPT = ("type", "kwargs")  # of an expectation; `meta` and others say nothing about data
MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
Path_ = tuple[str | int, ...]


def read_service(
    file: Path, environment: str | None = None, content: str | None = None
) -> tuple[ServiceFile, str]:
    """-> (what is wanted, in which environment). `environment` may be left out when there is one.
    `content`: what the file says, where it does not lie here.

    Raises BadInput with one line: file, line, key, what is wrong, the nearest known key.
    """
    document = load_document(file, content)
    if "stack" in document and "service" not in document:
        line = line_of(document, ("stack",))
        raise BadInput(
            f"{file}:{line}: stack: this file is of several services: dafnck release, validate"
        )
    names = environment_names(document)
    if environment is None:
        if len(names) > 1:
            raise BadInput(f"{file}: name one of its environments by --env: {', '.join(names)}")
        environment = names[0]
    if environment not in names:
        near = nearest(environment, names)
        raise BadInput(
            f"{file}:{line_of(document, ('environments',))}: environments: there is no "
            f"{environment!r}{near}; there is {', '.join(names)}"
        )
    return validated(document, file, environment), environment


def read_all(file: Path) -> dict[str, ServiceFile]:
    """Every environment of the file. Raises BadInput at the first mistake."""
    document = load_document(file)
    return {name: validated(document, file, name) for name in environment_names(document)}


def configuration(service: ServiceFile, environment: str, file: Path) -> dict[str, bytes]:
    """Contents of the configuration files that the service names. Raises BadInput for any path of
    the file that leads nowhere."""
    source = file.parent / service.build.source
    away = service.build.git is not None  # the worker sees whether it is there
    if not away and not source.is_dir():
        raise mistake_at(file, environment, ("build", "source"), f"there is no directory {source}")
    python = service.build.python
    wants = python and not away and python.requirements
    if wants and not (source / wants).is_file():
        key = ("build", "python", "requirements")
        raise mistake_at(file, environment, key, f"there is no file {source / wants}")
    if (image := service.build.image) and not image.reference and not away:
        _image_is_there(image, source, environment, file)
    read_waivers(service, environment, file)
    judge = service.rollout.judge
    if judge and judge.synthetic:
        named = ("rollout", "judge", "synthetic", "file")
        path = file.parent / judge.synthetic.file
        try:
            read_requests(path.read_text())
        except OSError as error:
            message = f"cannot read {path}: {error.strerror}"
            raise mistake_at(file, environment, named, message) from None
        except ValueError as error:
            raise mistake_at(file, environment, named, f"{path}: {error}") from None
    contents = {}
    for target, content in service.run.files.items():
        path = file.parent / content
        try:
            contents[target] = path.read_bytes()
        except OSError as error:
            message = f"cannot read {path}: {error.strerror}"
            raise mistake_at(file, environment, ("run", "files", target), message) from None
        if len(contents[target]) > MAX_BYTES:
            message = f"over {MAX_BYTES:,} bytes"
            raise mistake_at(file, environment, ("run", "files", target), message)
    return contents


def backup_of(service: ServiceFile, environment: str, file: Path) -> Backup | None:
    """What is backed up, with the paths made absolute and the suites of expectations read. Raises
    BadInput."""
    if (wanted := service.backup) is None:
        return None
    targets = {}
    for name, target in wanted.targets.items():
        suites = {
            table: _suite(given, file, environment, ("backup", "targets", name, "expectations"))
            if isinstance(given, str)
            else given
            for table, given in target.expectations.items()
        }
        files = [str(file.parent.absolute() / path) for path in target.files or []]
        targets[name] = target.model_copy(update={"expectations": suites, "files": files or None})
    return wanted.model_copy(update={"targets": targets})


def _suite(named: str, file: Path, environment: str, key: Path_) -> list[Expectation]:
    """A suite as Great Expectations stores it."""
    path = file.parent / named
    try:
        said = json.loads(path.read_text())["expectations"]
        return [
            Expectation.model_validate({k: v for k, v in one.items() if k in KEPT}) for one in said
        ]
    except OSError as error:
        raise mistake_at(file, environment, key, f"cannot read {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        words = f'{path} is no suite of Great Expectations: {{"expectations": [{{"type": …}}]}}'
        raise mistake_at(file, environment, key, words) from None


def with_image(wanted: ServiceFile, image: str | None) -> ServiceFile:
    """The same with another image, if there is one. Raises BadInput."""
    if image is None:
        return wanted
    try:
        return wanted.with_image(image)
    except ValidationError:
        words = "names no image by its digest: registry.example.org/shop@sha256:… (64 digits)"
        raise BadInput(f"--image: {image!r} {words}; nothing was changed") from None
    except ValueError as error:
        raise BadInput(f"--image: {error}; nothing was changed") from None


def manifests(service: ServiceFile, environment: str, file: Path) -> tuple[dict[str, Any], ...]:
    """More manifests that the service names. Raises BadInput for what cannot be meant."""
    there = service.kubernetes
    if there is None or there.manifests is None:
        return ()
    folder = file.parent / there.manifests
    if not folder.is_dir():
        named = ("kubernetes", "manifests")
        raise mistake_at(file, environment, named, f"there is no directory {folder}")
    return read_manifests(folder, there.namespace)


def _image_is_there(image: ImageBuild, source: Path, environment: str, file: Path) -> None:
    context = source / image.context
    if not context.is_dir():
        named = ("build", "image", "context")
        raise mistake_at(file, environment, named, f"there is no directory {context}")
    if not (context / image.dockerfile).is_file():
        named = ("build", "image", "dockerfile")
        raise mistake_at(file, environment, named, f"there is no file {context / image.dockerfile}")
    for name, place in image.secrets.items():
        if not place.startswith("$") and not (file.parent / Path(place).expanduser()).is_file():
            words = f"there is no file {file.parent / place}"
            raise mistake_at(file, environment, ("build", "image", "secrets", name), words)


class Waivers(Part):
    """The file of findings that are let through."""

    waivers: list[Waiver]


def read_waivers(service: ServiceFile, environment: str, file: Path) -> list[Waiver]:
    """Raises BadInput with one line, as a service file does."""
    if service.scan is None or service.scan.waivers is None:
        return []
    path = file.parent / service.scan.waivers
    if not path.is_file():
        raise mistake_at(file, environment, ("scan", "waivers"), f"there is no file {path}")
    document = load_document(path)
    try:
        return Waivers.model_validate(plain_values(document)).waivers
    except ValidationError as error:
        raise BadInput(explained(error, document, path, environment)) from None


def mistake_at(file: Path, environment: str, key: Path_, message: str) -> BadInput:
    """A mistake that only the outside world tells, at the line of its key."""
    document = load_document(file)
    where = _find(document, key, environment) or key
    return BadInput(f"{file}:{line_of(document, where)}: {'.'.join(map(str, where))}: {message}")


def validated(document: Mapping[str, Any], file: Path, environment: str) -> ServiceFile:
    try:
        # The whole first: a mistake in a part that this environment replaces is still a mistake.
        ServiceFile.model_validate(plain_values(document))
        _check_overrides(document)
        return ServiceFile.model_validate(laid_over(plain_values(document), environment))
    except ValidationError as error:
        raise BadInput(explained(error, document, file, environment)) from None


def _check_overrides(document: Mapping[str, Any]) -> None:
    environments = document.get("environments") or {}
    for override in environments.values():
        Override.model_validate(plain_values(override or {}))


def load_document(file: Path, content: str | None = None) -> Mapping[str, Any]:
    """`content`: what it says, when the file itself is not here."""
    if content is not None:
        return _parsed(content, file)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(f"{file}: over {MAX_BYTES:,} bytes; this is no service file")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    return _parsed(text, file)


def _parsed(text: str, file: Path) -> Mapping[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text) > MAX_BYTES:
        raise BadInput(f"{file}: over {MAX_BYTES:,} bytes; this is no service file")
    try:
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = str(error.problem or error.context or "not YAML").splitlines()[0]
        raise BadInput(f"{file}:{line}: {problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{file}:1: {first}") from None
    if not isinstance(document, Mapping):
        raise BadInput(f"{file}:1: a service file is a mapping that begins with `version: 1`")
    return document


def plain_values(value: Any, left: list[int] | None = None) -> Any:
    """ruamel's containers and scalars as plain ones, so that models see what JSON would hold.
    Aliases are written out, up to a number of values that no file of a person has."""
    left = left if left is not None else [MAX_VALUES]
    left[0] -= 1
    if left[0] < 0:
        raise BadInput(f"over {MAX_VALUES:,} values, aliases written out; this is no service file")
    if isinstance(value, Mapping):
        return {
            (str(k) if k is not None else "null"): plain_values(v, left) for k, v in value.items()
        }
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [plain_values(item, left) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else str(value)


def explained(
    error: ValidationError,
    document: Mapping[str, Any],
    file: Path,
    environment: str = "",
    keys_beside: Callable[[Path_], list[str]] | None = None,
) -> str:
    """The first mistake in the file's own order, as one line. `keys_beside`: the known keys of the
    mapping in which this one is."""
    places = []
    for mistake in error.errors(include_url=False):
        path = _known_path(mistake["loc"])
        message = _message(mistake, path, keys_beside or _keys_beside)
        if match := re.match(r"([A-Za-z0-9_./-]+): (.*)", message, re.DOTALL):
            # A rule across keys names the key that it is about.
            words = match[1].split(".")  # run.port: also of one that is missing
            named = (*path, *(int(word) if word.isdigit() else word for word in words))
            missing = "." in match[1] and _find(document, named[:-1], environment)
            if mistake["type"] == "value_error" and (
                missing or _find(document, named, environment)
            ):
                path, message = named, match[2]
        where = _find(document, path, environment) or path
        # A misspelt key first: what is then missing is missing because of it.
        order = mistake["type"] != "extra_forbidden", line_of(document, where)
        places.append((order, where, message))
    (_, line), where, message = min(places, key=lambda place: place[0])
    return f"{file}:{line}: {'.'.join(map(str, where)) or 'the file'}: {message}"


def _known_path(location: tuple[str | int, ...]) -> Path_:
    """Without the parts that pydantic adds for unions and constrained types."""
    added = r"(str|list\[.*|int|float|function-.*|constrained-.*|\[key\]|literal\[.*|.*Override)"
    return tuple(p for p in location if isinstance(p, int) or not re.fullmatch(added, p))


def _message(mistake: Any, path: Path_, keys_beside: Callable[[Path_], list[str]]) -> str:
    kind, given = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        return "unknown key" + nearest(str(path[-1]), keys_beside(path))
    if kind == "missing":
        return "is missing"
    if kind == "model_type" or kind == "dict_type":
        return f"must be a mapping, not {_shown(given)}"
    if kind.startswith("literal_error"):
        expected = mistake["ctx"]["expected"]
        options = re.findall(r"'([^']+)'", expected)
        return f"must be {expected}, not {_shown(given)}" + nearest(str(given), options)
    if kind == "string_pattern_mismatch":
        return f"{_shown(given)} does not fit {mistake['ctx']['pattern']}"
    if kind == "value_error":
        return str(mistake["msg"]).removeprefix("Value error, ")
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    return f"{message}, not {_shown(given)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys_beside(path: Path_) -> list[str]:
    above = [part for part in path[:-1] if isinstance(part, str)]
    if not above:
        return list(ServiceFile.model_fields)
    if above[0] == "environments" and len(above) == 2:
        return list(Override.model_fields)
    model = PARTS.get(".".join(above[-2:])) or PARTS.get(above[-1])
    model = model or NAMED.get("".join(above[-2:-1]))
    return list(model.model_fields) if model else []


def nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def _find(document: Mapping[str, Any], path: Path_, environment: str) -> Path_ | None:
    """Where the file says it: in the environment, or in what lies below it."""
    for candidate in (("environments", environment, *path), path):
        if _exists(document, candidate):
            return candidate
    for candidate in (("environments", environment, *path[:-1]), path[:-1]):
        if path and len(candidate) > 2 and _exists(document, candidate):
            return (*candidate, path[-1])
    return None


def _exists(document: Any, path: Path_) -> bool:
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def line_of(document: Any, path: Path_) -> int:
    """Line of the last part of the path that is there; the mapping's own line for one missing."""
    line = 1
    for part in path:
        try:
            if isinstance(document, Mapping):
                line = document.lc.key(part)[0] + 1  # type: ignore[attr-defined]
            else:
                line = document.lc.item(part)[0] + 1
            document = document[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line
