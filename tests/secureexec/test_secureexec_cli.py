"""``casemate se``, as a person or a program runs it."""

from __future__ import annotations

import io
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from se_format import craft, craft_newer, read

from casemate.secureexec.hostkey import HostKey

Key = ec.EllipticCurvePrivateKey
PROGRAM = (sys.executable, "-c", "from casemate.cli import main; main()", "se")
NOT_CHECKED = "host key documents were NOT verified (--no-verify): whoever made them reads all of it\n"

PARTS = ("--kernel", "vmlinuz", "--cmdline", "x", "--initrd", "initrd.img", "--no-verify", "--host-key", "host.pub")


@pytest.fixture
def work(tmp_path: Path, keys: Callable[[Key, str], None], host: Key, other: Key, parts: list[bytes]) -> Path:
    keys(host, "host")
    keys(other, "other")
    (tmp_path / "vmlinuz").write_bytes(parts[0])
    (tmp_path / "line").write_bytes(parts[1] + b"\n")
    (tmp_path / "initrd.img").write_bytes(parts[2])
    return tmp_path


def run(work: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], cwd=work, input=stdin, capture_output=True, timeout=30, check=False)


def pack(work: Path, *more: str, cmdline: str = "console=ttyS0 quiet", initrd: str = "initrd.img") -> str:
    common = ("--kernel", "vmlinuz", "--cmdline", cmdline, "--initrd", initrd, "--no-verify", "--host-key", "host.pub")
    done = run(work, "pack", *common, *more, "-o", "image.img", stdin=(work / "initrd.img").read_bytes())
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode() == NOT_CHECKED
    return done.stdout.decode()


def test_packed_shown_and_opened(work: Path, host: Key, parts: list[bytes]) -> None:
    told = json.loads(pack(work, "--host-key", "other.pub", "--json"))
    found = read((work / "image.img").read_bytes(), host)
    assert [found.kernel, found.cmdline, found.initrd] == parts
    assert told["tag"] == found.tag.hex()
    assert told["hosts"] == [fingerprint.hex() for fingerprint in found.hosts]

    shown = json.loads(run(work, "show", "image.img", "--json").stdout)
    assert {name: shown[name] for name in ("tag", "hosts", "size")} == {
        name: told[name] for name in ("tag", "hosts", "size")
    }
    assert [shown["pld"], shown["ald"], shown["tld"]] == [digest.hex() for digest in found.digests]
    assert [part["name"] for part in shown["components"]] == ["kernel", "cmdline", "initrd", "stage3b"]
    assert shown["pages"] == sum(part["size"] for part in shown["components"]) // 4096
    text = run(work, "show", "image.img").stdout.decode()
    assert found.tag.hex() in text
    assert all(fingerprint.hex() in text for fingerprint in found.hosts)

    for key in ("host", "other"):
        opened = run(work, "open", "image.img", "--key", f"{key}.key", "-o", f"parts-{key}")
        assert opened.returncode == 0, opened.stderr
        directory = work / f"parts-{key}"
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert files == dict(zip(("kernel", "cmdline", "initrd"), parts, strict=True))
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_the_initrd_from_a_pipe_and_the_command_line_from_a_file(work: Path, host: Key, parts: list[bytes]) -> None:
    pack(work, cmdline="@line", initrd="-")
    found = read((work / "image.img").read_bytes(), host)
    assert [found.cmdline, found.initrd] == parts[1:]


def test_the_loaders_go_together(work: Path, host: Key) -> None:
    (work / "stage3a").write_bytes(b"a" * 4200)
    (work / "stage3b").write_bytes(b"b" * 500)
    pack(work, "--stage3a", "stage3a", "--stage3b", "stage3b")
    image = (work / "image.img").read_bytes()
    assert image[0x10000:][:4176] == b"a" * 4176
    assert read(image, host)
    alone = ("--kernel", "vmlinuz", "--cmdline", "x", "--initrd", "initrd.img", "--no-verify", "--host-key", "host.pub")
    assert run(work, "pack", *alone, "--stage3a", "stage3a", "-o", "new.img").returncode == 2


