"""The style sheet makes of the provider's XML the domain that Casemate itself writes, and libvirt takes it.

The provider and its program are not here. ``PROVIDER`` has the form that its versions 0.6 to 0.8 give (read in its source):
agent channel, random numbers, disks with their own names, an empty processor, and what libvirt may add to a guest by itself.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_deploy_domain import needs_virsh, validated

from casemate.deploy.domain import domain
from casemate.deploy.model import Deployment, Machine, Network, Volume
from casemate.deploy.plan import flat

SHEET = Path(__file__).parents[2] / "docs/terraform/secure-execution.xsl"
DATA = Volume("data", 10 << 30, pool="default", volume="db-data.img")
MACHINE = Machine(
    "db", "s390x", "s390-pv", Path("/images/z"), "11" * 16, b"contract", 4 << 30, network=Network("default")
)

PROVIDER = """<domain type="kvm">
  <name>db</name>
  <memory unit="MiB">4096</memory>
  <vcpu placement="static">2</vcpu>
  <os>
    <type arch="s390x" machine="s390-ccw-virtio">hvm</type>
    <kernel>/images/z/casemate.img</kernel>
  </os>
  <cpu></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-s390x</emulator>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="/made/db/cidata.img"/>
      <target dev="vda" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="/images/z/root.squashfs"/>
      <target dev="vdb" bus="virtio"/></disk>
    <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="/made/db/root.img"/>
      <target dev="vdc" bus="virtio"/></disk>
    <disk type="volume" device="disk"><driver name="qemu" type="qcow2"/><source pool="default" volume="db-data.img"/>
      <target dev="vdd" bus="virtio"/></disk>
    <interface type="network"><mac address="52:54:00:AB:CD:EF"/><source network="default"/><model type="virtio"/></interface>
    <channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel>
    <console type="pty"><target port="0"/></console>
    <graphics type="vnc" autoport="yes"/>
    <video><model type="virtio"/></video>
    <rng model="virtio"><backend model="random">/dev/urandom</backend></rng>
  </devices>
</domain>
"""

pytestmark = [
    pytest.mark.components,
    pytest.mark.skipif(
        shutil.which("xsltproc") is None, reason="xsltproc is missing: casemate doctor --for tests --install"
    ),
]


def transformed(text: str) -> str:
    done = subprocess.run(["xsltproc", "--nonet", str(SHEET), "-"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_style_sheet_makes_the_domain_that_casemate_writes() -> None:
    machine = replace(MACHINE, volumes=(DATA,))
    wanted = flat(domain(machine, Deployment(Path("/d.yaml"), "qemu:///system", Path("/made"), {"db": machine})))
    given = flat(transformed(PROVIDER))
    of_the_provider = {"devices.emulator", "devices.interface.mac.address", "vcpu.placement"}
    assert {path: value for path, value in given.items() if path not in of_the_provider} == wanted


@needs_virsh
def test_libvirt_takes_what_the_style_sheet_makes() -> None:
    assert "s390-pv" in validated(transformed(PROVIDER))


def test_main_tf_names_the_files_that_the_commands_make() -> None:
    """Each file that main.tf names is one that the commands make, under the names that the style sheet looks for."""
    text = SHEET.with_name("main.tf").read_text()
    for name in ("casemate.img", "cidata.img", "root.squashfs", "root.img", "secure-execution.xsl"):
        assert f"/{name}" in text
    assert text.index('cidata.img"') < text.index('root.squashfs"') < text.index('root.img"') < text.index("volume_id")
