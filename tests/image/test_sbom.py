"""The bill of materials: the same bytes for the same root, every package and file in it, licences only where known."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from casemate.image.sbom import document, names_of, of_tree, spdx
from casemate.image.snapshot import Package

PACKAGES = [Package("zlib1g", "1:1.2.13", "amd64", "a" * 64), Package("libstdc++6", "12", "amd64", "b" * 64)]
STATUS = {"zlib1g": {"Source": "zlib (1:1.2.12)", "Homepage": "http://zlib.net/"}, "libstdc++6": {"Source": "gcc-12"}}
OURS = [("guest/a_b.py", b"one"), ("guest/a-b.py", b"two")]


def made(packages: Sequence[Package] = PACKAGES, ours: list[tuple[str, bytes]] = OURS) -> bytes:
    return document("amd64", "1", packages, STATUS, {"zlib1g": ["Zlib", "GPL-2+"], "libstdc++6": ["odd"]}, ours)


def test_the_same_root_gives_the_same_bytes_in_any_order() -> None:
    assert made() == made(PACKAGES[::-1], OURS[::-1])
    other = made(ours=[*OURS[:1], ("guest/a-b.py", b"tw0")])
    assert json.loads(other)["documentNamespace"] != json.loads(made())["documentNamespace"]


def test_every_package_and_file_is_in_it_with_its_hash() -> None:
    bill = json.loads(made())
    by_name = {package["name"]: package for package in bill["packages"]}
    assert by_name["zlib1g"]["checksums"] == [{"algorithm": "SHA256", "checksumValue": "a" * 64}]
    assert by_name["zlib1g"]["sourceInfo"] == "built from the Debian source zlib 1:1.2.12"
    assert by_name["libstdc++6"]["externalRefs"][0]["referenceLocator"] == "pkg:deb/debian/libstdc%2B%2B6@12?arch=amd64"
    for (name, data), file in zip(sorted(OURS), bill["files"], strict=True):
        assert file["fileName"] == f"./{name}"
        assert {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()} in file["checksums"]
    # What a version 2.3 document must have: https://spdx.github.io/spdx-spec/v2.3/
    elements = [bill["SPDXID"], *(one["SPDXID"] for one in (*bill["packages"], *bill["files"]))]
    assert len(elements) == len(set(elements)) == 1 + 2 + 2 + 2
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", element) for element in elements)
    for relation in bill["relationships"]:
        assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= set(elements)
    assert (bill["spdxVersion"], bill["dataLicense"]) == ("SPDX-2.3", "CC0-1.0")


def test_a_licence_is_declared_only_where_every_name_is_known() -> None:
    by_name = {package["name"]: package for package in json.loads(made())["packages"]}
    assert by_name["zlib1g"]["licenseDeclared"] == "GPL-2.0-or-later AND Zlib"
    assert by_name["libstdc++6"]["licenseDeclared"] == "NOASSERTION"
    assert by_name["libstdc++6"]["licenseComments"].endswith(": odd")


@pytest.mark.parametrize(
    "debian, name",
    [
        *(("GPL-2", "GPL-2.0-only"), ("GPL-3+", "GPL-3.0-or-later"), ("LGPL-2.1+", "LGPL-2.1-or-later")),
        *(("Expat", "MIT"), ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"), ("GPL-4", None), ("GPL", None)),
        *(("LGPL-2", "LGPL-2.0-only"), ("public-domain", None), ("GPL-2+ with exception", None)),
    ],
)
def test_debians_names_become_those_of_spdx(debian: str, name: str | None) -> None:
    assert spdx(debian) == name


def test_only_a_machine_readable_copyright_file_names_licences() -> None:
    text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ or Expat\n"
    assert names_of(text) == ["Expat", "GPL-2+"]
    assert names_of(text.replace("Format", "Form")) == [] and names_of("") == []
    assert names_of("Format: x\n\nLicense: MIT\n the text\n License: in the text\n") == ["MIT"]


def test_a_tree_is_read_and_links_do_not_lead_out_of_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "usr/share/doc/gcc-12").mkdir(parents=True)
    (tree / "var/lib/dpkg").mkdir(parents=True)
    (tree / "var/lib/dpkg/status").write_text("Package: zlib1g\nSource: zlib\n\nPackage: libstdc++6\n")
    (tree / "usr/share/doc/gcc-12/copyright").write_text("Format: 1\n\nLicense: GPL-3+\n")
    (tree / "usr/share/doc/libstdc++6").symlink_to("gcc-12")
    (tmp_path / "copyright").write_text("Format: 1\n\nLicense: MIT\n")
    (tree / "usr/share/doc/zlib1g").symlink_to("../../../../")
    by_name = {
        package["name"]: package for package in json.loads(of_tree("amd64", "1", PACKAGES, tree, OURS))["packages"]
    }
    assert by_name["libstdc++6"]["licenseDeclared"] == "GPL-3.0-or-later"
    assert by_name["zlib1g"]["licenseDeclared"] == "NOASSERTION"
