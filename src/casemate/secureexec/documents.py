"""Verifies host key documents: who may say that a key belongs to a machine with Secure Execution.

    chains = verify([document, …], authorities, crls, time=now)      # raises where anything does not hold

Whoever gets a document past this reads every secret of the image. The rules, those of the tools for IBM Z:

- The document was signed with a **host-key signing key**, and its issuer is the subject of that key's certificate: part by
  part, in any order, and with the two localities that IBM's have had. Which certificate that is, its subject says: country,
  state, locality, organization and name of IBM, and a unit that ends in ``Key Signing Service``; nothing else may be in it.
  Or the caller named it (``signing``), for an authority of his own. There may be several.
- A certificate that the public authority above gave to anyone else is *not* a host key document, though its chain holds.
- The signing key's certificate chains to a root that the caller gave. Dates hold, of every certificate.
- Revocation lists say of every certificate but the root that it was not revoked, unless the caller does without. A list
  that belongs to none of the documents' issuers is an error: it was given for something.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from casemate.certificates.chain import NOT_REVOKED, Chain, certificates_of, verify_chain
from casemate.secureexec.errors import HostKeyError

_IBM = "International Business Machines Corporation"
_SUBJECT = {
    NameOID.COUNTRY_NAME: ("US",),
    NameOID.STATE_OR_PROVINCE_NAME: ("New York",),
    NameOID.LOCALITY_NAME: ("Poughkeepsie", "Armonk"),
    NameOID.ORGANIZATION_NAME: (_IBM,),
    NameOID.COMMON_NAME: (_IBM,),
}
_UNIT = "Key Signing Service"


def verify(
    documents: Sequence[bytes],
    authorities: Sequence[bytes],
    crls: Sequence[bytes] = (),
    *,
    time: datetime.datetime,
    signing: Sequence[bytes] = (),
    revocation: bool = True,
) -> list[Chain]:
    """Return the chains of host key documents (PEM or DER, one certificate each), all of which hold.

    ``authorities``: certificates up to the root, the signing keys' among them; a file may hold several. ``signing``:
    signing keys' certificates by whatever name. ``revocation``: whether lists are asked for.
    Raises :class:`HostKeyError`, or :class:`~casemate.certificates.errors.CertificateError`.
    """
    chains = [verify_chain(document, [*signing, *authorities], crls, time=time) for document in documents]
    for chain in chains:
        for problem in (each for link in chain.links for each in link.problems):
            raise problem
        _require_signing_key(chain, authorities, signing)
        if revocation:
            _require_lists(chain)
    for problem in chains[0].problems if chains else ():  # of lists that this chain did not need
        if all(problem.cause in {other.cause for other in chain.problems} for chain in chains):
            raise problem
    return chains


def _require_signing_key(chain: Chain, authorities: Sequence[bytes], signing: Sequence[bytes]) -> None:
    issuer = chain.links[1].fingerprint if len(chain.links) > 1 else ""
    if issuer in _certificates(signing):
        return
    found = _certificates(authorities).get(issuer)
    if len(chain.links) < 3 or found is None or not is_signing_key(found.subject):
        raise HostKeyError(
            f"{chain.links[0].name}: not signed by a host-key signing key, but by {chain.links[0].signed_by}",
            "give the signing key's certificate; one of your own authority with --signing-key",
        )


def _require_lists(chain: Chain) -> None:
    for link in chain.links[:-1]:
        if link.revocation != NOT_REVOKED:
            raise HostKeyError(
                f"{link.name}: no revocation list of its issuer says that it is still good",
                f"get the list of {link.signed_by} and give it with --crl",
            )


def is_signing_key(subject: x509.Name) -> bool:
    """Whether a subject is that of IBM's host-key signing keys: six parts, each once, in any order."""
    parts = {part.oid: part.value for part in subject}
    unit = parts.pop(NameOID.ORGANIZATIONAL_UNIT_NAME, "")
    return (
        len(list(subject)) == len(_SUBJECT) + 1
        and parts.keys() == _SUBJECT.keys()
        and all(parts[oid] in values for oid, values in _SUBJECT.items())
        and str(unit).endswith(_UNIT)
    )


def _certificates(bundles: Sequence[bytes]) -> dict[str, x509.Certificate]:
    """Return certificates, which were read before, by fingerprint."""
    found = {}
    for data in (one for bundle in bundles for one in certificates_of(bundle)):
        pem = b"-----BEGIN " in data
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        found[hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()] = certificate
    return found
