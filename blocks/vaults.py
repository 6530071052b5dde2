"""Where backups lie.

    s3://bucket/prefix?endpoint=http://127.0.0.1:8333    without endpoint: AWS
    file:///mnt/backup

Credentials are boto3's own (environment, profile, instance role); for the store of the local stack
they come from a file.
"""

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from blocks.folder_vault import FolderVault
from blocks.ports import Vault
from blocks.s3_vault import S3Vault
from policy.errors import BadInput

__all__ = ["FolderVault", "S3Vault", "vault"]


def vault(url: str, credentials: Path | None = None) -> Vault:
    """`credentials`: file of the local store's keys. Raises BadInput."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        return FolderVault(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        endpoint = next(iter(parse_qs(parts.query).get("endpoint", [])), None)
        return S3Vault(parts.netloc, parts.path.strip("/"), endpoint, credentials)
    raise BadInput(f"{url}: write s3://bucket/prefix?endpoint=… or file:///folder")
