"""The authority of images: the one in a directory, or a development authority that is made there on first use.

    authority = DevelopmentCA.load_or_create(Path("ca"))

``root`` → ``intermediate`` → per image an encryption and an attestation certificate (:mod:`casemate.build.authority`). Every
certificate of a development authority carries the extension :data:`~casemate.certificates.chain.DEVELOPMENT_OID`, and the
subject says so too: it is inside what is signed, so a record under this chain can't pass for one of a hardware TEE. Its
keys are files in the directory, 0600. An authority with keys in a token is made by ``casemate ca init``.
"""

from __future__ import annotations

from pathlib import Path

from casemate.build.authority import (
    CURRENT,
    DESCRIPTION,
    LOG,
    Authority,
    AuthorityError,
    Description,
    ImageCertificates,
    Issuer,
    Plan,
)
from casemate.certificates.chain import has_development_mark

__all__ = ["DevelopmentCA", "ImageCertificates"]

PLAN = Plan("Casemate", list_days=365, development=True)


class DevelopmentCA(Authority):
    """An authority with keys in files, for images that are for nobody but their maker."""

    __slots__ = ()

    @classmethod
    def load_or_create(cls, directory: Path) -> Authority:
        """Return the authority of a directory, whatever its kind; make a development one where the directory is not there."""
        if not (directory / DESCRIPTION).is_file():
            if _is_earlier(directory):
                _describe_earlier(directory)
            else:
                try:
                    return cls.create(directory, PLAN)
                except AuthorityError as error:
                    # Another process may have been faster.
                    if error.id != "AUTHORITY-EXISTS" or not (directory / DESCRIPTION).is_file():
                        raise
        return cls(directory)


def _is_earlier(directory: Path) -> bool:
    """Whether it is of before there were descriptions and logs: an authority that has lost its description is none."""
    root = directory / "root.crt"
    there = (directory / "intermediate.key").is_file() and root.is_file() and not (directory / LOG).exists()
    return there and has_development_mark(root.read_bytes())


def _describe_earlier(directory: Path) -> None:
    """Give a directory of before there were descriptions what it lacks; its keys and certificates stay."""
    issuers = (Issuer("intermediate", "file:intermediate.key", CURRENT),)
    root = Issuer("root", "file:root.key", CURRENT)
    authority = Authority(directory)
    with authority.locked():
        if (directory / "crl.pem").is_file():
            (directory / "crl.pem").rename(directory / "intermediate.crl.pem")
        for issuer in (root, *issuers):
            authority.adopt(issuer)
        described = Description(PLAN.name, True, "", PLAN.list_days, root, issuers)
        authority.write_description(described)
    authority.issue_lists(["root"])
