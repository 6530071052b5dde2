"""What things are called on Kubernetes: one place, for who writes them and who finds them again."""

from policy.release import Release

# Labels. `MANAGED` marks everything that is ours.
MANAGED = {"app.kubernetes.io/managed-by": "dafnck"}
RELEASE, SERVICE, ENVIRONMENT = "dafnck/release", "dafnck/service", "dafnck/environment"
# Of the team's own manifests that are applied with a release.
EXTRA = "dafnck/extra"
# Annotations.
STATE = "dafnck/state"  # of a router: what it was told, as JSON
CONTAINER = "app"
PORT_NAME, SERVICE_PORT = "http", 80
DEFAULT_PORT = 8080  # inside, of a command that takes {port}


def own_labels(service: str, environment: str) -> dict[str, str]:
    """Of everything that belongs to a service in an environment; also the selector to find it."""
    return {**MANAGED, SERVICE: service, ENVIRONMENT: environment}


def release_labels(release: Release) -> dict[str, str]:
    """Of everything that belongs to one release."""
    return own_labels(release.service, release.environment) | {RELEASE: release.id}


def shared_name(service: str, environment: str) -> str:
    """Of the Service, the ServiceAccount and the HTTPRoute that all releases share."""
    return f"{service}-{environment}"


def pair_label(release_id: str) -> tuple[str, str]:
    """On the pods of this release and of the one that follows it: a Service without a gateway in
    front selects the two together by it."""
    return f"pair.dafnck/{release_id}", "true"


def container_port(release: Release) -> int:
    return release.run.port or DEFAULT_PORT
