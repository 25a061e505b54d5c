"""A rebuild is compared with what an image publishes, and whatever differs is named; rebuilt values verify a record."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.attestation import record
from casemate.attestation.verify import Outcome, verify
from casemate.errors import CasemateError
from casemate.image import rebuild
from casemate.image.build import VERSION, command_line
from casemate.image.ca import DevelopmentCA
from casemate.image.rebuild import compare_archives, listing, values_document
from program import Result


def archive(tree: Path, out: Path) -> Path:
    subprocess.run(["mksquashfs", str(tree), str(out), "-noappend", "-quiet", "-no-progress"], check=True)
    return out


@pytest.mark.components
def test_every_file_that_differs_is_named_with_what_differs(tmp_path: Path) -> None:
    for name in ("one", "other"):
        tree = tmp_path / name
        (tree / "usr/bin").mkdir(parents=True)
        for file in ("same", "content", "mode", "owner", name):
            (tree / "usr/bin" / file).write_text("x")
        (tree / "link").symlink_to(name)
        for path in (*tree.rglob("*"), tree):
            os.utime(path, (1, 1), follow_symlinks=False)
    other = tmp_path / "other/usr/bin"
    (other / "content").write_text("y")
    (other / "mode").chmod(0o4755)
    os.chown(other / "owner", 1, 2)
    for path in other.iterdir():
        os.utime(path, (1, 1))
    archives = [archive(tmp_path / name, tmp_path / f"{name}.squashfs") for name in ("one", "other")]
    (tmp_path / "work").mkdir()
    found = compare_archives(archives[0], archives[1], tmp_path / "work")
    assert [line.split(": ")[0] for line in found] == [
        *("link", "usr/bin/content", "usr/bin/mode", "usr/bin/one", "usr/bin/other", "usr/bin/owner"),
    ]
    assert found[2] == "usr/bin/mode: mode 644, rebuilt 4755" and found[5] == "usr/bin/owner: owner 0:0, rebuilt 1:2"
    assert found[3].endswith("only in the image") and found[4].endswith("only in the rebuild")
    (tmp_path / "again").mkdir()
    assert compare_archives(archives[0], archives[0], tmp_path / "again") == ()


def pseudo(tmp_path: Path, *lines: str) -> Path:
    """Return an archive that mksquashfs makes of a description: with entries that a file system would not bear."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
    words = [
        "mksquashfs",
        str(tmp_path / "empty"),
        str(tmp_path / "bad.squashfs"),
        "-noappend",
        "-quiet",
        "-no-progress",
    ]
    subprocess.run([*words, "-pf", str(tmp_path / "lines")], check=True, stdout=subprocess.DEVNULL)
    return tmp_path / "bad.squashfs"


@pytest.mark.components
@pytest.mark.parametrize("attack", ["large", "many", "deep", "break"])
def test_an_archive_that_no_root_is_is_never_unpacked(
    tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    if attack == "large":  # a few kilobytes that would become five gigabytes, in files each of which is small enough
        for number in range(5):
            with (tree / str(number)).open("wb") as file:
                file.truncate(1 << 30)
    elif attack == "many":
        monkeypatch.setattr(rebuild, "MOST_ENTRIES", 1000)
        for number in range(1000):
            (tree / str(number)).touch()
    elif attack == "deep":
        (tree / "/".join("d" * 65)).mkdir(parents=True)
    else:
        (tree / "a\nb").touch()
    bad = archive(tree, tmp_path / "bad.squashfs")
    assert bad.stat().st_size < 1 << 20
    (tmp_path / "work").mkdir()
    with pytest.raises(CasemateError) as caught:
        compare_archives(bad, bad, tmp_path / "work")
    assert caught.value.id == "IMAGE-ARCHIVE"
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.components
def test_devices_and_links_of_an_archive_are_named_and_not_touched(tmp_path: Path) -> None:
    """A pipe that is opened never ends, a disk that is read is this machine's, a link out leads to its files."""
    (tmp_path / "outside").write_text("before")
    lines = ["disk b 600 0 0 7 0", "pipe i 600 0 0 f", f"out s 777 0 0 {tmp_path / 'outside'}", "up s 777 0 0 ../.."]
    bad = pseudo(tmp_path, *lines)
    good = archive(tmp_path / "empty", tmp_path / "good.squashfs")
    (tmp_path / "work").mkdir()
    found = compare_archives(bad, good, tmp_path / "work")
    assert {line.split(":")[0] for line in found if "only in the image" in line} == {"disk", "pipe", "out", "up"}
    assert (tmp_path / "outside").read_text() == "before"
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"published", "rebuilt"}


@pytest.mark.components
def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"hsqs" + bytes(4092))
    with pytest.raises(CasemateError, match="can't read it"):
        rebuild.require_bounded(tmp_path / "bad")


def test_a_listing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "tree/link").symlink_to("../secret")
    (tmp_path / "tree/directory").symlink_to("/")
    found = listing(tmp_path / "tree")
    assert set(found) == {".", "link", "directory"} and found["link"]["target"] == "../secret"


