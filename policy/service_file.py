"""What a team may ask for in `dafnck.yaml`, version 1: the keys, their defaults, their limits.

A file is read once for each environment: the `environments.<name>` part is laid over the rest,
mapping by mapping, lists and scalars replaced. Reading files and naming lines is `tasks/read.py`'s.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from policy.backup import Backup
from policy.freeze import read_time_zone
from policy.freeze_window import FreezeText
from policy.gates import Gates
from policy.image import ImageBuild
from policy.judge import Judge
from policy.kubernetes import Kubernetes, secret_key
from policy.notice import Notify
from policy.part import Command, CookieValue, HeaderValue, Part, in_arguments
from policy.pipeline import Scans, SmokeTest, Suite
from policy.quantities import Bytes, Percent, Seconds, in_words
from policy.rotation import Rotation
from policy.secrets import read_name, read_reference

DEFAULT_ENVIRONMENT = "local"

PlatformName = Literal["local", "docker", "kubernetes"]

# A release is called <service>-<environment>-<number>: without a dash in the environment no two
# can get the same name, and with these lengths every platform takes it (63 characters).
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$")]
EnvironmentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,19}$")]


class PythonBuild(Part):
    """A Python application; its virtual environment becomes part of the artifact."""

    requirements: str | None = Field(
        None,
        description="requirements file or pylock.toml, installed into the artifact; hashes in it "
        "are held to",
    )
    project: str | None = Field(
        None,
        description="directory of a pyproject.toml, installed; with a uv.lock beside it, what it "
        "needs is what that says",
    )
    version: str | None = Field(
        None, pattern=r"^3\.\d+$", description="Python version; default: the one that runs dafnck"
    )

    @model_validator(mode="after")
    def _one_at_least(self) -> "PythonBuild":
        if not (self.requirements or self.project):
            raise ValueError("needs requirements or project")
        return self


class GitSource(Part):
    """A source of somebody else's, or of another repository than the service file's."""

    url: str = Field(min_length=1, description="of the repository, without a password or token")
    commit: str = Field(
        pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$", description="the whole id of the commit"
    )


class Build(Part):
    """How the artifact comes about. The source and this section decide its name, so the same is
    built once; what unpinned requirements resolve to is not part of that: pin them."""

    source: str = Field(".", description="directory of the source, from the service file's place")
    git: GitSource | None = Field(
        None, description="a clean checkout instead; `source` is a directory in it"
    )
    python: PythonBuild | None = Field(None, description="a Python application")
    image: ImageBuild | None = Field(
        None,
        description="a container image, for `platform: docker` or `kubernetes` (docker.md)",
    )
    command: Command | None = Field(
        None, description="a command that fills the directory {out}; runs in a copy of the source"
    )
    within: Seconds = Field(600.0, description="time limit")

    @model_validator(mode="after")
    def _one_way(self) -> "Build":
        if [self.python, self.image, self.command].count(None) != 2:
            raise ValueError("needs exactly one of python, image, command")
        if self.command is not None and "{out}" not in str(self.command):
            raise ValueError("command must name {out}, the directory that it fills")
        return self


class Health(Part):
    """When a replica counts as ready: so many good answers in a row."""

    path: str | None = Field(None, pattern=r"^/\S*$", description="asked by GET; 2xx is healthy")
    command: Command | None = Field(
        None, description="instead: a command that exits 0; PORT is in its environment"
    )
    healthcheck: Literal["image"] | None = Field(
        None, description="instead, with `platform: docker`: `image`, the image's own HEALTHCHECK"
    )
    successes: int = Field(3, ge=1, le=100, description="good answers in a row to be ready")
    interval: Seconds = Field(0.2, description="pause between two questions")
    timeout: Seconds = Field(2.0, gt=0, description="no answer by then is a bad one")

    @field_validator("command")
    @classmethod
    def _readable(cls, command: Command | None) -> Command | None:
        return None if command is None else in_arguments(command)

    @model_validator(mode="after")
    def _one_way(self) -> "Health":
        if [self.path, self.command, self.healthcheck].count(None) != 2:
            raise ValueError("needs exactly one of path, command, healthcheck")
        return self


def _health(value: Any) -> Any:
    if isinstance(value, str):
        if not value.startswith("/"):
            raise ValueError(f"{value!r} is not a path; write /healthz")
        return {"path": value}
    return value


HealthCheck = Annotated[
    Health,
    BeforeValidator(_health),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^/"},
                Health.model_json_schema(),
            ],
            "description": "a path, or a mapping",
        }
    ),
]


class Limits(Part):
    """What one process of a replica may use, by rlimits; in a container, what all of them may."""

    memory: Bytes | None = Field(
        None,
        description="data segment of each process (RLIMIT_DATA); of a container all its memory, "
        "1G when it is left out",
    )
    open_files: int | None = Field(None, ge=16, description="RLIMIT_NOFILE")
    processes: int | None = Field(
        None,
        ge=1,
        description="RLIMIT_NPROC (not enforced for root); of a container all its processes and "
        "threads, 512 when it is left out",
    )


class Run(Part):
    """How one replica runs."""

    command: Command | None = Field(
        None,
        description="the command; {port} is the port that it listens on. Of an image: instead of "
        "its own CMD; else required",
    )
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="of an image: the port that it listens on, also its PORT; 8080 when the "
        "command takes {port}",
    )
    health: HealthCheck = Field(description="how to see that a replica is ready")
    replicas: int = Field(1, ge=1, le=100, description="how many processes")
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict,
        description="environment variables, with {port}; besides these a replica gets PORT, "
        "DAFNCK_RELEASE, DAFNCK_VERSION, PATH, HOME, LANG, TZ and nothing else",
    )
    files: dict[str, str] = Field(
        default_factory=dict,
        description="configuration files: path in the working directory: path beside this file",
    )
    start: Seconds = Field(30.0, gt=0, description="a replica must be ready by then")
    drain: Seconds = Field(
        30.0, description="how long old connections may last after traffic has moved"
    )
    grace: Seconds = Field(10.0, description="from SIGTERM to SIGKILL")
    limits: Limits = Field(default_factory=Limits, description="resource limits")

    writable: list[Annotated[str, Field(pattern=r"^/[^:,]+$")]] = Field(
        default_factory=list,
        description="of an image: directories besides /tmp that it may write; in memory, empty at "
        "each start",
    )
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict,
        description="environment variables whose values are secret: secret://name/key, env://NAME, "
        "prefect://block, aws://id#key (secrets.md); with `platform: kubernetes` secret://name/key "
        "of a Secret of the namespace. Each release keeps the values that it began with",
    )

    @field_validator("command")
    @classmethod
    def _readable(cls, command: Command | None) -> Command | None:
        return None if command is None else in_arguments(command)

    @model_validator(mode="after")
    def _takes_a_port(self) -> "Run":
        if self.command is not None and self.port is None and "{port}" not in str(self.command):
            raise ValueError("command: must contain {port}, the port that a replica listens on")
        return self

    @field_validator("env", mode="before")
    @classmethod
    def _plain_values(cls, env: Any) -> Any:
        if isinstance(env, Mapping):
            for key, value in env.items():
                if isinstance(value, bool) or value is None or isinstance(value, dict | list):
                    raise ValueError(f"{key}: write the value as text, in quotes")
                if "\0" in str(value):
                    raise ValueError(f"{key}: holds a NUL character")
            return {key: str(value) for key, value in env.items()}
        return env

    @field_validator("secrets")
    @classmethod
    def _named(cls, secrets: dict[str, str]) -> dict[str, str]:
        for name, reference in secrets.items():
            try:
                read_reference(reference)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return secrets

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for target in files:
            if target.startswith("/") or ".." in target.split("/"):
                raise ValueError(f"{target}: must stay inside the working directory")
        return files


class Route(Part):
    """Where requests for the service come in."""

    host: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.-]+$",
        description="Host header, where there is no port; "
        "default: <service>.<environment>.localhost",
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="a port of the router for this service alone"
    )


class Cohort(Part):
    """Requests that get the new release from the first step on (A/B)."""

    header: HeaderValue | None = Field(None, description="requests with this header")
    cookie: CookieValue | None = Field(None, description="requests with this cookie")

    @model_validator(mode="after")
    def _one_way(self) -> "Cohort":
        if (self.header is None) == (self.cookie is None):
            raise ValueError("needs exactly one of header, cookie")
        return self


class Rollout(Part):
    """How a new release takes over from the one that runs."""

    strategy: Literal["blue-green", "canary", "rolling", "recreate"] = Field(
        "blue-green", description="blue-green, canary, rolling or recreate"
    )
    steps: Annotated[list[Percent], Field(min_length=1)] | None = Field(
        None, description="canary: rising shares, up to 100%; default: 5%, 25%, 50%, 100%"
    )
    bake: Seconds = Field(
        0.0,
        description="how long each step is watched; a sequential judge may end it earlier, a "
        "threshold judge needs one interval at least",
    )
    within: Seconds = Field(
        3600.0, gt=0, description="from the end of the build to 100%; then it is rolled back"
    )
    approve: bool = Field(
        False, description="wait for a person before 100% (not for a first release)"
    )
    judge: Judge | None = Field(None, description="compares the new release with the stable one")
    cohort: Cohort | None = Field(None, description="who gets the new release first")
    sticky: bool = Field(False, description="a client stays with its release, by cookie")
    preview: HeaderValue | None = Field(
        None,
        description="header that reaches the new release before it has traffic; "
        "default: X-Dafnck-Release: <release id>",
    )
    keep: int = Field(3, ge=1, le=100, description="old releases kept for instant rollback")
    freeze: list[FreezeText] = Field(
        default_factory=list, description="windows in which no release may begin"
    )
    time_zone: Annotated[str, BeforeValidator(read_time_zone)] = Field(
        "UTC", description="of the windows: Europe/Berlin"
    )
    freeze_at: Annotated[Percent, Field(ge=1)] | None = Field(
        None,
        description="with `migration: contract`: from this share on it freezes instead of rolling "
        "back; default: as soon as it has traffic",
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> "Rollout":
        if self.strategy != "canary":
            if self.steps is not None:
                raise ValueError(f"steps: only canary has steps, not {self.strategy}")
            if self.strategy == "recreate" and self.approve:
                raise ValueError("approve: recreate stops the old release first; nothing to hold")
            return self
        steps = self.steps or [5, 25, 50, 100]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"steps: must rise, not {', '.join(f'{s}%' for s in steps)}")
        if steps[0] == 0:
            raise ValueError("steps: 0% is no step; use preview to reach it without traffic")
        if steps[-1] != 100:
            raise ValueError(f"steps: must end at 100%, not {steps[-1]}%")
        return self

    @model_validator(mode="after")
    def _judge_has_time(self) -> "Rollout":
        threshold = self.judge is not None and self.judge.method == "threshold"
        if self.judge and threshold and self.bake < self.judge.interval:
            raise ValueError(
                f"bake: {self.bake:g}s is shorter than one interval of the judge, "
                f"{self.judge.interval:g}s"
            )
        if len(self.shares) * self.bake >= self.within:
            raise ValueError(
                f"within: {in_words(self.within)} leaves no time to bake {len(self.shares)} times "
                f"{in_words(self.bake)}"
            )
        return self

    @property
    def shares(self) -> list[int]:
        return (self.steps or [5, 25, 50, 100]) if self.strategy == "canary" else [100]


def _optional(model: type[Part]) -> type[BaseModel]:
    """The same keys, none of them required and no rule across keys: an override."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            kind = _optional(kind)
        metadata = tuple(field.metadata)
        if metadata:
            kind = Annotated[(kind, *metadata)]  # type: ignore[assignment]
        fields[key] = (kind | None, Field(None, description=field.description))  # type: ignore[operator]
    return create_model(
        f"{model.__name__}Override", __config__=model.model_config, __doc__=model.__doc__, **fields
    )


