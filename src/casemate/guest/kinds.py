"""The kinds of images, a row for each: what its machine is given, which root it has, and what starts in that.

``image.json`` in the encrypted image names the kind, so whoever runs a machine has no say in it.
"""

from __future__ import annotations

from dataclasses import dataclass

CIDATA, CASEBUILD, NOTHING = "cidata", "casebuild", ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of images.

    ``root``: the root archive that it has, by the name of its list of packages; ``target``: systemd's first unit; ``input``:
    the label of the disk that it reads before anything else; ``network``: whether its kernel gets a driver for one;
    ``opens``: whether contracts are sealed for it, and so whether it has a contract key; ``signs``: whether it has a key for its
    record. A kind without holds no secret at all, and the ultravisor alone vouches for its machine.
    """

    name: str
    root: str
    target: str
    input: str
    network: bool
    opens: bool
    signs: bool


KINDS = {
    kind.name: kind
    for kind in (
        Kind("layer", "layer", "hyperprotect.target", CIDATA, network=True, opens=True, signs=True),
        Kind("builder", "builder", "builder.target", CASEBUILD, network=False, opens=False, signs=True),
        Kind("bootstrap", "builder", "bootstrap.target", NOTHING, network=True, opens=False, signs=False),
    )
}
LAYER = KINDS["layer"]
