"""Reads a stack file and the service files that it names; every mistake has its file and line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from policy.errors import BadInput
from policy.kubernetes import door_of
from policy.service_file import ServiceFile, environment_names
from policy.stack_file import Member, StackFile
from policy.waves import waves
from tasks.read import (
    configuration,
    explained,
    line_of,
    load_document,
    nearest,
    plain_values,
    read_all,
    read_service,
)


@dataclass(frozen=True)
class WantedStack:
    """What a stack file asks for in one environment."""

    file: Path
    stack: StackFile
    environment: str
    services: dict[str, tuple[Path, ServiceFile]]  # in the file's order

    @property
    def after(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(member.after) for name, member in self.stack.services.items()}


def is_stack_file(file: Path) -> bool:
    """Of several services? A file that cannot be read is none: whoever reads it says why."""
    try:
        document = load_document(file)
    except BadInput:
        return False
    return "stack" in document and "service" not in document


def stack_name(file: Path, content: str) -> str:
    """By what the file says, which is not here yet; '' when it cannot be told."""
    try:
        return str(load_document(file, content).get("stack") or "")
    except BadInput:
        return ""


def read_stack(file: Path, environment: str | None = None) -> WantedStack:
    """`environment` may be left out when each of its services has the same one alone.

    Raises BadInput with one line: file, line, key, what is wrong."""
    document = load_document(file)
    stack = _validated(document, file)
    files = _files(document, stack, file)
    environment = environment or _only_environment(file, files)
    services = {}
    for name, path in files.items():
        wanted, _ = read_service(path, environment)
        configuration(wanted, environment, path)
        if wanted.service != name:
            words = f"{path} is of {wanted.service}, not {name}"
            raise _mistake(document, file, ("services", name), words)
        services[name] = (path, wanted)
    _apart(document, file, environment, services)
    return WantedStack(file, stack, environment, services)


def read_stack_everywhere(file: Path) -> dict[str, WantedStack]:
    """In each environment that all its services have. Raises BadInput at the first mistake."""
    document = load_document(file)
    files = _files(document, _validated(document, file), file)
    everywhere = [list(read_all(path)) for path in files.values()]
    shared = [name for name in everywhere[0] if all(name in names for names in everywhere)]
    if not shared:
        raise BadInput(f"{file}: no environment is in all of its services: {_there(files)}")
    return {environment: read_stack(file, environment) for environment in shared}


def _validated(document: Any, file: Path) -> StackFile:
    try:
        stack = StackFile.model_validate(plain_values(document))
    except ValidationError as error:
        raise BadInput(explained(error, document, file, keys_beside=_keys_beside)) from None
    names = list(stack.services)
    for name, member in stack.services.items():
        for number, other in enumerate(member.after):
            if other not in names:
                words = f"there is no service {other}{nearest(other, names)}"
                raise _mistake(document, file, ("services", name, "after", number), words)
    try:
        waves({name: member.after for name, member in stack.services.items()})
    except ValueError as circle:
        first = str(circle).partition(" ")[0]
        words = f"a circle, so that none of them can begin: {circle}"
        raise _mistake(document, file, ("services", first, "after"), words) from None
    return stack


def _keys_beside(path: tuple[str | int, ...]) -> list[str]:
    within = path[0] == "services" and len(path) > 2
    return list(Member.model_fields if within else StackFile.model_fields)


def _files(document: Any, stack: StackFile, file: Path) -> dict[str, Path]:
    files = {}
    for name, member in stack.services.items():
        path = file.parent / member.file
        if not path.is_file():
            words = f"there is no file {path}"
            raise _mistake(document, file, ("services", name, "file"), words)
        files[name] = path
    return files


def _only_environment(file: Path, files: dict[str, Path]) -> str:
    found = {tuple(environment_names(load_document(path))) for path in files.values()}
    if len(found) != 1 or len(only := next(iter(found))) != 1:
        raise BadInput(f"{file}: name an environment by --env: {_there(files)}")
    return only[0]


def _there(files: dict[str, Path]) -> str:
    return "; ".join(
        f"{name} has {', '.join(environment_names(load_document(path)))}"
        for name, path in files.items()
    )


def _apart(
    document: Any, file: Path, environment: str, services: dict[str, tuple[Path, ServiceFile]]
) -> None:
    """No two of them may want the same requests; what other services have is looked at later."""
    taken: dict[tuple[str, str], str] = {}
    for name, (_, wanted) in services.items():
        there = wanted.kubernetes if wanted.platform == "kubernetes" else None
        if there is not None and there.gateway is None:
            continue  # no host at all
        host = wanted.route.host or f"{name}.{environment}.localhost"
        where = f"port {wanted.route.port}" if wanted.route.port else f"host {host.lower()}"
        door = str(door_of(there))
        if other := taken.get((door, where)):
            words = f"{where} is also that of {other}"
            raise _mistake(document, file, ("services", name), words)
        taken[door, where] = name


def _mistake(document: Any, file: Path, key: tuple[str | int, ...], words: str) -> BadInput:
    named = ".".join(map(str, key))
    return BadInput(f"{file}:{line_of(document, key)}: {named}: {words}")
