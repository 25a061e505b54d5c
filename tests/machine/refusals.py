"""What real machines refuse: each entry makes one machine that must stop, and names the message that says why."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import two_faces
from cryptography.hazmat.primitives.asymmetric import rsa

from casemate.contract.document import LARGEST, Contract, parse_contract, write_contract
from casemate.contract.passphrase import passphrase
from casemate.demo import images, parties
from casemate.demo.pki import Authority
from casemate.demo.services import LogServer, free_port
from casemate.luks.policy import DATA_START, OURS
from casemate.machine import cidata_disk
from casemate.machine.machines import Specification
from signers import Door

if TYPE_CHECKING:
    from surroundings import World

Make = Callable[["World", ExitStack], Specification]


@dataclass(frozen=True)
class Refusal:
    """Which message ends the machine, and how to make it."""

    id: str
    make: Make


REFUSALS: dict[str, Refusal] = {}


def refusal(id: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        REFUSALS[make.__name__] = Refusal(id, make)
        return make

    return add


def _name(make: str) -> str:
    return f"t-{make.replace('_', '-')}"[:32].rstrip("-")


def _raw_disk(path: Path) -> tuple[str, ...]:
    node = {"driver": "raw", "node-name": "more", "read-only": True, "file": {"driver": "file", "filename": str(path)}}
    return ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=more")


# ------------------------------------------------------------------------------------------------- the contract


@refusal("HPL11004E")
def no_contract(world: World, stack: ExitStack) -> Specification:
    return world.specification(_name("no_contract"), cidata=bytes(1 << 20))


@refusal("HPL11001E")
def a_contract_larger_than_is_read(world: World, stack: ExitStack) -> Specification:
    good = world.contract()
    contract = good + b"#" * (LARGEST + 1 - len(good))
    return world.specification(_name("too_large"), contract, data=(world.data("large"),))


@refusal("HPL11007E")
def a_contract_for_another_image(world: World, stack: ExitStack) -> Specification:
    other = parties.public_pem(rsa.generate_private_key(public_exponent=65537, key_size=4096))
    contract = parties.contract_of(parties.seal(world.workload(), other), parties.seal(world.env(), other))
    return world.specification(_name("another_image"), contract)


@refusal("HPL12001E")
def a_section_replaced(world: World, stack: ExitStack) -> Specification:
    """And the host offers systemd a setting through the firmware's tables, which would end the machine at once."""
    good = parse_contract(world.contract())
    evil = f"services:\n  evil:\n    image: {world.container}\n"
    foreign = parties.seal(world.workload(evil), world.certificate)
    contract = write_contract(Contract(foreign, good.env, None, good.envworkload_signature))
    line = "dyAvcHJvYy9zeXNycS10cmlnZ2VyIC0gLSAtIC0gbwo="  # w /proc/sysrq-trigger - - - - o
    table = ("-smbios", f"type=11,value=io.systemd.credential.binary:tmpfiles.extra={line}")
    return world.specification(_name("section_replaced"), contract, data=(world.data("section"),), more=table)


@refusal("HPL12001E")
def a_signature_missing(world: World, stack: ExitStack) -> Specification:
    good = parse_contract(world.contract())
    contract = write_contract(Contract(good.workload, good.env, None, None))
    return world.specification(_name("signature_missing"), contract, data=(world.data("missing"),))


@refusal("HPL12001E")
def a_signature_by_another_key(world: World, stack: ExitStack) -> Specification:
    good = parse_contract(world.contract())
    contract = parties.contract_of(good.workload, good.env, signing_key=parties.new_key(2048))
    return world.specification(_name("signature_wrong"), contract, data=(world.data("wrong"),))


@refusal("HPL07001E")
def one_seed_missing(world: World, stack: ExitStack) -> Specification:
    contract = world.contract(env=world.env(seed=False))
    return world.specification(_name("seed_missing"), contract, data=(world.data("seed"),))


# ------------------------------------------------------------------------------------------------- the cidata disk


@refusal("HPL11004E")
def two_cidata_disks(world: World, stack: ExitStack) -> Specification:
    path = world.directory / "second-cidata.img"
    path.write_bytes(cidata_disk.make(world.contract(), b"", b""))
    return world.specification(_name("two_cidata"), more=_raw_disk(path))


@refusal("HPL11005E")
def a_cidata_disk_with_two_faces(world: World, stack: ExitStack) -> Specification:
    first = cidata_disk.make(world.contract(), b"local-hostname: one\n", b"")
    later = first.replace(b"local-hostname: one\n", b"local-hostname: two\n")
    assert later != first
    path = world.directory / "faces"
    stack.enter_context(two_faces.disk(path, first, later))
    node = {"driver": "nbd", "server": {"type": "unix", "path": str(path)}, "node-name": "more", "read-only": True}
    more = ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=more")
    return world.specification(_name("two_faces"), cidata=bytes(1 << 20), more=more)


# ------------------------------------------------------------------------------------------------- the image's disks


