"""A machine as libvirt's domain XML: pure, one function, readable as a description of the machine.

Source: libvirt's "Domain XML format"; for Secure Execution its page "Protected virtualization on s390": launch security of type
``s390-pv``, every virtio device with ``iommu='on'`` (the guest's memory is closed to QEMU, so devices go through bounce
buffers), the encrypted image as kernel, without initrd and command line, which are inside it.

The way in is none: no graphics, no guest agent, no keyboard beyond what the bare machine has (by which Ctrl-Alt-Del asks it to
stop), a console that is a file. The disks are those of :mod:`casemate.machine.machines`, found by the same serial numbers.

On ``tee: software`` the same image is the kernel, and the emulator is :mod:`casemate.deploy.emulator`, which opens it.
"""

from __future__ import annotations

import hashlib
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from casemate.deploy.model import Deployment, Machine, Volume
from casemate.machine.machines import ARCHIVE_SERIAL, ROOT_SERIAL
from casemate.machine.qemu import ARCHITECTURES

NAMESPACE = "urn:casemate:deployment:1"
LIBVIRT_ARCH = {"amd64": "x86_64", "s390x": "s390x"}
_FEATURES = {"pclmulqdq": "pclmuldq"}
"""What libvirt calls otherwise than QEMU does."""
CIDATA, ROOT, RECORD, CONSOLE = "cidata.img", "root.img", "record.json", "console.log"
MADE = (CIDATA, ROOT, RECORD, CONSOLE)
"""Files of a machine's directory: all that is ever removed with it."""

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

ET.register_namespace("casemate", NAMESPACE)
ET.register_namespace("qemu", QEMU)


def identity(deployment_id: str, name: str) -> str:
    """Return the UUID of a machine's domain: the same whenever it is asked, so no interruption can leave it unknown."""
    return str(uuid.uuid5(uuid.UUID(deployment_id), name))


def mac_address(domain_uuid: str) -> str:
    """Return an address in QEMU's range that stays the same for a domain."""
    return ":".join(["52", "54", "00", *(f"{byte:02x}" for byte in hashlib.sha256(domain_uuid.encode()).digest()[:3])])


def owner(xml: str) -> str:
    """Return the deployment that a domain says it belongs to; empty where it says nothing."""
    mark = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}machine")  # noqa: S314  (libvirt's own answer)
    return "" if mark is None else mark.get("deployment", "")


def emulator(deployment: Deployment, arch: str) -> Path:
    """Return where the program is that libvirt starts in QEMU's place, for ``tee: software``."""
    return deployment.directory / f"emulator-{arch}"


