"""The bill of materials of a root: SPDX 2.3, JSON (https://spdx.github.io/spdx-spec/v2.3/), the same bytes for the same root.

One package for each Debian package, with its version, the SHA-256 of its ``.deb``, its source and its licences as Debian's
copyright file has them; one for what is ours, with the hash of each file. ``docs/formats/bill-of-materials.md``.

Licences: a machine-readable copyright file (DEP-5) names them. Where SPDX knows all names of one, they are declared; the
names themselves stand in ``licenseComments`` in any case. Other files are prose, and nothing is asserted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from casemate.image.snapshot import Package

NAME = "sbom.spdx.json"
CREATED = "2023-01-01T00:00:00Z"
"""The time of the root's files: a bill of materials says what is in it, not when it was written."""

_GNU = re.compile(r"(A?L?GPL|GFDL(?:-NIV)?)-([123](?:\.\d)?)(\+?)")
_KNOWN = {
    **{"Expat": "MIT", "MIT": "MIT", "MIT/X11": "MIT", "ISC": "ISC", "Zlib": "Zlib", "zlib": "Zlib", "CC0": "CC0-1.0"},
    **{"Apache-2.0": "Apache-2.0", "Apache-2": "Apache-2.0", "MPL-2.0": "MPL-2.0", "MPL-1.1": "MPL-1.1"},
    **{"BSD-2-clause": "BSD-2-Clause", "BSD-3-clause": "BSD-3-Clause", "BSD-4-clause": "BSD-4-Clause"},
    **{"BSD-2-Clause": "BSD-2-Clause", "BSD-3-Clause": "BSD-3-Clause", "CC0-1.0": "CC0-1.0", "0BSD": "0BSD"},
    **{"CC-BY-SA-4.0": "CC-BY-SA-4.0", "CC-BY-4.0": "CC-BY-4.0", "Unlicense": "Unlicense", "BSL-1.0": "BSL-1.0"},
    **{"Artistic": "Artistic-1.0-Perl", "Artistic-2.0": "Artistic-2.0", "OpenSSL": "OpenSSL", "curl": "curl"},
    **{"Unicode": "Unicode-DFS-2016", "FTL": "FTL", "PSF-2": "PSF-2.0", "Python-2.0": "Python-2.0"},
}


def document(
    arch: str,
    version: str,
    packages: Sequence[Package],
    status: Mapping[str, Mapping[str, str]],
    licences: Mapping[str, Sequence[str]],
    ours: Iterable[tuple[str, bytes]],
) -> bytes:
    """Return the bill of materials of a root.

    ``status`` are fields of dpkg's status by package, ``licences`` DEP-5 names by package, ``ours`` our files.
    """
    entries, relations = [], []
    root = "SPDXRef-root"
    for package in sorted(packages):
        entry = _package(package, status.get(package.name, {}), licences.get(package.name, ()))
        entries.append(entry)
        relations.append(_relation(root, "CONTAINS", entry["SPDXID"]))
    own, files = _own(version, sorted(ours))
    relations += [_relation(root, "CONTAINS", own["SPDXID"])]
    relations += [_relation(own["SPDXID"], "CONTAINS", file["SPDXID"]) for file in files]
    whole = {
        **{"SPDXID": root, "name": "casemate-root", "versionInfo": version, "filesAnalyzed": False},
        **{"downloadLocation": "NOASSERTION", "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION"},
        **{"copyrightText": "NOASSERTION", "primaryPackagePurpose": "OPERATING-SYSTEM"},
    }
    result: dict[str, Any] = {
        **{"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT"},
        **{"name": f"casemate-root-{version}-{arch}", "documentNamespace": ""},
        "creationInfo": {"created": CREATED, "creators": ["Tool: casemate-image-build"]},
        **{"packages": [whole, *entries, own], "files": files},
        "relationships": [_relation("SPDXRef-DOCUMENT", "DESCRIBES", root), *relations],
    }
    # Each document needs a name space of its own: the hash of what is in it makes one.
    digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
    result["documentNamespace"] = f"https://spdx.org/spdxdocs/casemate-root-{digest}"
    return json.dumps(result, indent=1, ensure_ascii=True).encode() + b"\n"