def test_a_dump_needs_the_key_that_it_is_encrypted_with(work: Path) -> None:
    (work / "cck").write_bytes(b"k" * 32)
    pack(work, "--cck", "cck", "--enable", "confidential-dump", "--disable", "pckmo-ecc")
    shown = json.loads(run(work, "show", "image.img", "--json").stdout)
    assert shown["allows"] == ["confidential-dump", "pckmo-dea-tdea", "pckmo-aes"]
    assert b"confidential-dump" in run(work, "show", "image.img").stdout
    assert b"kkkkkkkk" not in (work / "image.img").read_bytes()
    refused = run(work, "pack", *PARTS, "--enable", "confidential-dump", "-o", "new.img")
    assert (refused.returncode, (work / "new.img").exists()) == (1, False)
    (work / "cck").write_bytes(b"k" * 31)
    assert run(work, "pack", *PARTS, "--cck", "cck", "-o", "new.img").returncode == 2


def test_an_image_of_the_newer_tool_is_shown_and_opened(work: Path, host: Key) -> None:
    (work / "newer.img").write_bytes(craft_newer({"kernel": b"K", "initrd": b"I"}, [host], flags=0xE0 | 1 << 28))
    shown = run(work, "show", "newer.img")
    assert b"NOT encrypted" in shown.stdout, shown.stderr
    opened = run(work, "open", "newer.img", "--key", "host.key", "-o", "newer")
    assert opened.returncode == 0, opened.stderr
    files = {path.name: path.read_bytes() for path in (work / "newer").iterdir()}
    assert files == {"kernel": b"K", "initrd": b"I", "cmdline": b""}


