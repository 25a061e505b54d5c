"""``machine up --network-config``: what the guest would refuse is said before the start, and ports lead to the static address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from casemate import cidata
from casemate.machine import cidata_disk, qemu
from casemate.machine.machines import _address
from program import Result

STATIC = b"network: {version: 2, ethernets: {enc1: {addresses: [10.0.2.77/24], gateway4: 10.0.2.2}}}\n"


def test_a_bad_network_config_is_told_with_its_place_before_anything_starts(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "contract.yaml").write_text("workload: a\nenv: b\n")
    (tmp_path / "network").write_text("network: {version: 2, ethernets: {enc1: {addresses: [10.0.2.77]}}}\n")
    done = run(
        *("machine", "up", "--image", "image", "--contract", "contract.yaml", "--network-config", "network"),
    )
    assert done.code == 1 and "enc1.addresses" in done.err and "192.0.2.7/24" in done.err


def test_the_network_config_goes_onto_the_volume_as_it_is() -> None:
    volume = cidata_disk.make(b"a", b"b", b"c", STATIC)
    assert cidata.read_volume(volume)["network-config"] == STATIC
    assert "network-config" not in cidata.read_volume(cidata_disk.make(b"a", b"b", b"c"))


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (STATIC, "10.0.2.77"),
        (None, ""),
        (b"network: {version: 2, ethernets: {enc1: {dhcp4: true}}}", ""),
        (STATIC.replace(b"10.0.2.", b"192.0.2."), ""),
        (b"{", ""),
    ],
)
def test_ports_lead_to_the_static_address(config: bytes | None, address: str) -> None:
    assert _address(config) == address
    guest = qemu.Guest(
        *("name", "amd64", 3, 4, "", [], [(8080, 80)], 1024, 1, Path("console"), Path("record"), 5, 6, 7),
        address=address,
    )
    assert f"user,id=net,hostfwd=tcp:127.0.0.1:8080-{address}:80" in qemu.command(guest, kvm=False)
