"""Errors of the contract toolkit. No message quotes a value of a contract; names and places only."""

from __future__ import annotations

from casemate.errors import CasemateError


class ContractError(CasemateError):
    """Base of the errors of this package."""

    id = "CONTRACT"


class TokenError(ContractError):
    """A token does not open. One sentence for every cause: an attacker learns nothing from a failure."""

    id = "CONTRACT-TOKEN"


class KeyFileError(ContractError):
    """A key or certificate can't be used."""

    id = "CONTRACT-KEY"


class DocumentError(ContractError):
    """A text is not the YAML that a contract may hold, or not a contract."""

    id = "CONTRACT-DOCUMENT"


class ArchiveError(ContractError):
    """A compose or play archive is refused. ``message``: how a machine says so of a compose archive."""

    id = "CONTRACT-ARCHIVE"
    message = "HPL06006E"


class TarError(ArchiveError):
    """What is in the gzip data is no whole tar."""

    message = "HPL06007E"


class NoComposeError(ArchiveError):
    """The archive has no compose file at its top."""

    message = "HPL06008E"


class ImageError(ContractError):
    """An image reference, or a file that names images, is refused."""

    id = "CONTRACT-IMAGE"


class SignatureError(ContractError):
    """A signature does not hold, or can't be made."""

    id = "CONTRACT-SIGNATURE"


class SeedError(ContractError):
    """A volume's seed is missing or is not one."""

    id = "CONTRACT-SEED"


class KeyServiceError(ContractError):
    """What a volume says of key services can't be understood."""

    id = "CONTRACT-KEY-SERVICE"


class AnchorError(ContractError):
    """What a volume says of its anchor can't be understood, or what the anchor says can't be believed."""

    id = "CONTRACT-ANCHOR"


def printable(place: str) -> str:
    """Return a place fit for a message, whatever the names in it are made of."""
    return "".join(character if character.isprintable() else "?" for character in place)[:300]


class WorkloadError(ContractError):
    """A workload asks for something that is not understood. ``where`` is its place; no value is quoted."""

    id = "CONTRACT-WORKLOAD"

    def __init__(self, where: str, cause: str) -> None:
        super().__init__(cause, where=printable(where))


class TrustError(ContractError):
    """Trust data (TUF) is refused. ``TrustError.EXPIRED`` is the identifier of data that is only too old."""

    id = "CONTRACT-TRUST"
    EXPIRED = "CONTRACT-TRUST-EXPIRED"