def _package(package: Package, fields: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    source, _, bracket = fields.get("Source", package.name).partition(" ")
    known = [spdx(name) for name in names]
    declared = " AND ".join(sorted({name for name in known if name})) if known and all(known) else "NOASSERTION"
    entry = {
        **{"SPDXID": _id("Package", package.name), "name": package.name, "versionInfo": package.version},
        **{"supplier": "Organization: Debian", "downloadLocation": "NOASSERTION", "filesAnalyzed": False},
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "sourceInfo": f"built from the Debian source {source} {bracket.strip('()') or package.version}",
        **{"licenseConcluded": "NOASSERTION", "licenseDeclared": declared, "copyrightText": "NOASSERTION"},
        "externalRefs": [
            {
                **{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl"},
                "referenceLocator": purl(package),
            }
        ],
    }
    if names:
        entry["licenseComments"] = f"named in Debian's copyright file: {', '.join(names)}"
    if re.fullmatch(r"https?://[!-~]+", fields.get("Homepage", "")):
        entry["homepage"] = fields["Homepage"]
    return entry


def purl(package: Package) -> str:
    """Return the package URL of a Debian package (https://github.com/package-url/purl-spec)."""
    name, version = quote(package.name, safe=""), quote(package.version, safe="")
    return f"pkg:deb/debian/{name}@{version}?arch={package.arch}"


def _own(version: str, ours: Sequence[tuple[str, bytes]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    files, ones = [], []
    for name, data in ours:
        # SPDX asks for SHA-1 beside it: it names files, nothing rests on it.
        sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        ones.append(sha1)
        files.append(
            {
                **{"SPDXID": _id("File", name), "fileName": f"./{name}"},
                "checksums": [
                    {"algorithm": "SHA1", "checksumValue": sha1},
                    {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()},
                ],
                **{"licenseConcluded": "Apache-2.0", "licenseInfoInFiles": ["NOASSERTION"]},
                "copyrightText": "NOASSERTION",
            }
        )
    code = hashlib.sha1("".join(sorted(ones)).encode(), usedforsecurity=False).hexdigest()
    package = {
        **{"SPDXID": "SPDXRef-Casemate", "name": "casemate-guest", "versionInfo": version, "filesAnalyzed": True},
        **{"downloadLocation": "NOASSERTION", "packageVerificationCode": {"packageVerificationCodeValue": code}},
        **{"licenseConcluded": "Apache-2.0", "licenseDeclared": "Apache-2.0", "licenseInfoFromFiles": ["NOASSERTION"]},
        "copyrightText": "NOASSERTION",
    }
    return package, files


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _id(kind: str, name: str) -> str:
    """Letters, digits, dots and hyphens are allowed; the hash keeps names apart that differ in others only."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", name)
    mark = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"SPDXRef-{kind}-{plain}{mark}"


def spdx(name: str) -> str | None:
    """Return the SPDX expression for a licence's name in Debian's copyright files; ``None`` where there is none.

    spdx("GPL-2+")   # "GPL-2.0-or-later"
    """
    match = _GNU.fullmatch(name)
    if match is None:
        return _KNOWN.get(name)
    family, number, later = match.groups()
    if family == "GFDL-NIV":
        family, later = "GFDL", "-invariants-" + ("or-later" if later else "only")
        later = "-no" + later
    else:
        later = "-or-later" if later else "-only"
    number = number if "." in number else f"{number}.0"
    known = {"GPL": "1.0 2.0 3.0", "LGPL": "2.0 2.1 3.0", "AGPL": "1.0 3.0", "GFDL": "1.1 1.2 1.3"}
    return f"{family}-{number}{later}" if number in known[family].split() else None


def names_of(copyright_file: str) -> list[str]:
    """Return the licences' names in a copyright file, sorted; none where it is not machine-readable (DEP-5)."""
    first = copyright_file.lstrip("\ufeff").split("\n", 1)[0]
    if not re.match(r"Format(-Specification)?:", first):
        return []
    names: set[str] = set()
    for text in re.findall(r"(?m)^License:[ \t]*(\S[^\n]*)$", copyright_file):
        for name in re.split(r",?\s+(?:and/or|and|or)\s+|,\s*|\s*\|\s*", text.strip()):
            names.add(re.sub(r"\s+", " ", name).strip("() ,") or "unknown")
    return sorted(names)


def of_tree(arch: str, version: str, packages: Sequence[Package], tree: Path, ours: list[tuple[str, bytes]]) -> bytes:
    """Return the bill of materials of a tree of packages, reading dpkg's status and the copyright files in it."""
    status: dict[str, dict[str, str]] = {}
    for stanza in (tree / "var/lib/dpkg/status").read_text("utf-8").split("\n\n"):
        fields = dict(re.findall(r"(?m)^([A-Z][A-Za-z-]*): (.*)$", stanza))
        if "Package" in fields:
            status[fields["Package"]] = fields
    licences = {}
    for package in packages:
        path = _inside(tree, f"usr/share/doc/{package.name}/copyright")
        if path is not None:
            licences[package.name] = names_of(path.read_text("utf-8", "replace"))
    return document(arch, version, packages, status, licences, ours)


def _inside(tree: Path, name: str) -> Path | None:
    """Return a file of the tree, its links followed inside it; ``None`` where there is none or it lies outside."""
    path = tree / name
    if path.parent.is_symlink():
        target = path.parent.readlink()
        path = (tree / str(target).lstrip("/") if target.is_absolute() else path.parent.parent / target) / path.name
    real = path.resolve()
    return real if real.is_relative_to(tree.resolve()) and real.is_file() else None