def test_documents_are_verified_unless_one_says_loudly_not_to(
    work: Path, signed: Callable[[Path], None], host: Key
) -> None:
    signed(work)
    common = (
        "pack",
        "--kernel",
        "vmlinuz",
        "--cmdline",
        "x",
        "--initrd",
        "initrd.img",
        "-o",
        "image.img",
        "--host-key",
    )
    above = ("--ca", "signing.crt", "--ca", "inter.crt", "--ca", "root.crt")
    lists = ("--crl", "signing.crl", "--crl", "inter.crl", "--crl", "root.crl")
    done = run(work, *common, "host.crt", *above, *lists, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["host_keys_verified"] is True
    (work / "image.img").unlink()
    alone = ("host-key", "--json", *above, *lists, "--host-key")
    found = json.loads(run(work, *alone, "host.crt").stdout)
    assert (found["verified"], found["hosts"][0]["fingerprint"]) == (True, HostKey(host.public_key()).fingerprint.hex())
    assert run(work, *alone, "stranger.crt").returncode == 1

    done = run(work, *common, "host.crt", *above, "--no-revocation-check", "--json")
    assert (done.returncode, done.stderr.count(b"NOT checked")) == (0, 1)
    done = run(work, *common, "revoked.crt", "--no-verify", "--json")
    assert (done.returncode, done.stderr.decode()) == (0, NOT_CHECKED)
    assert json.loads(done.stdout)["host_keys_verified"] is False
    (work / "image.img").unlink()

    for wrong in ("revoked.crt", "stranger.crt", "host.pub"):
        done = run(work, *common, "host.crt", "--host-key", wrong, *above, *lists)
        assert (done.returncode, done.stdout) == (1, b""), wrong
        assert not (work / "image.img").exists()
    done = run(work, *common, "host.crt", *above)
    assert done.returncode == 1 and b"--crl" in done.stderr
    for arguments in ((), lists, (*above, "--no-verify"), (*lists, "--no-verify")):
        assert run(work, *common, "host.crt", *arguments).returncode == 2
    assert not (work / "image.img").exists()


def test_a_disk_is_written_of_an_image_with_loaders(work: Path) -> None:
    pack(work)
    done = run(work, "disk", "image.img", "-o", "boot.disk")
    assert done.returncode == 1 and b"no loaders" in done.stderr
    assert not (work / "boot.disk").exists()
    assert json.loads(pack(work, "--json"))["loaders"] is False
    assert "no loaders" in pack(work)
    (work / "vmlinuz").write_bytes(bytes(0x10008) + b"S390EP" + os.urandom(9000))
    assert b"no loaders" not in run(work, "pack", *PARTS, "-o", "image.img").stdout
    assert run(work, "disk", "image.img", "-o", "boot.disk").returncode == 0
    image, disk = (work / "image.img").read_bytes(), (work / "boot.disk").read_bytes()
    assert disk[:4] == b"zIPL" and disk[2048:].startswith(image[0x10000:]) and not len(disk) % 512


def test_a_machine_is_attested_from_request_to_record(work: Path) -> None:
    pack(work)
    (work / "se-checksums.txt").write_bytes(b"26.11.0\n" + b"ab" * 32 + b" root.tar.gz")
    (work / "other.txt").write_bytes(b"26.11.0\n" + b"cd" * 32 + b" root.tar.gz")

    def attest(*words: str) -> subprocess.CompletedProcess[bytes]:
        return run(work, "attest", *words)

    ask = ("--ask", "firmware", "--ask", "image-host-key")
    done = attest(
        "create", "--host-key", "host.pub", "--no-verify", *ask, "--protection-key", "arpk", "-o", "request.bin"
    )
    assert (done.returncode, done.stderr.decode()) == (0, NOT_CHECKED)
    assert stat.S_IMODE((work / "arpk").stat().st_mode) == 0o600
    done = attest("perform", "request.bin", "--image", "image.img", "--key", "host.key", "--record", "se-checksums.txt",
                  "--cuid", "0x" + "1f" * 16, "-o", "answer.bin")  # fmt: skip
    assert done.returncode == 0 and b"DEVELOPMENT" in done.stderr, done.stderr
    common = ("verify", "answer.bin", "--protection-key", "arpk", "--image", "image.img")
    done = attest(*common, "--record", "se-checksums.txt", "--cuid", "1f" * 16, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["cuid"], found["record"], found["development"]) == (0, "1f" * 16, True, True)
    assert attest(*common, "--image-host-key", found["image_host_key"]).returncode == 0
    assert b"DEVELOPMENT" in attest(*common).stdout

    for refused in (
        (*common, "--record", "other.txt"),
        (*common, "--cuid", "2f" * 16),
        (*common, "--image-host-key", "00" * 32),
        ("verify", "request.bin", *common[2:]),
        ("verify", "vmlinuz", *common[2:]),
        ("perform", "request.bin", "--image", "image.img", "--key", "other.key", "-o", "no.bin"),
    ):
        done = attest(*refused)
        assert (done.returncode, done.stdout) == (1, b""), refused
        assert b"Traceback" not in done.stderr
    pack(work, cmdline="another")
    done = attest(*common)
    assert done.returncode == 1 and b"another image" in done.stderr
    assert not (work / "no.bin").exists()


@pytest.mark.parametrize("into_existing", [False, True])
def test_what_does_not_verify_leaves_nothing(work: Path, into_existing: bool) -> None:
    pack(work)
    data = bytearray((work / "image.img").read_bytes())
    data[-1] ^= 1
    (work / "image.img").write_bytes(data)
    if into_existing:
        (work / "out").mkdir()
        (work / "out" / "kernel").write_bytes(b"older")
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    done = run(work, "open", "image.img", "--key", "host.key", "-o", "out")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"SE-IMAGE: the components were changed")
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    assert (work / "out").exists() == into_existing
    assert [path.name for path in work.iterdir() if path.name.startswith(".")] == []


def test_a_failed_pack_leaves_the_older_image(work: Path) -> None:
    pack(work)
    before, names = (work / "image.img").read_bytes(), sorted(os.listdir(work))
    (work / "initrd.img").write_bytes(b"")
    done = run(work, "pack", *PARTS, "-o", "image.img")
    assert (done.returncode, done.stderr.decode()) == (1, f"{NOT_CHECKED}SE-IMAGE: the initrd is empty\n")
    assert ((work / "image.img").read_bytes(), sorted(os.listdir(work))) == (before, names)


