"""The Kubernetes cluster that a service file names: by a kubeconfig, the pod that this runs in, or
a credentials block of Prefect."""

import json
import logging

from blocks.kube_api import KubeApi, connect
from policy.errors import NotAllowed
from policy.kubernetes import Kubernetes

log = logging.getLogger("dafnck")

_loaded: dict[str, tuple[str, str | None]] = {}  # block -> kubeconfig as JSON, context


def cluster_of(there: Kubernetes) -> KubeApi:
    """Raises NotAllowed without usable credentials. Asks the cluster nothing."""
    if there.credentials is None:
        return connect(there.context)
    config, context = _block(there.credentials)
    return connect(context, config)


def _block(name: str) -> tuple[str, str | None]:
    """As Prefect holds it now; as it was last known here when Prefect does not answer: traffic must
    be able to go back without it."""
    from prefect_kubernetes.credentials import (  # type: ignore[import-untyped]
        KubernetesCredentials,
    )

    try:
        block = KubernetesCredentials.load(name, _sync=True)
    except Exception as error:  # of Prefect, httpx, pydantic: whatever keeps it from us
        if name in _loaded:
            log.warning("the block %s could not be read, its last content is used", name)
            return _loaded[name]
        raise NotAllowed(
            f"kubernetes.credentials: the block kubernetes-credentials/{name} cannot be loaded "
            f"({type(error).__name__}); create it in Prefect's UI or name a context. Nothing was "
            "changed"
        ) from None
    if block.cluster_config is None:
        raise NotAllowed(
            f"kubernetes.credentials: the block {name} holds no kubeconfig; nothing was changed"
        )
    config = block.cluster_config
    _loaded[name] = json.dumps(config.config), config.context_name
    return _loaded[name]
