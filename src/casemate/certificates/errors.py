"""Errors of certificates: ``CERTIFICATE`` where one can't be read, ``CERTIFICATE-…`` for what does not hold.

``-SIGNATURE -ISSUER -TIME -AUTHORITY -ALGORITHM -EXTENSION -CRL -REVOKED``: a stable id for each kind.
"""

from __future__ import annotations

from casemate.errors import CasemateError


class CertificateError(CasemateError):
    """A certificate or revocation list can't be read, or something about it does not hold."""

    id = "CERTIFICATE"