class Override(Part):
    """What is different in one environment."""

    platform: PlatformName | None = Field(None, description="where it runs")
    build: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    route: Mapping[str, Any] | None = None
    tests: list[Any] | None = None
    smoke: list[Any] | None = None
    scan: Mapping[str, Any] | None = None
    gates: Mapping[str, Any] | None = None
    rollout: Mapping[str, Any] | None = None
    kubernetes: Mapping[str, Any] | None = None
    notify: Mapping[str, Any] | None = None
    backup: Mapping[str, Any] | None = None
    rotate: Mapping[str, Any] | None = None


class ServiceFile(Part):
    """A service as its team describes it."""

    version: Literal[1] = Field(description="version of this format")
    service: Name = Field(description="name of the service: lower case, digits, dashes")
    platform: PlatformName = Field(
        "local",
        description="where it runs: local (processes), docker (containers) or kubernetes (pods)",
    )
    kubernetes: Kubernetes | None = Field(
        None, description="where and how on Kubernetes (kubernetes.md)"
    )
    build: Build = Field(description="how the artifact is built")
    run: Run = Field(description="how a replica runs")
    route: Route = Field(default_factory=Route, description="where requests come in")
    tests: list[Suite] = Field(
        default_factory=list, description="what is run on the artifact before it is released"
    )
    smoke: list[SmokeTest] = Field(
        default_factory=list, description="what is asked of it before and when it has the traffic"
    )
    scan: Scans | None = Field(None, description="what looks for danger in it; default: nothing")
    gates: Gates = Field(
        default_factory=Gates, description="what it must show, before it is released"
    )
    rollout: Rollout = Field(default_factory=Rollout, description="how a release takes over")
    migration: Literal["expand", "contract"] | None = Field(
        None,
        description="what this release does to its database: expand (the old release still works "
        "with it) or contract (it does not: no automatic way back, see freezes-and-migrations.md)",
    )
    notify: Notify | None = Field(None, description="who hears of a release")
    backup: Backup | None = Field(None, description="what is backed up every night (backups.md)")
    rotate: dict[str, Rotation] = Field(
        default_factory=dict,
        description="secrets of this stack that turn over by themselves, name/key (secrets.md)",
    )
    environments: dict[EnvironmentName, Override] = Field(
        default_factory=dict, description="what is different where"
    )

    @model_validator(mode="after")
    def _gates_have_something_to_judge(self) -> "ServiceFile":
        for name in ("findings", "secrets", "licenses"):
            if name in self.gates.model_fields_set and self.scan is None:
                raise ValueError(f"gates: {name}: nothing is scanned; add scan: {{}}")
        if "compliance" in self.gates.model_fields_set and not (self.scan and self.scan.compliance):
            raise ValueError("gates: compliance: no report is asked for; add scan: {compliance: …}")
        tools = {tool.name for tool in self.scan.tools} if self.scan else set()
        if self.gates.lint and not tools:
            raise ValueError("gates: lint: there are no linters; add scan: {tools: …}")
        if self.gates.lint and (unknown := {*self.gates.lint.tools} - tools):
            raise ValueError(
                f"gates: lint: {', '.join(sorted(unknown))} is none of scan.tools: "
                f"{', '.join(sorted(tools))}"
            )
        if "tests" in self.gates.model_fields_set and not self.tests:
            raise ValueError("gates: tests: there are none; add tests")
        return self

    @model_validator(mode="after")
    def _fits_the_platform(self) -> "ServiceFile":
        if both := sorted(set(self.run.env) & set(self.run.secrets)):
            raise ValueError(f"run.secrets: {both[0]} is in run.env as well")
        if self.platform == "kubernetes":
            self._fits_kubernetes()
        if self.platform in ("docker", "kubernetes"):
            if self.build.image is None:
                raise ValueError(f"build: platform {self.platform} runs images; needs image")
            if self.run.command is None and self.run.port is None:
                raise ValueError("run.port: is missing: the port that the image listens on")
            if (memory := self.run.limits.memory) is not None and memory < 6 * 2**20:
                raise ValueError("run.limits.memory: a container needs 6M at least")
            for number, suite in enumerate(self.tests):
                if suite.requirements is not None:
                    words = "a suite runs in the image as it ships: install them there"
                    raise ValueError(f"tests.{number}.requirements: {words}")
            return self
        if self.build.image is not None:
            raise ValueError("build.image: needs platform: docker or kubernetes")
        if self.run.command is None:
            raise ValueError("run.command: is missing")
        if self.run.port is not None:
            raise ValueError(
                "run.port: is of images (platform: docker or kubernetes); a process gets a port"
            )
        if self.run.writable:
            raise ValueError("run.writable: is of images (platform: docker or kubernetes)")
        if self.run.health.healthcheck is not None:
            raise ValueError("run.health.healthcheck: needs platform: docker")
        return self

    def _fits_kubernetes(self) -> None:
        there = self.kubernetes
        if there is None:
            raise ValueError("platform: kubernetes needs kubernetes: {namespace: …}, where it runs")
        image = self.build.image
        if image is not None and image.push is None and image.reference is None:
            raise ValueError("build.image.push: is missing: where the cluster pulls the image from")
        if self.route.port is not None:
            raise ValueError("route.port: a Gateway has ports of its own; use host")
        if self.run.health.healthcheck is not None:
            raise ValueError(
                "run.health.healthcheck: Kubernetes does not ask it; use path, command"
            )
        if self.run.limits.open_files is not None or self.run.limits.processes is not None:
            raise ValueError("run.limits: Kubernetes limits memory alone, and kubernetes.cpu_limit")
        if self.rollout.sticky:
            raise ValueError("rollout.sticky: Gateways do not agree on it yet")
        if there.gateway is None:
            if self.rollout.cohort:
                raise ValueError("rollout.cohort: a Service alone cannot; needs kubernetes.gateway")
            if self.rollout.preview:
                raise ValueError(
                    "rollout.preview: a Service alone cannot; needs kubernetes.gateway"
                )
        for name, reference in self.run.secrets.items():
            try:
                secret_key(reference)
            except ValueError as error:
                raise ValueError(f"run.secrets: {name}: {error}") from None
        if self.rotate:
            raise ValueError("rotate: Kubernetes Secrets are not rotated by dafnck yet")
        if self.rollout.judge is not None and there.metrics is None:
            raise ValueError("rollout.judge: has nothing to read; needs kubernetes.metrics")

    def with_image(self, reference: str) -> "ServiceFile":
        """The same, of this image, whatever it is built from otherwise. Raises ValueError."""
        if self.build.image is None:
            raise ValueError("build.image: the service is not made of an image")
        build = self.build.model_copy(
            update={"image": ImageBuild.model_validate({"reference": reference})}
        )
        return self.model_copy(update={"build": build})

    @property
    def proof_is_asked_for(self) -> bool:
        return bool(self.tests or self.scan or self.gates != Gates())

    @field_validator("rotate")
    @classmethod
    def _names_of_secrets(cls, rotate: dict[str, Rotation]) -> dict[str, Rotation]:
        for name in rotate:
            if read_name(name) != name:
                raise ValueError(f"{name}: write {read_name(name)}")
        return rotate

    @field_validator("tests")
    @classmethod
    def _different_names(cls, suites: list[Suite]) -> list[Suite]:
        names = [suite.name for suite in suites]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two suites have the name {name}")
        return suites

    @field_validator("version", mode="before")
    @classmethod
    def _known_version(cls, version: Any, info: ValidationInfo) -> Any:
        if isinstance(version, int) and not isinstance(version, bool) and version > 1:
            raise ValueError(f"{version} is newer than this dafnck, which reads version 1")
        return version


