"""Kubernetes' own schema, without a cluster: fields and types, as its client has them."""

from typing import Any

import kubernetes.client as models
from pydantic import ValidationError


def mistakes(body: dict[str, Any]) -> list[str]:
    """What a strict API server would say of this object; empty when nothing is wrong."""
    group, _, version = body["apiVersion"].rpartition("/")
    model = getattr(models, f"{version.capitalize()}{body['kind']}", None)
    if model is None:
        return [f"{group} has no {body['kind']}"]
    try:
        model.model_validate(body)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []
