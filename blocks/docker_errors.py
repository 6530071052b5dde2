"""The errors of the Docker SDK, as its client raises them.

Prefect's collection puts a module in the place of `docker` that loads only when it is used. A part
of it that is imported first is then loaded twice, and no error is caught any more: hence the whole
before the part, and nobody imports `docker.errors` but this module.
"""

import docker  # type: ignore[import-untyped]

WHOLE = docker.APIClient  # loads it

from docker.errors import APIError, DockerException, NotFound  # type: ignore[import-untyped] # noqa: E402

__all__ = ["APIError", "DockerException", "NotFound"]
