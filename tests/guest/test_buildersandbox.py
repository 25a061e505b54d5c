"""Code that a bundle brings, as it tries to read keys, get out, stay, or leave something for a later job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buildvm_kit import Bench
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build import buildvm
from casemate.build import job as jobs
from casemate.guest import builder, builderbundles
from casemate.guest.buildersandbox import OUTSIDE, run_in_sandbox, take
from casemate.guest.report import Stop
from namespaces import needs_user_namespaces

pytestmark = [pytest.mark.components, needs_user_namespaces]
PYTHON = "/usr/bin/python3"
SECRET = b"the builder's own key"
Try = Callable[..., str]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "box").mkdir(mode=0o700)
    return tmp_path / "box"


@pytest.fixture
def attempt(box: Path) -> Try:
    """Run Python inside; return what it left in ``said``."""

    def attempt(script: str, timeout: float = 30.0) -> str:
        (box / "job.py").write_text(f"import os, sys\nout = open('/work/said', 'w')\n{script}\n")
        run_in_sandbox(box, [PYTHON, "-IB", "/work/job.py"], timeout=timeout)
        return (box / "said").read_text()

    return attempt


def refused(line: str) -> str:
    """A line of Python that says what the system answered."""
    lines = ("try:", f"    {line}", "    print('DONE', file=out)", "except Exception as error:")
    return "\n".join((*lines, "    print(type(error).__name__, error, file=out)"))


def test_the_files_of_the_builder_can_not_be_read_or_found(attempt: Try, box: Path) -> None:
    key = box.parent / "attestation.pem"
    key.write_bytes(SECRET)
    key.chmod(0o644)  # even where a mode is wrong
    look = (
        "for top, names, files in os.walk('/'):",
        "    if top.startswith(('/usr', '/proc')): names[:] = []",
        "    print(top, *files, file=out)",
    )
    said = attempt("\n".join((refused(f"open({str(key)!r})"), *look)))
    answer, seen = said.split("\n", 1)
    assert answer.startswith("FileNotFoundError") and "attestation" not in seen
    assert not {"/run", "/var/lib/builder", "/home", "/root", "/boot"} & {
        line.split()[0] for line in seen.splitlines() if len(line.split()) > 1
    }


def test_no_process_outside_is_seen_or_can_be_ended(attempt: Try) -> None:
    me = os.getpid()
    said = attempt(
        "print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()), file=out)\n"
        + refused(f"os.kill({me}, 9)")
        + "\n"
        + refused(f"open('/proc/{me}/mem', 'rb')")
        + "\n"
        + refused(f"open('/proc/{me}/environ', 'rb')")
    )
    lines = said.splitlines()
    assert lines[0] == "[1]" and lines[1].startswith("ProcessLookupError")
    assert all(line.startswith("FileNotFoundError") for line in lines[2:])


def test_environment_and_open_files_of_the_builder_do_not_go_in(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET.decode())
    with open("/etc/hostname", "rb") as held:
        os.set_inheritable(held.fileno(), True)
        said = attempt(
            "print(dict(os.environ), file=out)\nfor n in range(64):\n"
            "    if os.path.islink(f'/proc/self/fd/{n}'): print(os.readlink(f'/proc/self/fd/{n}'), file=out)"
        )
    assert SECRET.decode() not in said and "hostname" not in said


def test_no_network_is_reached(attempt: Try) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0casemate-test-abstract")
        unix.listen(1)
        port = server.getsockname()[1]
        said = attempt(
            "import socket\n"
            + refused(f"socket.create_connection(('127.0.0.1', {port}), 3)")
            + "\n"
            + refused("socket.create_connection(('192.0.2.1', 80), 3)")
            + "\n"
            + refused("socket.socket(socket.AF_UNIX).connect('\\0casemate-test-abstract')")
            + "\nprint(socket.if_nameindex(), file=out)"
        )
    assert "DONE" not in said and said.splitlines()[-1] == "[(1, 'lo')]"


def test_no_device_is_made_mounted_or_read(attempt: Try) -> None:
    devices = sorted(path.name for path in Path("/sys/block").iterdir())
    said = attempt(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        + "\n".join(
            (
                refused("os.mknod('/work/disk', 0o60600, os.makedev(8, 0))"),
                refused("os.mknod('/work/memory', 0o20600, os.makedev(1, 1))"),
                *(refused(f"open('/dev/{name}', 'rb')") for name in (*devices, "mem", "kmsg", "mapper/control")),
                "print('mount', libc.mount(b'/dev/vda', b'/tmp', b'ext4', 0, None), file=out)",
                "print('remount', libc.mount(b'', b'/usr', b'', 32 | 4096, None), file=out)",
                refused("open('/usr/bin/casemate-was-here', 'w')"),
                refused("open('/proc/sys/kernel/core_pattern', 'w').write('|/work/job.py')"),
                refused("open('/proc/sysrq-trigger', 'w').write('b')"),
            )
        )
    )
    lines = said.splitlines()
    assert "DONE" not in said and "mount -1" in lines and "remount -1" in lines


def test_root_inside_is_nobody_outside(attempt: Try, box: Path) -> None:
    said = attempt("print(os.getuid(), file=out)\nos.chown('/work/said', 77, 77)\nos.chmod('/work/said', 0o4755)")
    about = (box / "said").stat()
    assert said == "0\n" and about.st_uid == OUTSIDE + 77
    mounted = subprocess.run(["findmnt", "-rn", "-o", "TARGET"], capture_output=True, text=True, check=True).stdout
    assert str(box) not in mounted


def test_nothing_lives_on_when_the_job_has_ended(attempt: Try, box: Path) -> None:
    attempt(
        "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        import time\n        while True:\n"
        "            time.sleep(0.05)\n            open('/work/alive', 'a').write('x')\nimport time; time.sleep(0.5)"
    )
    time.sleep(0.3)
    before = (box / "alive").stat().st_size
    time.sleep(0.5)
    assert before > 0 and (box / "alive").stat().st_size == before


def test_a_job_that_does_not_end_is_ended(box: Path) -> None:
    (box / "job.py").write_text("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)")
    begun = time.monotonic()
    with pytest.raises(Stop) as stop:
        run_in_sandbox(box, [PYTHON, "-IB", "/work/job.py"], timeout=2)
    assert stop.value.id == "HPL17012E" and time.monotonic() - begun < 20


def test_what_it_leaves_is_taken_only_as_a_plain_file_of_bounded_size(attempt: Try, box: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET)
    attempt(
        "os.mkdir('/work/out')\nos.chdir('/work/out')\n"
        f"os.symlink({str(tmp_path / 'key')!r}, 'link')\nos.mkfifo('pipe')\nos.mkdir('directory')\n"
        "open('large', 'wb').truncate(1 << 40)\nopen('good', 'w').write('parts')\n"
        "os.symlink('/work/out', '/work/away')"
    )
    for name in ("link", "pipe", "directory", "large", "missing"):
        with pytest.raises(Stop) as stop:
            take(box / "out", name, 1 << 20, tmp_path / f"taken-{name}")
        assert stop.value.id == "HPL17012E"
    with pytest.raises(Stop):
        take(box / "away", "good", 1 << 20, tmp_path / "taken-away")
    assert take(box / "out", "good", 1 << 20, tmp_path / "taken") == 5


# ------------------------------------------------------------------------------------------------- bundles


def bundle(directory: Path, script: str) -> Path:
    """A source bundle whose program does what a test wants."""
    tree = directory / "tree"
    package = tree / "usr/lib/python3/dist-packages/casemate/image"
    package.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    about = "Package: casemate-source\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(about)
    for path in (package, package.parent):
        (path / "__init__.py").touch()
    (package / "inside.py").write_text(script)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, directory / "source.deb"], check=True, capture_output=True
    )
    return directory / "source.deb"


HONEST = """
import json, os
def build_parts(arch, kind, directory):
    os.mkdir('/work/out')
    for name in ('root.squashfs', 'kernel', 'initrd', 'sbom.spdx.json'):
        open(f'/work/out/{name}', 'w').write(f'{name} of {arch} {kind}')
    selection = {'debs': sorted(os.listdir('/work/cache/debs'))}
    json.dump({'release': '6.1', 'selection': selection}, open('/work/out/parts.json', 'w'))
