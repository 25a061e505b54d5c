"""The domain XML fulfils libvirt's own schema, holds what it must for Secure Execution, and no value becomes markup."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from deployments import CONTRACT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.cidata import read_volume
from casemate.deploy.domain import QEMU, domain, identity, owner
from casemate.deploy.model import Deployment, Machine, Network, Volume
from program import Result

ID = "5d8cf5d6-0f50-4a3c-9d0f-7c1f2b8f1b61"
Z = Machine("db", "s390x", "s390-pv", Path("/images/z"), "11" * 16, b"contract")
PC = Machine("db", "amd64", "software", Path("/images/pc"), "11" * 16, b"contract")
VOLUMES = (Volume("data", 1 << 30, Path("/data/db.img")), Volume("logs", 1 << 30, pool="default", volume="db-logs.img"))
NETWORKS = (
    Network("default"),
    Network(bridge="br0", mac="52:54:00:00:00:01"),
    Network(ports=((15432, 5432), (80, 80))),
    Network(),
)

needs_virsh = pytest.mark.skipif(
    shutil.which("virsh") is None, reason="libvirt is not installed: casemate doctor --for tests --install"
)


def deployment(machine: Machine, directory: str = "/made") -> Deployment:
    return Deployment(Path("/d.yaml"), "qemu:///system", Path(directory), {machine.name: machine})


def xml(machine: Machine, **options: bool) -> str:
    return domain(machine, deployment(machine), ID, **options)


def validated(text: str) -> str:
    """Define it in libvirt's test driver, against libvirt's schema; return what libvirt made of it."""
    words = ["virsh", "-q", "-c", "test:///default"]
    name = ET.fromstring(text).findtext("name")
    order = f"define --validate /dev/stdin; dumpxml --inactive {name}"
    done = subprocess.run([*words, order], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout[done.stdout.index("<domain") :]


@needs_virsh
@pytest.mark.parametrize("network", NETWORKS, ids=["network", "bridge", "ports", "user"])
@pytest.mark.parametrize("machine", [Z, PC, replace(Z, tee="software")], ids=["z", "pc", "emulated z"])
@pytest.mark.parametrize("kvm", [False, True])
def test_libvirt_takes_it(machine: Machine, network: Network, kvm: bool) -> None:
    text = xml(replace(machine, volumes=VOLUMES, network=network), kvm=kvm)
    given = ET.fromstring(validated(text))
    assert given.findtext("uuid") == identity(ID, "db")
    assert owner(ET.tostring(given, encoding="unicode")) == ID
    assert len(given.findall("devices/disk")) == 5


@needs_virsh
def test_the_schema_refuses_what_is_none() -> None:
    text = xml(Z).replace("s390-pv", "s390-pw")
    with pytest.raises(AssertionError, match="validate"):
        validated(text)


@pytest.mark.parametrize("network", NETWORKS, ids=["network", "bridge", "ports", "user"])
def test_on_ibm_z_every_virtio_device_goes_through_bounce_buffers(network: Network) -> None:
    root = ET.fromstring(xml(replace(Z, volumes=VOLUMES, network=network)))
    assert root.find("launchSecurity").attrib == {"type": "s390-pv"}  # type: ignore[union-attr]
    assert root.get("type") == "kvm"
    devices = [*root.findall("devices/disk"), *root.findall("devices/interface"), *root.findall("devices/rng")]
    devices += root.findall("devices/controller")
    assert len(devices) == 5 + (not network.ports) + 1 + 1
    forwarded = [each.get("value", "") for each in root.iter(f"{{{QEMU}}}arg")]
    assert forwarded == [] or ",iommu_platform=on" in forwarded[-1]
    assert all(device.find("driver").get("iommu") == "on" for device in devices)  # type: ignore[union-attr]
    assert root.find("devices/memballoon").get("model") == "none"  # type: ignore[union-attr]


def test_the_image_is_the_kernel_and_nothing_is_given_beside_it() -> None:
    for machine in (Z, PC):
        system = ET.fromstring(xml(machine)).find("os")
        assert system is not None
        assert [child.tag for child in system] == ["type", "kernel"]
        assert system.findtext("kernel") == f"{machine.image}/casemate.img"


@pytest.mark.parametrize("machine", [Z, PC])
def test_there_is_no_way_in(machine: Machine) -> None:
    devices = ET.fromstring(xml(replace(machine, volumes=VOLUMES))).find("devices")
    assert devices is not None
    kinds = {child.tag for child in devices} - {"disk", "interface", "controller", "rng", "memballoon", "emulator"}
    assert kinds == {"channel", "serial" if machine is PC else "console"}
    assert {devices.find(kind).get("type") for kind in kinds} == {"file"}  # type: ignore[union-attr]
    assert [each.get("name") for each in devices.findall("channel/target")] == ["casemate.record"]


def test_every_disk_is_raw_by_name_and_what_belongs_to_the_image_is_read_only() -> None:
    disks = ET.fromstring(xml(replace(Z, volumes=VOLUMES))).findall("devices/disk")
    assert all(disk.find("driver").get("type") == "raw" for disk in disks)  # type: ignore[union-attr]
    assert [disk.find("readonly") is not None for disk in disks] == [True, True, False, False, False]
    assert [disk.findtext("serial") for disk in disks] == [None, "casemate-archive", "casemate-root", None, None]


def test_a_contract_is_not_in_it_and_another_contract_makes_another() -> None:
    secret = replace(Z, contract=b"seed: geheim")
    assert "geheim" not in xml(secret)
    assert xml(secret) != xml(replace(Z, contract=b"seed: anders")) and xml(secret) == xml(secret)


def test_without_a_deployment_there_is_no_mark_of_ours() -> None:
    text = domain(Z, deployment(Z))
    assert owner(text) == "" and "<uuid>" not in text and "<metadata>" not in text


PATHS = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Cn", "Co", "Zl", "Zp", "Cf"), blacklist_characters="/"),
    min_size=1,
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(name=PATHS, other=PATHS, pool=PATHS)
def test_no_value_becomes_markup(name: str, other: str, pool: str) -> None:
    machine = replace(
        Z, image=Path("/", name), volumes=(Volume("d", 1, Path("/", other)), Volume("p", 1, pool=pool, volume="v"))
    )
    root = ET.fromstring(domain(machine, deployment(machine, f"/{other}"), ID))
    plain = ET.fromstring(xml(replace(Z, volumes=VOLUMES)))
    assert [each.tag for each in root.iter()] == [each.tag for each in plain.iter()]
    sources = [disk.find("source").attrib for disk in root.findall("devices/disk")]  # type: ignore[union-attr]
    assert sources[1] == {"file": str(Path("/", name) / "root.squashfs")}
    assert sources[3:] == [{"file": str(Path("/", other))}, {"pool": pool, "volume": "v"}]


@needs_virsh
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(name=PATHS.filter(lambda name: name not in (".", "..")))
def test_libvirt_reads_a_path_as_it_was_written(name: str) -> None:
    machine = replace(Z, volumes=(Volume("d", 1, Path("/", name)),))
    given = ET.fromstring(validated(domain(machine, deployment(machine), ID)))
    assert given.findall("devices/disk/source")[3].get("file") == f"/{name}"


def test_define_writes_xml_and_disks(run: Callable[..., Result], write: Callable[..., Path], tmp_path: Path) -> None:
    write("machines: {db: {image: z, contract: contract.yaml, root: {size: 2G}}}\n")
    assert run("machine", "define", "--libvirt", "deployment.yaml", "-o", "xml").code == 0
    root = ET.fromstring((tmp_path / "xml/db.xml").read_text())
    sources = [Path(disk.find("source").get("file", "")) for disk in root.findall("devices/disk")]  # type: ignore[union-attr]
    assert all(path.is_file() for path in sources)
    assert read_volume(sources[0].read_bytes())["user-data"] == CONTRACT
    assert sources[2].stat().st_size == 2 << 30 and sources[2].stat().st_blocks == 0
    assert sources[0].stat().st_mode & 0o077 == 0
