"""What can be wrong with a Secure Execution image, or with a key for one."""

from __future__ import annotations

from casemate.errors import CasemateError


class ImageError(CasemateError):
    """The image is damaged, was changed, or is none. Nothing of it may be used."""

    id = "SE-IMAGE"


class NoSlotError(ImageError):
    """The image is whole as far as one can see, but was not built for this host."""

    id = "SE-WRONG-HOST"


class HostKeyError(CasemateError):
    """A host key document, or a host key, can't be used."""

    id = "SE-HOST-KEY"