def environment_names(document: Mapping[str, Any]) -> list[str]:
    named = document.get("environments")
    return list(named) if isinstance(named, Mapping) and named else [DEFAULT_ENVIRONMENT]


def laid_over(document: Mapping[str, Any], environment: str) -> dict[str, Any]:
    """The document as it reads in one environment; mappings merge, everything else replaces."""

    def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(below)
        for key, value in above.items():
            under = merged.get(key)
            both = isinstance(value, Mapping) and isinstance(under, Mapping)
            merged[key] = merge(under, value) if both else value  # type: ignore[arg-type]
        return merged

    base = {key: value for key, value in document.items() if key != "environments"}
    environments = document.get("environments")
    above = environments.get(environment) if isinstance(environments, Mapping) else None
    if not isinstance(above, Mapping):
        return base
    merged = merge(base, above)
    rollout = above.get("rollout")
    if isinstance(rollout, Mapping) and "steps" not in rollout:
        if rollout.get("strategy", "canary") != "canary" and isinstance(merged["rollout"], dict):
            # The steps below belong to the canary that this environment does not want.
            merged["rollout"].pop("steps", None)
    return merged


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors. Overrides take the same keys, none required."""
    schema = ServiceFile.model_json_schema()
    parts: dict[str, type[Part]] = {
        "build": Build,
        "run": Run,
        "route": Route,
        "scan": Scans,
        "gates": Gates,
        "rollout": Rollout,
        "kubernetes": Kubernetes,
        "notify": Notify,
        "backup": Backup,
    }
    for key, part in parts.items():
        override = _optional(part).model_json_schema()
        schema["$defs"].update(override.pop("$defs", {}))
        schema["$defs"][override["title"]] = override
        schema["$defs"]["Override"]["properties"][key] = {"$ref": f"#/$defs/{override['title']}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dafnck.yaml, version 1",
        **{key: value for key, value in schema.items() if key != "title"},
    }