@pytest.mark.parametrize(
    "changed, holds", [({}, True), ({"root.tar.gz": "0" * 64}, False), ({"sbom": "1" * 64}, False)]
)
def test_rebuilt_values_verify_the_record_of_an_image_and_those_of_another_do_not(
    changed: dict[str, str], holds: bool, tmp_path: Path
) -> None:
    """The auditor's way from source alone: values that nobody published but a rebuild gave."""
    values = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("root.tar.gz", "baseimage", "sbom")}
    authority = DevelopmentCA.load_or_create(tmp_path / "ca")
    issued = authority.issue(VERSION)
    text = record.build(VERSION, [], list(values.items()))
    verdict = verify(
        text,
        record.sign(text, issued.attestation_key.reveal()),
        issued.attestation_certificate,
        time=datetime.datetime.now(datetime.UTC),
        issuers=[authority.root_pem, authority.intermediate_pem],
        reference=values_document("amd64", VERSION, {**values, **changed}),
    )
    assert verdict.holds is holds
    for row in verdict.rows:
        if row.name in values:
            assert row.outcome is (Outcome.REFUTED if row.name in changed else Outcome.PROVED)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image directory, and what a rebuild gives, in place of minutes of ``mmdebstrap`` (bench/bench_image.py has those)."""
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    (tmp_path / "tree/usr").mkdir(parents=True)
    (tmp_path / "tree/usr/file").write_text("x")
    rebuilt = archive(tmp_path / "tree", tmp_path / "rebuilt.squashfs")
    values = {"root.tar.gz": hashlib.sha256(rebuilt.read_bytes()).hexdigest(), "baseimage": "1" * 64, "sbom": "2" * 64}
    monkeypatch.setattr(rebuild, "build_values", lambda *_: (values, b"bill", rebuilt))
    path = tmp_path / "image"
    path.mkdir()
    described = {
        "format": "casemate-image/1",
        "arch": "amd64",
        "version": VERSION,
        "command_line": command_line("amd64"),
    }
    (path / "image.json").write_text(json.dumps(described))
    (path / "reference-values.json").write_bytes(values_document("amd64", VERSION, values))
    (path / "packages.txt").write_text(f"base-files 12 amd64 {'0' * 64}\n")
    (path / "sbom.spdx.json").write_bytes(b"bill")
    (path / "root.squashfs").write_bytes(rebuilt.read_bytes())
    return path


@pytest.mark.components
def test_an_image_that_is_what_it_says_is_code_0_and_gives_its_values(
    run: Callable[..., Result], image: Path, tmp_path: Path
) -> None:
    result = run("image", "verify-build", str(image), "--json", "-o", "values.json")
    found = json.loads(result.out)
    assert result.code == 0 and found["same"] and found["differences"] == found["files"] == []
    assert "base-files" in " ".join(found["packages"])  # its packages are not the source's, and that is told
    assert json.loads((tmp_path / "values.json").read_text())["values"] == found["rebuilt"] == found["published"]


@pytest.mark.components
def test_each_file_of_an_image_that_is_another_is_named(
    run: Callable[..., Result], image: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree/usr/file").write_text("backdoor")
    (tmp_path / "tree/usr/more").write_text("")
    archive(tmp_path / "tree", image / "root.squashfs")
    (image / "sbom.spdx.json").write_bytes(b"Bill")
    described = json.loads((image / "image.json").read_text())
    (image / "image.json").write_text(json.dumps({**described, "command_line": "init=/bin/sh"}))
    values = json.loads((image / "reference-values.json").read_text())["values"]
    (image / "reference-values.json").write_bytes(values_document("amd64", VERSION, {**values, "baseimage": "3" * 64}))
    result = run("image", "verify-build", str(image), "--json")
    found = json.loads(result.out)
    assert result.code == 1 and not found["same"]
    assert [line.split(" ")[0] for line in found["differences"]] == [
        "baseimage:",
        "the",
        "sbom.spdx.json",
        "root.squashfs",
    ]
    names = {line.split(": ")[0] for line in found["files"]}
    assert {"usr/file", "usr/more"} <= names <= {".", "usr", "usr/file", "usr/more"}


def test_values_that_an_image_leaves_out_count_as_different(run: Callable[..., Result], image: Path) -> None:
    (image / "reference-values.json").write_bytes(values_document("amd64", VERSION, {"sbom": "2" * 64}))
    result = run("image", "verify-build", str(image), "--json")
    assert result.code == 1 and len(json.loads(result.out)["differences"]) == 2


@pytest.mark.parametrize("name", ["packages.txt", "reference-values.json", "sbom.spdx.json", "root.squashfs"])
def test_a_directory_that_lacks_a_file_is_told(name: str, run: Callable[..., Result], image: Path) -> None:
    (image / name).unlink()
    result = run("image", "verify-build", str(image))
    assert result.code == 1 and "IMAGE-FILE" in result.err and "Traceback" not in result.err
