"""What only libvirt's QEMU driver can show: its own form of our XML, pools, and the program in QEMU's place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployments import empty

from casemate.deploy import apply as applying
from casemate.deploy.errors import DeployError
from casemate.deploy.libvirt import Virsh
from casemate.deploy.model import Deployment, load
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import hostkey, image

pytestmark = pytest.mark.components

PC = "{image: pc, contract: contract.yaml, running: %s, memory: 1G, root: {size: 2G}%s}"
WAITING = "casemate-%s" % ("kernel" * 100)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all share: libvirt takes seconds to ask a program in QEMU's place what it can do, and remembers it."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def make(
    session: str, made: Path, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Deployment]]:
    """Write a deployment of one machine for the session, and take away what it made."""
    monkeypatch.setenv("CASEMATE_HOME", str(made / "home"))
    if not (made / "emulator-amd64").exists():
        applying._write(made / "emulator-amd64", applying._emulator("amd64").encode(), 0o755)

    def make(machine: str) -> Deployment:
        path = write(f"machines: {{db: {machine}}}\n", session)
        path.write_text(path.read_text().replace("directory: made", f"directory: {made}"))
        return load(path)

    yield make
    shutil.rmtree(made / "db", ignore_errors=True)
    for uuid in Virsh(session).names().values():
        virsh(session, "destroy", uuid)
        virsh(session, "undefine", uuid)


def virsh(session: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["virsh", "-q", "-c", session, *words], text=True, capture_output=True)


def apply(deployment: Deployment) -> list[str]:
    libvirt = Virsh(deployment.connection)
    return [step.act for step in applying.apply(deployment, libvirt, agreed=True, patience=0).steps]


@pytest.mark.parametrize("network", ["", ", network: {ports: ['15432:5432']}", ", network: {bridge: br0}"])
def test_what_libvirt_adds_of_its_own_is_no_drift(make: Callable[[str], Deployment], network: str) -> None:
    deployment = make(PC % ("false", network))
    assert apply(deployment) == ["write", "write", "define"]
    assert apply(deployment) == []


def test_a_volume_of_a_pool_is_made_and_grows(make: Callable[[str], Deployment], session: str, tmp_path: Path) -> None:
    place = tmp_path / "pool"
    for words in (
        ("pool-define-as", "lab", "dir", "--target", str(place)),
        ("pool-build", "lab"),
        ("pool-start", "lab"),
    ):
        assert virsh(session, *words).returncode == 0
    try:
        said = ", volumes: {data: {pool: lab, size: %s}}"
        assert "make" in apply(make(PC % ("false", said % "256M")))
        assert (place / "db-data.img").stat().st_size == 256 << 20
        assert apply(make(PC % ("false", said % "256M"))) == []
        assert apply(make(PC % ("false", said % "512M"))) == ["grow"]
        assert (place / "db-data.img").stat().st_size == 512 << 20
        with pytest.raises(DeployError, match="never made smaller"):
            apply(make(PC % ("false", said % "256M")))
        apply(empty(make(PC % ("false", ""))))
        assert (place / "db-data.img").exists()
    finally:
        virsh(session, "pool-destroy", "lab")
        virsh(session, "pool-undefine", "lab")


def test_secure_execution_is_not_defined_where_the_host_has_none(make: Callable[[str], Deployment]) -> None:
    """libvirt says so at once, and the next plan has it still to do."""
    deployment = make("{image: z, contract: contract.yaml, running: false, root: {size: 2G}}")
    with pytest.raises(DeployError) as error:
        apply(deployment)
    assert error.value.id == "DEPLOY-LIBVIRT" and "kvm" in error.value.cause
    libvirt = Virsh(deployment.connection)
    assert [step.act for step in applying.look_and_plan(deployment, libvirt).steps] == ["write", "define"]


def test_an_image_is_opened_by_the_program_in_qemus_place(
    make: Callable[[str], Deployment], session: str, tmp_path: Path
) -> None:
    """libvirt starts it, with its processors stopped: what QEMU then has as kernel is in sealed memory, and nowhere else."""
    host = hostkey.load(SoftwareUltravisor.load_or_create().document)
    (tmp_path / "kernel").write_bytes(_setup() + WAITING.encode())
    (tmp_path / "initrd").write_bytes(b"INITRD" * 1000)
    deployment = make(PC % ("false", ""))
    with (
        (tmp_path / "kernel").open("rb") as kernel,
        (tmp_path / "initrd").open("rb") as initrd,
        (tmp_path / "pc/casemate.img").open("wb") as out,
    ):
        image.pack(out, kernel=kernel, cmdline=b"console=ttyS0 quiet", initrd=initrd, hosts=[host])
    apply(deployment)
    started = virsh(session, "start", "--paused", "db")
    assert started.returncode == 0, started.stderr
    line = next(line for line in _command_lines() if b"guest=db," in line and b"-append" in line)
    words = line.split(b"\0")
    assert words[words.index(b"-append") + 1] == b"console=ttyS0 quiet"
    assert words[words.index(b"-kernel") + 1].startswith(b"/proc/self/fd/")
    assert str(tmp_path / "pc/casemate.img").encode() not in line
    assert apply(empty(deployment)) == ["stop", "remove"]


def test_an_image_of_another_host_starts_nothing(make: Callable[[str], Deployment], tmp_path: Path) -> None:
    (tmp_path / "pc/casemate.img").write_bytes(b"MZ" * 50_000)
    with pytest.raises(DeployError) as error:
        apply(make(PC % ("true", "")))
    assert error.value.id == "DEPLOY-LIBVIRT" and "SE-IMAGE" in error.value.cause


def _setup() -> bytes:
    """The first sectors of a kernel for PCs, as far as QEMU looks (Linux: Documentation/arch/x86/boot.rst)."""
    head = bytearray(5 * 512)
    head[0x1F1], head[0x1FE:0x200] = 4, b"\x55\xaa"
    head[0x202:0x208] = b"HdrS\x0f\x02"
    head[0x211] = 1
    head[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")
    return bytes(head)


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue
