"""What an image build refuses at once, what makes the cache build anew, and what it writes beside the image."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.attestation.reference import parse as parse_reference
from casemate.errors import CasemateError
from casemate.image import build, initrd, provenance, root
from casemate.image.build import CONSOLES, ImageDirectory, build_image, command_line
from casemate.image.root import Flavor, Root, build_root, cache_key, guest_files, packages_of
from casemate.image.snapshot import Package, Selection
from program import Result

Run = Callable[..., Result]


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("arch", CONSOLES)
def test_the_kernel_is_locked_down_and_has_one_console(arch: str) -> None:
    words = command_line(arch).split()
    assert [word for word in words if word.startswith("console=")] == [f"console={CONSOLES[arch]}"]
    for word in ("lockdown=confidentiality", "init_on_free=1", "module.sig_enforce=1", "panic=-1", "debugfs=off"):
        assert word in words
    assert len(words) == len(set(words)) and len(command_line(arch)) < 2048 and command_line(arch).isascii()
    assert not re.search(
        r"\b(init|rdinit|systemd\.unit|single|emergency|nokaslr|mitigations=off)\b", command_line(arch)
    )


# ------------------------------------------------------------------------------------------------- refusals


def test_a_directory_that_holds_something_else_is_refused_before_anything_is_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    result = run("image", "build", "mine", "--json")
    error = json.loads(result.out)["error"]
    assert result.code == 1 and error["id"] == "IMAGE-IN-THE-WAY" and error["where"].endswith("mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "home").exists()


def test_a_host_key_that_is_none_is_refused_before_anything_is_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    (tmp_path / "host.crt").write_text("nonsense")
    result = run("image", "build", "new", "--host-key", "host.crt", "--no-verify")
    assert result.code == 1 and "neither a certificate nor a public key" in result.err
    assert not (tmp_path / "home").exists() and not (tmp_path / "new").exists()


def test_a_wrong_architecture_is_code_2(run: Run) -> None:
    assert run("image", "build", "new", "--arch", "riscv64").code == 2


def test_a_directory_that_is_no_image_can_not_be_shown(run: Run, tmp_path: Path) -> None:
    for content in (None, "not JSON", "[]", "{}", "\xff"):
        if content is not None:
            (tmp_path / "image.json").write_text(content)
        result = run("image", "show", ".")
        assert result.code == 1 and "IMAGE-NOT-FOUND" in result.err
    with pytest.raises(CasemateError, match="not an image directory"):
        ImageDirectory(tmp_path / "nowhere").describe()


# ------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def fake_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tree of packages in place of Debian's; what the slow tools would make is written down instead."""
    made: list[str] = []

    packages = (Package("base-files", "12", arch="amd64", sha256="0" * 64),)

    def tree(arch: str, cache: Path, selection: Selection, flavor: str) -> Path:
        path = cache / f"tree-{arch}-{cache_key(packages_of(arch))}"
        (path / "usr/lib/modules/6.1.0").mkdir(parents=True, exist_ok=True)
        (path / "boot").mkdir(exist_ok=True)
        (path / "boot/vmlinuz-6.1.0").write_bytes(b"kernel")
        (path / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
        (path / "var/lib/dpkg/status").write_text("Package: base-files\nVersion: 12\n")
        return path

    def archive(
        arch: str, tree: Path, release: str, ours: list[tuple[str, bytes]], work: Path, archive: Path, flavor: Flavor
    ) -> None:
        made.append(archive.name)
        archive.write_bytes(b"".join(data for _, data in ours))

    def base(root: Root, arch: str, ours: list[tuple[str, bytes]], work: Path) -> bytes:
        made.append("initrd")
        return b"initrd"

    monkeypatch.setattr(root, "build_tree", tree)
    monkeypatch.setattr(root, "_make_archive", archive)
    monkeypatch.setattr(root, "select", lambda *_: Selection(packages, "f" * 64))
    monkeypatch.setattr(initrd, "_make", base)
    return made


def changed(monkeypatch: pytest.MonkeyPatch, files: list[tuple[str, bytes]]) -> None:
    for module in (root, initrd):
        monkeypatch.setattr(module, "guest_files", lambda *_: files)


def test_the_root_is_built_anew_where_the_guests_source_changes_and_not_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    files = list(guest_files())
    first = build_root("amd64", tmp_path)
    assert build_root("amd64", tmp_path) == first and len(fake_tree) == 1
    for position in (0, len(files) // 2, -1):
        other = files.copy()
        other[position] = (files[position][0], files[position][1] + b"\n")
        changed(monkeypatch, other)
        assert build_root("amd64", tmp_path).archive != first.archive
    changed(monkeypatch, [*files, ("guest/new.py", b"")])
    assert build_root("amd64", tmp_path).archive != first.archive
    changed(monkeypatch, [(f"x{name}", data) for name, data in files])
    assert build_root("amd64", tmp_path).archive != first.archive
    assert len(fake_tree) == len(set(fake_tree)) == 6
    changed(monkeypatch, files)
    assert build_root("amd64", tmp_path) == first and len(fake_tree) == 6


def test_the_root_is_built_anew_where_the_way_to_build_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    first = build_root("amd64", tmp_path)
    other = tmp_path / "root.py"
    other.write_bytes(Path(root.__file__).read_bytes() + b"# another step\n")
    monkeypatch.setattr(root, "__file__", str(other))
    assert build_root("amd64", tmp_path).archive != first.archive


def test_the_initrd_follows_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    made = build_root("amd64", tmp_path)
    for _ in range(2):
        initrd.base(made, "amd64", tmp_path)
    assert fake_tree.count("initrd") == 1
    changed(monkeypatch, [*guest_files(), ("guest/new.py", b"")])
    initrd.base(made, "amd64", tmp_path)
    assert fake_tree.count("initrd") == 2


def test_a_root_for_ibm_z_is_not_begun_where_its_programs_do_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("casemate.doctor._PATHS", ())
    with pytest.raises(root.BuildError) as error:
        root.build_tree("s390x", tmp_path, Selection((), ""))
    assert "casemate doctor --install --for s390x" in error.value.diagnostics()
    assert list(tmp_path.iterdir()) == []


def test_a_key_names_all_of_its_parts() -> None:
    keys = [cache_key(), cache_key(""), cache_key("a", "b"), cache_key("ab"), cache_key("a,b"), cache_key(["a", "b"])]
    assert len(set(keys)) == len(keys) and all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)
    assert cache_key("a", ("b",)) == cache_key("a", ["b"])


def test_the_guest_gets_the_guests_part_and_nothing_of_the_hosts() -> None:
    names = [name for name, _ in guest_files()]
    assert len(names) == len(set(names))
    assert {"guest/bootloader.py", "guest/units/hpl-storage.service", "contract/schema.json", "cidata.py"} <= set(names)
    assert not [
        name
        for name in names
        if name.split("/")[0] in ("cli", "machine", "image", "build", "hpsb", "demo", "doctor.py")
    ]
    assert not [name for name in names if name.endswith((".pyc", "~")) or "__pycache__" in name]


@pytest.mark.parametrize("arch", ["amd64", "s390x"])
def test_no_package_lets_anyone_in(arch: str) -> None:
    packages = packages_of(arch)
    assert list(packages) == sorted(set(packages))
    assert not {"openssh-server", "cloud-init", "login", "sudo", "telnetd", "gdb", "strace"} & set(packages)


# ------------------------------------------------------------------------------------------------- an image


@pytest.mark.components
def test_new_keys_do_not_rebuild_the_root_and_go_nowhere_but_into_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    built = [build_image(tmp_path / name, cache=tmp_path / "cache") for name in ("first", "second")]
    assert len(fake_tree) == 2  # one root, one initrd
    values = [(one.path / "reference-values.json").read_bytes() for one in built]
    first, second = (parse_reference(data) for data in values)
    assert first.values == second.values and set(first.values) == {"root.tar.gz", "baseimage", "sbom"}
    assert first.values["root.tar.gz"] == hashlib.sha256(built[0].archive.read_bytes()).hexdigest()
    assert first.values["sbom"] == hashlib.sha256((built[0].path / "sbom.spdx.json").read_bytes()).hexdigest()
    line = command_line("amd64").encode()
    assert first.values["baseimage"] == hashlib.sha256(b"kernel" + line + b"initrd").hexdigest()
    assert (first.version, first.arch) == (build.VERSION, "amd64")
    certificates = [one.encryption_certificate.read_bytes() for one in built]
    assert certificates[0] != certificates[1]
    for one in built:
        for path in one.path.iterdir():
            assert b"-----BEGIN PRIVATE KEY" not in path.read_bytes()
    again = build_image(tmp_path / "first", cache=tmp_path / "cache")  # an image may be replaced
    assert again.encryption_certificate.read_bytes() != certificates[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.components
def test_packages_that_are_not_those_of_the_list_are_told_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    packages = (Package("base-files", "13", arch="amd64", sha256="1" * 64),)
    monkeypatch.setattr(root, "select", lambda *_: Selection(packages, "f" * 64, ("base-files 12 -> 13",)))
    said: list[str] = []
    built = build_image(tmp_path / "image", cache=tmp_path / "cache", progress=said.append)
    assert "packages that differ from the source's list: 1" in said
    recorded = json.loads((built.path / "reference-values.json").read_text())["packages"]
    assert recorded == {"list": "f" * 64, "exact": False, "differences": ["base-files 12 -> 13"]}
    (statement, _) = provenance.verify(
        (built.path / provenance.NAME).read_bytes(),
        (built.path / provenance.CERTIFICATE).read_bytes(),
        {name: hashlib.sha256((built.path / name).read_bytes()).hexdigest() for name in provenance.SUBJECTS},
        time=datetime.datetime.now(datetime.UTC),
        issuers=[(built.path / "root.crt").read_bytes()],
        untrusted=[(built.path / "intermediate.crt").read_bytes()],
    )
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["exact"] is False
    assert (
        provenance.dependency(statement, "packages.txt")
        == hashlib.sha256((built.path / "packages.txt").read_bytes()).hexdigest()
    )


@pytest.mark.components
def test_a_build_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_tree: list[str]
) -> None:
    from casemate.secureexec import image

    def failing(*_: object, **__: object) -> None:
        raise CasemateError("no space")

    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(image, "pack", failing)
    with pytest.raises(CasemateError, match="no space"):
        build_image(tmp_path / "new", cache=tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home"]
