"""The secrets of dafnck on Kubernetes: random, made where they are missing, never changed."""

import base64
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from blocks.kube_api import SECRETS, Conflict, Kind, KubeApi, Object
from blocks.signing import PRIVATE_KEY, Keys
from policy.errors import BadInput, Refused

CLAIMS = Kind("v1", "persistentvolumeclaims")
PREFECT, DATABASE = "dafnck-prefect", "dafnck-database"
SIGNING, POSTGRES = "dafnck-signing", "dafnck-postgres"
CLAIM = "data-postgres-0"


def have_secrets(api: KubeApi, namespace: str, *, own_database: bool) -> list[str]:
    """-> which were made. Raises BadInput when the URLs of a database are yours to give, Refused
    when the passwords of the database that is there are gone."""
    made = []
    if own_database:
        made += _of_postgres(api, namespace)
    elif api.get(SECRETS, namespace, DATABASE) is None:
        raise BadInput(
            f"there is no Secret {DATABASE} in {namespace}, so the database is not known. Make it: "
            f"kubectl -n {namespace} create secret generic {DATABASE} --from-env-file=FILE, where "
            "the two lines of FILE are prefect-url=postgresql+asyncpg://USER:PASSWORD@HOST/prefect "
            "and ledger-url=postgresql+psycopg://USER:PASSWORD@HOST/dafnck"
        )
    made += _made(api, namespace, PREFECT, {"auth": f"dafnck:{_password()}"})
    if api.get(SECRETS, namespace, SIGNING) is None:
        made += _made(api, namespace, SIGNING, {PRIVATE_KEY: _signing_key()})
    return made


def _of_postgres(api: KubeApi, namespace: str) -> list[str]:
    made: list[str] = []
    held = api.get(SECRETS, namespace, POSTGRES)
    if held is None:
        for kind, name in ((CLAIMS, CLAIM), (SECRETS, DATABASE)):
            if api.get(kind, namespace, name) is not None:
                raise Refused(
                    f"{namespace} has {kind.plural} {name}, but no Secret {POSTGRES} with the "
                    "passwords of that database; nothing was changed. Put it back from where you "
                    f"keep it, or, to begin anew without its records: kubectl -n {namespace} "
                    f"delete {kind.plural} {name}"
                )
        names = ("superuser-password", "prefect-password", "ledger-password")
        made += _made(api, namespace, POSTGRES, {name: _password() for name in names})
        held = api.get(SECRETS, namespace, POSTGRES)
    if api.get(SECRETS, namespace, DATABASE) is None:
        assert held is not None
        at = "postgres:5432"
        prefect, ledger = (
            quote(_value(held, f"{of}-password", namespace), safe="")
            for of in ("prefect", "ledger")
        )
        urls = {
            "prefect-url": f"postgresql+asyncpg://prefect:{prefect}@{at}/prefect",
            "ledger-url": f"postgresql+psycopg://dafnck:{ledger}@{at}/dafnck",
        }
        made += _made(api, namespace, DATABASE, urls)
    return made


def _value(held: Object, key: str, namespace: str) -> str:
    try:
        return base64.b64decode(held["data"][key], validate=True).decode()
    except (KeyError, TypeError, ValueError):  # made by hand
        name = held["metadata"]["name"]
        raise BadInput(
            f"the Secret {name} in {namespace} has no {key}, or none that is text; add it: the "
            "password that the database has for it"
        ) from None


def _made(api: KubeApi, namespace: str, name: str, values: dict[str, str]) -> list[str]:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "dafnck"},
        },
        "type": "Opaque",
        "stringData": values,
    }
    try:
        api.create(SECRETS, namespace, body)
    except Conflict:
        return []  # it is there: it stays as it is
    return [name]


def _password() -> str:
    return secrets.token_urlsafe(24)  # safe in a URL too


def _signing_key() -> str:
    with TemporaryDirectory(prefix="dafnck-") as folder:  # 0700
        Keys(Path(folder), Path(folder) / "keys").make()
        return (Path(folder) / PRIVATE_KEY).read_text()
