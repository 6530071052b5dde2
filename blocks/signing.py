"""Signs what we say, and tells whose signature something carries: DSSE envelopes, ed25519 keys.

secrets/signing-key.pem   the private key (PKCS8), or a link to where a secret is mounted
keys/<key id>.pem         public keys whose signatures count; old ones stay when a key is made anew
"""

import json
import os
from pathlib import Path
from typing import Any

from blocks.files import write_atomically
from policy.errors import BadInput, Refused, Unreachable

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PRIVATE_KEY = "signing-key.pem"


class Forged(Exception):
    """Why a signature does not count."""


class Keys:
    def __init__(self, secrets: Path, trusted: Path) -> None:
        self._private, self._trusted = secrets / PRIVATE_KEY, trusted

    def there(self) -> bool:
        return self._private.exists()

    def make(self, *, linked_to: Path | None = None) -> str:
        """Sign with a new key from now on, or with the one in this file. -> its id. What was signed
        before still counts: its public key stays among the trusted. Raises BadInput."""
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if linked_to is None:
            text = Ed25519PrivateKey.generate().private_bytes(
                form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
            )
            write_atomically(self._private, text.decode(), 0o600)
        else:
            _private_key(linked_to.absolute())
            beside = self._private.with_suffix(".new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(linked_to.absolute())
            os.replace(beside, self._private)
        return self.trust_own()

    def check(self) -> None:
        """Raises Unreachable when there is no key, or one whose signature does not count."""
        key = self._signer().public_key.keyid
        if not (self._trusted / f"{key}.pem").exists():
            raise Unreachable(
                f"the signing key {key} is not among the trusted in {self._trusted}: it was "
                "removed there, or another key was mounted; nothing was built. Make one: dafnck "
                "keygen; take one that is mounted: dafnck keygen --file FILE"
            )

    def trust_own(self) -> str:
        """Have the public half of the key among the trusted. -> its id"""
        from cryptography.hazmat.primitives import serialization as form

        key = self._signer().public_key
        public = _private_key(self._private).public_key()
        text = public.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        write_atomically(self._trusted / f"{key.keyid}.pem", text.decode())
        return str(key.keyid)

    def sign(self, payload: bytes) -> str:
        """-> a DSSE envelope, as JSON. Raises Unreachable when there is no key."""
        from securesystemslib.dsse import Envelope

        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(self._signer())
        return json.dumps(envelope.to_dict()) + "\n"

    def verify(self, envelope: str) -> tuple[bytes, str]:
        """-> what was signed, and the id of the trusted key that signed it. Raises Forged."""
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError

        try:
            read = Envelope.from_dict(json.loads(envelope))
            told = ", ".join(sorted(signature.keyid for signature in read.signatures.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Forged(f"it is no DSSE envelope ({type(error).__name__}: {error})") from None
        if read.payload_type != PAYLOAD_TYPE:
            raise Forged(f"its payload is {read.payload_type!r}, not {PAYLOAD_TYPE}")
        for path in sorted(self._trusted.glob("*.pem")):
            try:
                key = _public_key(path)
            except (ValueError, OSError) as error:
                raise Refused(f"{path} is no public key ({error}); remove or mend it") from None
            try:
                read.verify([key], 1)
            except VerificationError:
                continue
            return bytes(read.payload), str(key.keyid)
        raise Forged(f"no key of {self._trusted} made its signature (it names {told or 'no key'})")

    def _signer(self) -> Any:
        from securesystemslib.signer import CryptoSigner

        return CryptoSigner(_private_key(self._private))


def _private_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise Unreachable(
            f"the signing key {path} cannot be read ({error.strerror}); make one: dafnck keygen"
        ) from None
    except (ValueError, TypeError) as error:
        # What the file holds must not be told.
        raise BadInput(f"{path} holds no private key in PEM ({type(error).__name__})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path} holds another kind of key than ed25519")
    return key


def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