def test_an_image_goes_to_a_file_and_nowhere_else(work: Path) -> None:
    os.mkfifo(work / "pipe")
    common = ("pack", *PARTS, "-o")
    done = run(work, *common, "pipe")
    assert done.returncode == 1 and b"is not a regular file" in done.stderr
    assert stat.S_ISFIFO((work / "pipe").stat().st_mode)
    (work / "link.img").symlink_to("there.img")
    assert run(work, *common, "link.img").returncode == 0
    assert (work / "link.img").is_symlink() and (work / "there.img").is_file()


def test_a_host_that_is_named_twice_has_one_slot(work: Path) -> None:
    assert len(json.loads(pack(work, "--host-key", "host.pub", "--json"))["hosts"]) == 1


def test_an_image_does_not_take_the_place_of_what_it_is_made_of(work: Path) -> None:
    common = ("pack", *PARTS, "-o")
    before = (work / "initrd.img").read_bytes()
    for output in ("initrd.img", "./vmlinuz"):
        assert run(work, *common, output).returncode == 2
    assert (work / "initrd.img").read_bytes() == before


def test_another_host_is_told_so_as_json_too(work: Path) -> None:
    pack(work)
    done = run(work, "open", "image.img", "--key", "other.key", "-o", "out", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["id"] == "SE-WRONG-HOST"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "nothing"), 1, b"CLI-FILE: nothing: can't be read"),
        (("show", "vmlinuz"), 1, b"SE-IMAGE: "),
        (("open", "image.img", "--key", "host.pub", "-o", "out"), 1, b"SE-HOST-KEY: "),
        (
            ("open", "image.img", "--key", "host.key", "-o", "no/such/out"),
            1,
            b"CLI-FILE: no/such/out: can't be written",
        ),
        (("open", "image.img", "-o", "out"), 2, b"--key"),
        (("pack", "--kernel", "vmlinuz"), 2, b"Missing option"),
    ],
)
def test_errors_are_sentences(work: Path, arguments: tuple[str, ...], code: int, said: bytes) -> None:
    pack(work)
    done = run(work, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["pack", "open", "show"])
def test_every_command_explains_itself_with_an_example(work: Path, command: str) -> None:
    text = run(work, command, "--help").stdout.decode()
    assert f"casemate se {command} " in text
    assert "--json" in text


def test_images_of_other_tools_are_shown(work: Path, host: Key, parts: list[bytes]) -> None:
    (work / "image.img").write_bytes(craft(parts, [host]))
    shown = json.loads(run(work, "show", "image.img", "--json").stdout)
    assert shown["hosts"] == [HostKey(host.public_key()).fingerprint.hex()]
    assert shown["components"][0]["address"] == 0x15000


def test_progress_is_shown_on_a_terminal_after_two_seconds(work: Path) -> None:
    reader, writer = pty.openpty()
    common = ("--kernel", "vmlinuz", "--cmdline", "x", "--initrd", "-", "--no-verify", "--host-key", "host.pub",
              "-o", "image.img")  # fmt: skip
    with subprocess.Popen([*PROGRAM, "pack", *common], cwd=work, stdin=subprocess.PIPE, stderr=writer) as process:
        os.close(writer)
        assert process.stdin
        try:
            seen = b""
            while b"MB" not in seen:
                process.stdin.write(bytes(1 << 20))
                process.stdin.flush()
                seen += _ready(reader)
            process.stdin.close()
            while b"done in" not in seen:
                seen += os.read(reader, 1000)
        finally:
            process.kill()
            os.close(reader)
    assert b"Packing: " in seen


def _ready(descriptor: int) -> bytes:
    import select

    return os.read(descriptor, 1000) if select.select([descriptor], [], [], 0.02)[0] else b""


def test_the_group_is_imported_without_its_machinery() -> None:
    code = "import sys, casemate.cli.se; sys.exit(any(name.startswith('cryptography') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_packed_image_is_that_of_the_library(work: Path, host: Key) -> None:
    from casemate.secureexec import image

    pack(work)
    sinks: dict[str, io.BytesIO] = {}
    with (work / "image.img").open("rb") as file:
        contents = image.open_image(file, host, lambda name, size: sinks.setdefault(name, io.BytesIO()))
    assert contents.sizes["cmdline"] == len("console=ttyS0 quiet")