"""
POISON = (
    HONEST.replace("of {arch}", "POISONED {arch}")
    + """
    for top in ('/work', '/tmp', '/var', '/dev/shm'):
        try:
            open(f'{top}/root.squashfs', 'w').write('POISONED')
        except OSError:
            pass
"""
)


class Builds:
    """A builder that knows a pipeline, and jobs of bundles for it."""

    def __init__(self, directory: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.bench = Bench(directory, pipeline=pem)
        self.deb = b"a package"
        digest = hashlib.sha256(self.deb).hexdigest()
        self.packages = f"a 1 amd64 {digest}\n".encode()
        self.debs: dict[str, bytes | Path] = {f"{digest}.deb": self.deb}
        self.last = b""
        self.revision = self.number = 0

    def files(self, source: Path) -> dict[str, bytes | Path]:
        return {"packages.txt": self.packages, "source.deb": source, **self.debs}

    def job(self, source: Path, key: ec.EllipticCurvePrivateKey | None = None, number: int | None = None) -> bytes:
        part = buildvm.measure(source)
        if number is None:
            self.number += 1
        signature = buildvm.sign_bundle(source, key or self.key, number or self.number)
        parts = {"packages.txt": buildvm.measure(self.packages), "source.deb": part}
        hosts = (("HKD.pem", self.bench.document),)
        return self.bench.job("image", self.last, parts=parts, hosts=hosts, signature=signature)

    def run(self, job: bytes, files: dict[str, bytes | Path]) -> builder.Places:
        self.revision += 1
        places = self.bench.run(job, self.revision, files)
        self.last = job
        return places


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("builds"))


def archive(places: builder.Places, job: bytes, builds: Builds, target: Path) -> bytes:
    builds.bench.unpack(places, job, target)
    return (target / "root.squashfs").read_bytes()


def test_a_root_is_built_inside_and_finished_work_serves_the_same_input_and_no_other(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    real = builderbundles.run_in_sandbox
    monkeypatch.setattr(builderbundles, "run_in_sandbox", lambda *a, **k: (ran.append(a), real(*a, **k)))
    honest = bundle(tmp_path / "honest", HONEST)
    poison = bundle(tmp_path / "poison", POISON)
    found = []
    for number, source in enumerate((poison, honest, poison, honest)):
        job = builds.job(source)
        places = builds.run(job, builds.files(source))
        found.append(archive(places, job, builds, tmp_path / f"image-{number}"))
    assert found == [b"root.squashfs POISONED amd64 layer", b"root.squashfs of amd64 layer"] * 2
    assert len(ran) == 4  # two programs for each bundle, once: then finished work was taken
    selection = json.loads((tmp_path / "image-1/reference-values.json").read_bytes())["packages"]
    assert selection == {"debs": sorted(builds.debs)}


def test_a_bundle_that_the_pipeline_has_not_signed_is_refused(builds: Builds, tmp_path: Path) -> None:
    source = bundle(tmp_path / "source", HONEST)
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(Stop) as stop:
        builds.run(builds.job(source, other), builds.files(source))
    assert stop.value.id == "HPL17006E" and "pipeline" in stop.value.detail


def test_a_bundle_older_than_one_that_was_built_is_refused(builds: Builds, tmp_path: Path) -> None:
    """Signed and approved, but long ago: with what was mended since, it would bring back what was wrong."""
    old, new = bundle(tmp_path / "old", POISON), bundle(tmp_path / "new", HONEST)
    job = builds.job(new)
    archive(builds.run(job, builds.files(new)), job, builds, tmp_path / "image")
    for source, number in ((old, builds.number - 1), (new, builds.number - 1), (old, builds.number)):
        with pytest.raises(Stop) as stop:
            builds.run(builds.job(source, number=number), builds.files(source))
        assert stop.value.id == "HPL17006E" and "older" in stop.value.detail
    again = builds.job(new, number=builds.number)
    archive(builds.run(again, builds.files(new)), again, builds, tmp_path / "again")


def test_a_number_that_the_pipeline_has_not_signed_is_refused(builds: Builds, tmp_path: Path) -> None:
    source = bundle(tmp_path / "source", HONEST)
    number, signature = jobs.open_bundle_signature(buildvm.sign_bundle(source, builds.key, 1))
    job = jobs.parse_job(builds.job(source))
    forged = dataclasses.replace(job, signature=jobs.bundle_signature(number + 2**40, signature)).as_bytes()
    with pytest.raises(Stop) as stop:
        builds.run(forged, builds.files(source))
    assert stop.value.id == "HPL17006E" and "pipeline has not signed" in stop.value.detail


def test_a_package_that_is_not_the_listed_one_is_refused(builds: Builds, tmp_path: Path) -> None:
    source = bundle(tmp_path / "source", HONEST)
    files = {**builds.files(source), next(iter(builds.debs)): b"b package"}
    with pytest.raises(Stop) as stop:
        builds.run(builds.job(source), files)
    assert stop.value.id == "HPL17006E"
    files = {**builds.files(source), "0" * 64 + ".deb": b"x"}
    with pytest.raises(Stop):
        builds.run(builds.job(source), files)


def test_a_builder_without_a_pipeline_builds_no_bundles(builds: Builds, tmp_path: Path) -> None:
    source = bundle(tmp_path / "source", HONEST)
    public = dict(builds.bench.public)
    try:
        del builds.bench.public["pipeline.pem"]
        with pytest.raises(Stop, match="pipeline"):
            builds.run(builds.job(source), builds.files(source))
    finally:
        builds.bench.public = public


def test_a_job_that_fails_puts_nothing_out(builds: Builds, tmp_path: Path) -> None:
    source = bundle(tmp_path / "source", "def build_parts(*_): raise SystemExit('no')\n")
    job = builds.job(source)
    places = builds.bench.places(job, builds.bench.reviewers.approve(job, 99), builds.files(source))
    with pytest.raises(Stop) as stop:
        builder.build(places)
    assert stop.value.id == "HPL17012E" and not places.result.read_bytes()[:4096].strip(b"\0")