@refusal("HPL11006E")
def a_root_archive_changed_by_one_byte(world: World, stack: ExitStack) -> Specification:
    changed = world.directory / "changed.squashfs"
    shutil.copyfile(world.image / "root.squashfs", changed)
    changed.chmod(0o600)
    with changed.open("r+b") as file:
        file.seek(changed.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return world.specification(_name("root_changed"), archive=changed, data=(world.data("root"),))


@refusal("HPL11003E")
def too_little_memory(world: World, stack: ExitStack) -> Specification:
    return world.specification(_name("memory"), memory_mib=512)


# ------------------------------------------------------------------------------------------------- network-config


@refusal("HPL14003E")
def a_network_config_that_is_not_understood(world: World, stack: ExitStack) -> Specification:
    evil = b"network: {version: 2, ethernets: {enc1: {addresses: ['10.0.2.15/24\\nDNS=192.0.2.1'], dhcp4: false}}}\n"
    return world.specification(_name("network_config"), network_config=evil, data=(world.data("network-config"),))


# ------------------------------------------------------------------------------------------------- data disks


def _volume(world: World, path: Path, key: str, attack: str | None = None) -> None:
    """Write the headers of a volume to a disk, as the guest would, or as an attacker would change them."""
    from attacks import ATTACKS
    from luksvolumes import luks_format

    made = luks_format(path.with_suffix(".luks"))
    area = made.read_bytes()[: OURS.offset]
    if attack is not None:
        area = ATTACKS[attack](area)
    with path.open("r+b") as file:
        file.seek(DATA_START)
        file.write(area)


@refusal("HPL02003E")
def a_data_disk_of_another_contract(world: World, stack: ExitStack) -> Specification:
    key = passphrase(parties.new_seed(), parties.new_seed())
    data = world.data("another", lambda path: _volume(world, path, key))
    return world.specification(_name("another_disk"), data=(data,))


@refusal("HPL02123E")
def a_data_disk_with_something_else(world: World, stack: ExitStack) -> Specification:
    data = world.data("else", lambda path: path.open("r+b").write(b"somebody's data") and None)
    return world.specification(_name("something_else"), data=(data,))


def _with_header(attack: str, name: str) -> None:
    def make(world: World, stack: ExitStack) -> Specification:
        data = world.data(name, lambda path: _volume(world, path, "", attack))
        return world.specification(_name(name), data=(data,))

    make.__name__ = name
    refusal("HPL07016E")(make)


for _attack, _short in {
    "a null cipher in the segment": "null_cipher_segment",  # CVE-2025-59054
    "a null cipher in the key slot": "null_cipher_slot",
    "a key of the attacker's choice": "attackers_key",  # CVE-2025-58356
    "a foreign key slot": "foreign_key_slot",
    "a foreign digest": "foreign_digest",
    "a second segment": "second_segment",
    "a re-encryption under way": "reencryption",  # CVE-2021-4122
}.items():
    _with_header(_attack, _short)


# ------------------------------------------------------------------------------------------------- the network


@refusal("HPL01011E")
def a_log_server_out_of_reach(world: World, stack: ExitStack) -> Specification:
    env = world.env()
    env["logging"]["syslog"]["port"] = free_port()
    return world.specification(_name("no_log_server"), world.contract(env=env), data=(world.data("log"),))


@refusal("HPL01011E")
def an_impostor_of_the_log_server(world: World, stack: ExitStack) -> Specification:
    impostor = stack.enter_context(
        LogServer.running(world.directory / "impostor", authority=Authority.create("Log authority"))
    )
    env = world.env()
    env["logging"]["syslog"]["port"] = impostor.port
    return world.specification(_name("impostor"), world.contract(env=env), data=(world.data("impostor"),))


@refusal("HPL06004E")
def a_wrong_password_for_the_registry(world: World, stack: ExitStack) -> Specification:
    workload = world.workload()
    workload["auths"][world.registry.host]["password"] = "wrong"
    return world.specification(_name("password"), world.contract(workload), data=(world.data("password"),))


@refusal("HPL06004E")
def a_registry_that_goes_away_between_two_pulls(world: World, stack: ExitStack) -> Specification:
    door = stack.enter_context(Door.running(world.registry, world.directory / "door"))
    for name in ("first", "second"):
        world.registry.push(images.build(images.BUSYBOX), name)
    door.away["/v2/second/"] = 0.0
    digest = world.container.rpartition("@")[2]
    lines = (f"  {name}: {{image: '{door.there}/{name}@{digest}'}}\n" for name in ("first", "second"))
    workload = world.workload("services:\n" + "".join(lines))
    workload["auths"] = {door.there: workload["auths"][world.registry.host]}
    env = world.env()
    env["cacerts"] = [{"both": base64.b64encode(world.registry.authority + door.authority).decode()}]
    return world.specification(_name("between_pulls"), world.contract(workload, env), data=(world.data("pulls"),))


@refusal("HPL06004E")
def an_image_with_another_digest(world: World, stack: ExitStack) -> Specification:
    """The registry lies: under the digest that the contract names it gives another manifest."""
    blobs = world.registry.directory / "data/docker/registry/v2"
    true = world.container.rpartition("sha256:")[2]
    false = "ab" * 32
    links = blobs / "repositories/busybox/_manifests/revisions/sha256"
    shutil.copytree(links / true, links / false)
    (links / false / "link").write_text(f"sha256:{false}")
    shutil.copytree(blobs / f"blobs/sha256/{true[:2]}/{true}", blobs / f"blobs/sha256/{false[:2]}/{false}")
    compose = f"services:\n  app:\n    image: {world.registry.host}/busybox@sha256:{false}\n"
    return world.specification(_name("digest"), world.contract(world.workload(compose)), data=(world.data("digest"),))
