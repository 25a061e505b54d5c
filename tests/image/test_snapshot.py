"""Lists of packages: their form, what they cover, and what a build does where the archive has moved on."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.image import snapshot
from casemate.image.root import packages_of
from casemate.image.snapshot import (
    Archive,
    Package,
    Policy,
    SnapshotError,
    differences,
    format_list,
    list_path,
    listed,
    parse_list,
    select,
)

A = Package("a-package", "1:2.0-1+deb12u1", "amd64", "a" * 64)
B = Package("b-package", "3.0", "all", "b" * 64)


@pytest.mark.parametrize("arch", ["amd64", "s390x"])
def test_the_sources_list_has_every_package_that_is_asked_for(arch: str) -> None:
    packages, digest = listed(arch)
    assert set(packages_of(arch)) <= {package.name for package in packages}, "casemate image snapshot --update"
    assert {package.arch for package in packages} == {arch, "all"}
    assert digest == hashlib.sha256(list_path(arch).read_bytes()).hexdigest()
    assert format_list(packages).encode() == list_path(arch).read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        f"{A}".encode(),
        f"{B}\n{A}\n".encode(),
        f"{A}\n{A}\n".encode(),
        f"{A}\n{A.name} 9 amd64 {'c' * 64}\n".encode(),
        f"{A}\n\n{B}\n".encode(),
        f"../../etc/passwd 1 amd64 {'a' * 64}\n".encode(),
        f"-oDir::Bin 1 amd64 {'a' * 64}\n".encode(),
        f"a-package 1 amd64 {'a' * 63}\n".encode(),
        f"a-package 1 amd64 {'A' * 64}\n".encode(),
        f"a-package 1\u0660 amd64 {'a' * 64}\n".encode(),
        b"a" * ((1 << 20) + 1),
        "".join(f"p{number:05} 1 all {'a' * 64}\n" for number in range(5000)).encode(),
    ],
)
def test_a_list_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        parse_list(data)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_list_in_its_one_form_or_refused(data: bytes) -> None:
    with contextlib.suppress(SnapshotError):
        assert format_list(parse_list(data)).encode() == data


def test_differences_name_each_package_once() -> None:
    newer, other = Package("a-package", "2", "amd64", "c" * 64), Package("b-package", "3.0", "all", "d" * 64)
    assert differences([A, B], [A, B]) == ()
    assert differences([A, B], [newer, other]) == (
        "a-package 1:2.0-1+deb12u1 -> 2",
        "b-package 3.0: the same version with another hash",
    )
    assert differences([A], [B]) == ("a-package is gone", "b-package 3.0 is new")


# ------------------------------------------------------------------------------------------------- the archive moves on


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Package]]:
    """A real archive in a directory, read by the real apt: `archive(("name", "version"), …)` publishes just these."""
    (tmp_path / "pool").mkdir()
    monkeypatch.setattr(Archive, "_update", _update)
    monkeypatch.setattr(snapshot, "MIRROR", str(tmp_path / "pool"))

    def publish(*packages: tuple[str, str]) -> list[Package]:
        stanzas, made = [], []
        for old in (tmp_path / "pool").iterdir():
            old.unlink()
        for name, version in packages:
            control = tmp_path / "build/DEBIAN/control"
            control.parent.mkdir(parents=True, exist_ok=True)
            fields = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <n@example>\n"
            control.write_text(f"{fields}Description: for a test\n")
            deb = tmp_path / "pool" / f"{name}_{version}_all.deb"
            command = ["dpkg-deb", "--root-owner-group", "--build", str(tmp_path / "build"), str(deb)]
            subprocess.run(command, check=True, capture_output=True, env={"PATH": "/usr/bin", "SOURCE_DATE_EPOCH": "1"})
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            stanzas.append(f"{fields}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
            made.append(Package(name, version, "all", digest))
        (tmp_path / "pool/Packages").write_text("\n".join(stanzas))
        return made

    return publish


def _update(self: Archive) -> None:
    for name in ("lists/partial", "archives/partial"):
        (self._state / name).mkdir(parents=True, exist_ok=True)
    (self._state / "status").touch()
    (self._state / "sources.list").write_text(f"deb [trusted=yes] copy:{snapshot.MIRROR} ./\n")
    self._apt("apt-get", "update", "-qq")


@pytest.mark.components
def test_what_is_fetched_has_the_hash_of_its_line_and_is_used_again_without_an_archive(
    archive: Callable[..., list[Package]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuple(archive(("first", "1.0"), ("second", "2.0")))
    chosen = select("amd64", ["first", "second"], tmp_path / "cache", Policy.PINNED, wanted=wanted)
    assert chosen.packages == wanted and chosen.differences == ()
    for package in wanted:
        data = Archive("amd64", tmp_path / "cache").deb(package).read_bytes()
        assert hashlib.sha256(data).hexdigest() == package.sha256
    archive(("first", "9.0"))
    monkeypatch.setattr(Archive, "_apt", lambda *_, **__: pytest.fail("the archive was asked"))
    assert select("amd64", ["first"], tmp_path / "cache", Policy.PINNED, wanted=wanted).packages == wanted


@pytest.mark.components
def test_an_archive_that_has_moved_on_is_told_recorded_and_refused_where_pinned(
    archive: Callable[..., list[Package]], tmp_path: Path
) -> None:
    wanted = tuple(archive(("first", "1.0"), ("second", "2.0")))
    newer = tuple(archive(("first", "1.1"), ("second", "2.0")))
    with pytest.raises(SnapshotError, match=r"first 1\.0 is not in the archive any more") as refused:
        select("amd64", ["first", "second"], tmp_path / "cache", Policy.PINNED, wanted=wanted)
    assert refused.value.id == "IMAGE-PACKAGES-GONE"
    said: list[str] = []
    chosen = select("amd64", ["first", "second"], tmp_path / "cache", Policy.LISTED, said.append, wanted)
    assert chosen.packages == newer and chosen.differences == ("first 1.0 -> 1.1",)
    assert chosen.record()["exact"] is False and "first 1.0 is not in the archive any more" in said
    with pytest.raises(SnapshotError, match="third is not in the list"):
        select("amd64", ["third"], tmp_path / "cache", Policy.PINNED, wanted=wanted)


@pytest.mark.components
def test_the_same_version_with_other_content_is_not_taken_for_the_one_of_the_list(
    archive: Callable[..., list[Package]], tmp_path: Path
) -> None:
    (real,) = archive(("first", "1.0"))
    wanted = (Package(real.name, real.version, real.arch, "e" * 64),)
    with pytest.raises(SnapshotError, match=r"first 1\.0 is not in the archive any more"):
        select("amd64", ["first"], tmp_path / "cache", Policy.PINNED, wanted=wanted)


@pytest.mark.components
def test_a_cached_package_that_was_changed_is_fetched_anew(
    archive: Callable[..., list[Package]], tmp_path: Path
) -> None:
    wanted = tuple(archive(("first", "1.0")))
    select("amd64", ["first"], tmp_path / "cache", Policy.PINNED, wanted=wanted)
    deb = Archive("amd64", tmp_path / "cache").deb(wanted[0])
    deb.write_bytes(b"something else")
    select("amd64", ["first"], tmp_path / "cache", Policy.PINNED, wanted=wanted)
    assert hashlib.sha256(deb.read_bytes()).hexdigest() == wanted[0].sha256