def domain(machine: Machine, deployment: Deployment, deployment_id: str = "", *, kvm: bool = False) -> str:
    """Return the domain XML of a machine, as text.

    ``kvm`` says whether the development TEE may use KVM; the real one is nothing without. Without ``deployment_id`` the domain
    has no UUID and no mark of ours: it is for somebody who defines it by hand.
    """
    protected = machine.tee == "s390-pv"
    root = ET.Element("domain", type="kvm" if protected or (kvm and machine.arch == "amd64") else "qemu")
    _text(root, "name", machine.name)
    mac = machine.network.mac
    if deployment_id:
        unique = identity(deployment_id, machine.name)
        _text(root, "uuid", unique)
        mark = {"deployment": deployment_id, "image": machine.tag, "cidata": machine.cidata_digest()}
        ET.SubElement(ET.SubElement(root, "metadata"), f"{{{NAMESPACE}}}machine", mark)
        mac = mac or mac_address(unique)
    _text(root, "memory", str(machine.memory >> 20), unit="MiB", dumpCore="off")
    _text(root, "vcpu", str(machine.cpus))
    kind = ARCHITECTURES[machine.arch]
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch=LIBVIRT_ARCH[machine.arch], machine=kind.machine)
    _text(system, "kernel", str(machine.kernel))
    if machine.arch == "amd64":
        ET.SubElement(ET.SubElement(root, "features"), "acpi")
    _processor(root, machine)
    for event in ("poweroff", "reboot", "crash"):
        _text(root, f"on_{event}", "destroy")  # a machine that stopped for a reason does not try again by itself
    devices = ET.SubElement(root, "devices")
    if not protected:
        _text(devices, "emulator", str(emulator(deployment, machine.arch)))
    for number, disk in enumerate(_disks(machine, deployment.files(machine.name))):
        ET.SubElement(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
        devices.append(disk)
    if machine.arch == "amd64":
        ET.SubElement(devices, "controller", type="usb", index="0", model="none")
    serial = ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    _iommu(serial, protected)
    channel = ET.SubElement(devices, "channel", type="file")
    ET.SubElement(channel, "source", path=str(deployment.files(machine.name) / RECORD))
    ET.SubElement(channel, "target", type="virtio", name="casemate.record")
    _console(devices, machine, deployment.files(machine.name) / CONSOLE)
    _interface(devices, machine, mac, protected)
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
    _iommu(random, protected)
    ET.SubElement(devices, "memballoon", model="none")
    if protected:
        ET.SubElement(root, "launchSecurity", type="s390-pv")
    _forwarded(root, machine, mac, protected)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _iommu(device: ET.Element, protected: bool) -> None:
    if protected:
        ET.SubElement(device, "driver", iommu="on")


def _processor(root: ET.Element, machine: Machine) -> None:
    if root.get("type") == "kvm":
        ET.SubElement(root, "cpu", mode="host-model" if machine.arch == "s390x" else "host-passthrough")
        return
    model, *features = ARCHITECTURES[machine.arch].emulated_cpu.split(",+")
    if model == "max":
        ET.SubElement(root, "cpu", mode="maximum")
        return
    processor = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
    _text(processor, "model", model, fallback="forbid")
    for feature in features:
        ET.SubElement(processor, "feature", policy="require", name=_FEATURES.get(feature, feature))


def _disks(machine: Machine, made: Path) -> Iterator[ET.Element]:
    protected = machine.tee == "s390-pv"
    yield _disk(Volume("cidata", 0, made / CIDATA), protected, read_only=True)
    yield _disk(Volume("archive", 0, machine.archive), protected, read_only=True, serial=ARCHIVE_SERIAL)
    yield _disk(Volume("root", 0, made / ROOT), protected, serial=ROOT_SERIAL)
    for volume in machine.volumes:
        yield _disk(volume, protected)


def _disk(volume: Volume, protected: bool, *, read_only: bool = False, serial: str = "") -> ET.Element:
    disk = ET.Element("disk", type="file" if volume.path else "volume", device="disk")
    # `raw` is said, never guessed: a guest that writes a qcow2 header would else have a file of the host opened for it
    driver = {"name": "qemu", "type": "raw"} | ({"iommu": "on"} if protected else {})
    ET.SubElement(disk, "driver", driver if read_only else driver | {"discard": "unmap"})
    if volume.path:
        ET.SubElement(disk, "source", file=str(volume.path))
    else:
        ET.SubElement(disk, "source", pool=volume.pool, volume=volume.volume)
    if read_only:
        ET.SubElement(disk, "readonly")
    if serial:
        _text(disk, "serial", serial)
    return disk


def _console(devices: ET.Element, machine: Machine, path: Path) -> None:
    """Where it speaks: a file, in which nobody can type."""
    kind = "serial" if machine.arch == "amd64" else "console"
    device = ET.SubElement(devices, kind, type="file")
    ET.SubElement(device, "source", path=str(path), append="off")
    ET.SubElement(device, "target", {"port": "0"} | ({} if kind == "serial" else {"type": "sclp"}))


def _interface(devices: ET.Element, machine: Machine, mac: str, protected: bool) -> None:
    network = machine.network
    if network.ports:
        return
    kind = "network" if network.network else "bridge" if network.bridge else "user"
    interface = ET.SubElement(devices, "interface", type=kind)
    if mac:
        ET.SubElement(interface, "mac", address=mac)
    if kind != "user":
        ET.SubElement(interface, "source", {kind: network.network or network.bridge})
    ET.SubElement(interface, "model", type="virtio")
    _iommu(interface, protected)
    if machine.arch == "amd64":
        ET.SubElement(interface, "rom", enabled="no")  # nothing boots from the network


def _forwarded(root: ET.Element, machine: Machine, mac: str, protected: bool) -> None:
    """User networking with forwarded ports, as QEMU's own arguments: libvirt's words for it (passt) need one newer than many."""
    if not machine.network.ports:
        return
    bus = ARCHITECTURES[machine.arch].bus
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for outside, inside in machine.network.ports)
    device = (
        f"virtio-net-{bus},netdev=casemate" + (f",mac={mac}" if mac else "") + (",romfile=" if bus == "pci" else "")
    )
    device += ",iommu_platform=on" if protected else ""
    line = ET.SubElement(root, f"{{{QEMU}}}commandline")
    for word in ("-netdev", f"user,id=casemate{forwards}", "-device", device):
        ET.SubElement(line, f"{{{QEMU}}}arg", value=word)
