"""``envWorkloadSignature``: the deployer's signature over both sections (``docs/formats/contract.md``).

base64 of RSASSA-PKCS1-v1_5 with SHA-256 over the value of ``workload`` immediately followed by that of ``env``, as
the exact strings that stand in the contract, UTF-8. The key to verify with is ``signingKey`` in ``env``: a PEM public
key or certificate, or base64 of either. A certificate bounds the life of the contract. Those who issued it may follow it
in the same text; then the chain must hold up to a root among them, and the contract ends with the first of them to end.
Common tools give the certificate alone: then its issuer is not known here, and only the certificate itself is checked.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casemate.contract.errors import KeyFileError, SignatureError
from casemate.contract.keys import first_block, kinds, load_public_key, pem_of, validity

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

    from casemate.certificates.chain import Link


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A ``signingKey``. A certificate (``pem``, first block) bounds the contract's life; a bare key does not.

    ``authority`` is the name of the root that was given with it and that it leads to; empty where none was given.
    """

    key: RSAPublicKey
    pem: bytes
    not_before: datetime | None = None
    not_after: datetime | None = None
    authority: str = ""

    @property
    def is_certificate(self) -> bool:
        """Whether the key came in a certificate, and so has a time and an issuer to check."""
        return self.not_after is not None


def read_signing_key(text: str) -> SigningKey:
    """Read a ``signingKey``; says nothing about trust in a certificate. Raises :class:`KeyFileError`."""
    pem = pem_of(text)
    key = load_public_key(pem)
    if kinds(pem)[0] not in ("CERTIFICATE", "X509 CERTIFICATE"):
        return SigningKey(key, pem)
    return SigningKey(key, pem, *validity(pem))


def trusted(key: SigningKey, now: datetime) -> SigningKey:
    """Return a signing key whose certificate is a signer's, with the bounds of its whole chain; bare keys as they are.

    Says nothing about those bounds: whether the time is inside of them is for the caller to ask. Raises
    :class:`KeyFileError`.
    """
    if not key.is_certificate:
        return key
    from casemate.certificates.chain import PLATFORM, certificates_of, signer_problems, verify_chain
    from casemate.certificates.errors import CertificateError

    if others := sorted(set(kinds(key.pem)) - {"CERTIFICATE", "X509 CERTIFICATE"}):
        raise KeyFileError(f"beside certificates stands something else: {', '.join(others)}", "give certificates only")
    try:
        leaf, *issuers = certificates_of(key.pem)
        if leaf.strip() != first_block(key.pem).strip():
            raise KeyFileError("the certificate is damaged")
        problems = signer_problems(leaf)
        links: tuple[Link, ...] = ()
        if issuers:
            chain = verify_chain(leaf, issuers, time=now)
            links = chain.links
            problems += [problem for problem in chain.problems if problem.id != "CERTIFICATE-TIME"]
    except CertificateError as error:
        raise KeyFileError(error.cause, error.cure) from None
    if problems:
        raise KeyFileError(problems[0].cause, problems[0].cure)
    if issuers and (len(links) != len(issuers) + 1 or any(link.how == PLATFORM for link in links)):
        raise KeyFileError("a certificate beside it is not of its chain", "give those only that lead to its root")
    return replace(
        key,
        not_before=max((link.not_before for link in links), default=key.not_before),
        not_after=min((link.not_after for link in links), default=key.not_after),
        authority=links[-1].name if links else "",
    )


def message(workload: str, env: str) -> bytes:
    """Return the bytes that are signed."""
    return (workload + env).encode()


def sign(workload: str, env: str, key: RSAPrivateKey) -> str:
    """Sign the exact strings of both sections; return one line of base64."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return base64.b64encode(key.sign(message(workload, env), PKCS1v15(), SHA256())).decode("ascii")


def verify(workload: str, env: str, signature: str, key: RSAPublicKey) -> None:
    """Return if the signature holds; raise :class:`SignatureError` if not. White space in the base64 is allowed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        if len(signature) > 8192:
            raise ValueError("too long")
        raw = base64.b64decode("".join(signature.split()), validate=True)
        key.verify(raw, message(workload, env), PKCS1v15(), SHA256())
    except (InvalidSignature, binascii.Error, ValueError):
        raise SignatureError(
            "envWorkloadSignature does not hold for these sections and this signingKey",
            "sign the sections again, exactly as they stand in the contract",
        ) from None
