"""Machines for IBM Z under QEMU's emulation of it: the same source, the same services, the demo's whole story.

A root for s390x takes minutes to make where its programs are emulated, so these run where the cache has it, or where
``make test-s390x`` asks for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from surroundings import attempt

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry
from casemate.demo.story import image_directory
from casemate.image.build import build_image, is_current
from casemate.image.root import tree_path
from casemate.image.snapshot import format_list, listed
from casemate.machine import home
from casemate.machine.machines import Data, Specification, up
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import attestation, disk, hostkey

ARCH = "s390x"
COMPOSE = """\
services:
  web:
    image: IMAGE
    command: [sh, -c, "mkdir /tmp/w; echo a word of web > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"]
  app:
    image: IMAGE
    depends_on: [web]
    command: [sh, -c, "wget -q -O - http://web:8080/; sleep 1000000"]
"""
TREE = tree_path(ARCH, home.directory() / "cache", format_list(listed(ARCH)[0]))
pytestmark = [
    pytest.mark.machines,
    pytest.mark.long,
    pytest.mark.skipif(
        not TREE.is_dir() and "CASEMATE_S390X" not in os.environ,
        reason="the cache has no root for s390x: make test-s390x builds it, in four minutes or more",
    ),
    pytest.mark.skipif(shutil.which("qemu-system-s390x") is None, reason="QEMU for s390x is not installed"),
]


@pytest.fixture(scope="module")
def image() -> Path:
    directory = image_directory(ARCH)  # the demo's: built once for both
    if not is_current(directory, arch=ARCH):
        build_image(directory, arch=ARCH)
    return directory


def test_an_archive_that_was_changed_is_refused_on_ibm_z(image: Path, tmp_path: Path) -> None:
    changed = bytearray((image / "root.squashfs").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed.squashfs").write_bytes(changed)
    certificate = (image / "encryption.crt").read_bytes()
    contract = parties.contract_of(*(parties.seal({"type": name}, certificate) for name in ("workload", "env")))
    outcome = attempt(
        Specification(
            *("z-changed-archive", image, contract),
            **{"archive": tmp_path / "changed.squashfs", "memory_mib": 1024, "root_size": 4 << 30},
        )
    )
    assert not outcome.ready
    assert outcome.reason.startswith("HPL11006E"), outcome.console


def test_services_find_each_other_the_boot_disk_is_left_alone_and_the_ultravisor_answers(
    image: Path, tmp_path: Path
) -> None:
    boot, certificate = tmp_path / "boot.disk", (image / "encryption.crt").read_bytes()
    with (image / "casemate.img").open("rb") as source, boot.open("wb") as target:
        disk.write(source, target, (image / "casemate.img").stat().st_size)
    with Registry.running(tmp_path / "registry") as registry, LogServer.running(tmp_path / "logs") as logs:
        container = f"{registry.host}/busybox@{registry.push(images.build(images.BUSYBOX, arch=ARCH), 'busybox')}"
        key = parties.new_key(2048)
        workload = parties.workload_section(
            COMPOSE.replace("IMAGE", container), registry=registry, seed=parties.new_seed()
        )
        env = parties.env_section(logs, registry=registry, seed=parties.new_seed(), signing_key=parties.public_pem(key))
        contract = parties.contract_of(
            *(parties.seal(section, certificate) for section in (workload, env)), signing_key=key
        )
        machine = up(
            Specification(
                *("z-services", image, contract),
                **{"data": (Data(tmp_path / "data.img", 512 << 20),), "memory_mib": 1024, "root_size": 4 << 30},
                more=(
                    *("-drive", f"if=none,id=boot,format=raw,readonly=on,file={boot}"),
                    *("-device", "virtio-blk-ccw,drive=boot"),
                ),
            )
        )
        try:
            assert "container/app" in logs.wait_for("a word of web")
            assert "HPL02001I: Volume data has been made" in machine.console()
            host = hostkey.load(SoftwareUltravisor.load_or_create().document)
            request, protection_key = attestation.create([host])
            answer = machine.attest(attestation.pack_request(request))
        finally:
            machine.down()
    with SoftwareUltravisor.load_or_create().open(image / "casemate.img") as opened:
        found = attestation.verify(attestation.unpack(answer), protection_key, opened.header)
    assert found.tag.hex() == json.loads((image / "image.json").read_text())["tag"]


def test_the_demo_holds_on_ibm_z(image: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    program = [
        sys.executable,
        "-c",
        "from casemate.cli import main; main()",
        "demo",
        "--arch",
        ARCH,
        "--keep",
        str(kept),
    ]
    done = subprocess.run(program, capture_output=True, timeout=2400, check=False)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, said[-4000:]
    assert "DEVELOPMENT TEE" in said
    kernel = json.loads((image / "image.json").read_text())["kernel"]
    assert kernel.endswith("-s390x")
    assert f"Linux version {kernel} " in (kept / "logs.txt").read_text()
