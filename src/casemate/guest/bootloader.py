"""The bootloader: the first program inside the TEE (white paper, 4.2.1); :mod:`casemate.guest.init` is the process that runs it.

What it does, at every start, in this order; the first thing that does not hold stops the machine:

1. reads the one volume labelled ``cidata`` once, whole, into memory, and compares a second reading with the first:
   a disk that answers differently is refused; only the first reading is ever used;
2. makes the encrypted root disk (:mod:`casemate.guest.rootdisk`), measuring the root archive while copying it;
3. opens the contract's tokens with the contract key;
4. writes and signs the attestation record, encrypts it for the auditor;
5. destroys both private keys: their files are overwritten and removed, and this process's memory ends with the
   ``exec`` of step 6, wiped by the kernel (``init_on_free=1``);
6. mounts the encrypted root and becomes its systemd. The initrd's files are gone by then.

Of a section it only sees that it is YAML (a token that opens to something else must fail as one that doesn't open).
What a section says is read by ``hpl-contract``, in a sandbox, when no key exists any more.
The image's keys and reference values come with the (encrypted, measured) initrd:
``/casemate/keys/{contract,attestation}.pem`` and ``/casemate/image.json``.

That is an image of the layer. Other kinds (:mod:`casemate.guest.kinds`) open no contract: a builder machine is given a build
configuration in its place (:mod:`casemate.guest.builderinput`), and keeps its keys for the one service that signs, in memory. The
machine of a ceremony has no key at all, and its record no signature: its service has the ultravisor measure what it says.
What else is baked into such an image, ``/casemate/public``, is named in its record with its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from casemate.guest import kernel
from casemate.guest.kernel import ARCHIVE_SERIAL, ROOT_SERIAL
from casemate.guest.kinds import CASEBUILD, Kind
from casemate.guest.report import Stop, announce
from casemate.guest.rootdisk import SMALLEST_ROOT_DISK, RootDisk, is_free
from casemate.luks.policy import DATA_START

if TYPE_CHECKING:
    from casemate.guest.builderinput import Given
    from casemate.secureexec.attestation import Attested

BAKED = Path("/casemate")
RUN = Path("/run/casemate")
ROOT = "/sysroot"
RECORD_PORT = "casemate.record"
LEAST_MEMORY_MIB = 900
CIDATA_LIMIT = 16 << 20
PROBE = 64 << 10
DEVELOPMENT = "DEVELOPMENT (software ultravisor: no protection from whoever owns the host)"


@dataclass(frozen=True, slots=True)
class Opened:
    """The contract with its tokens opened: for each section the exact string that stands in it, and its text."""

    sealed: dict[str, str]
    plain: dict[str, bytes]
    signature: str | None
    tokens: int


# ---------------------------------------------------------------------------------------------- cidata


def read_cidata(candidates: list[kernel.Disk]) -> bytes:
    """Return the bytes of the one cidata volume among the disks.

    Each disk's first 64 KiB are looked at to find it; the whole is then read once, and once more to compare.
    """
    from casemate import cidata

    found: list[tuple[kernel.Disk, bytes]] = []
    for disk in candidates:
        start = _read_disk(disk, min(PROBE, disk.size))
        if (cidata.label(start) or "").lower() == "cidata":
            found.append((disk, start))
    if not found:
        raise Stop("HPL11004E", "no volume labelled cidata is attached: the machine has no contract")
    if len(found) > 1:
        names = ", ".join(disk.name for disk, _ in found)
        raise Stop("HPL11004E", f"{len(found)} volumes labelled cidata are attached ({names}): which one is meant?")
    disk, start = found[0]
    if disk.size > CIDATA_LIMIT:
        raise Stop("HPL11004E", f"the cidata volume has {disk.size} bytes, more than {CIDATA_LIMIT}")
    whole = _read_disk(disk, disk.size)
    if not whole.startswith(start) or _read_disk(disk, disk.size) != whole:
        raise Stop("HPL11005E", "the cidata volume answered differently when it was read again")
    return whole


def _read_disk(disk: kernel.Disk, size: int, start: int = 0) -> bytes:
    """Read from the device itself: its pages in the kernel's cache are dropped before."""
    descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        parts, done = [], 0
        while done < size:
            part = os.pread(descriptor, min(1 << 20, size - done), start + done)
            if not part:
                break
            parts.append(part)
            done += len(part)
        return b"".join(parts)
    except OSError as error:
        raise Stop("HPL11004E", f"disk {disk.name} can't be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------- contract


def trust_own_keys() -> None:
    """Spare the check of a private key's numbers at loading, 2 s each on an emulated processor.

    The keys were made with the image and come authenticated with it. Debian 12's ``cryptography`` has the switch on its
    backend; newer ones (from 39 on) take it as an argument, so without it loading is only slower.
    """
    from cryptography.hazmat.backends.openssl.backend import backend

    if hasattr(backend, "_rsa_skip_check_key"):
        backend._rsa_skip_check_key = True


def _load_auditor(plain: bytes) -> object:
    from casemate.contract.keys import load_public_key, pem_of

    return load_public_key(pem_of(plain))


def open_contract(user_data: bytes, key_pem: bytes) -> Opened:
    """Open every token of the contract. One sentence for all that can be wrong with a token: no oracle."""
    from casemate.contract.document import parse_contract, parse_section
    from casemate.contract.token import is_token, load_private_key, open_token
    from casemate.errors import CasemateError

    try:
        contract = parse_contract(user_data)
    except CasemateError as error:
        raise Stop("HPL11001E", f"the contract is not one: {error}") from None
    sealed = {"workload": contract.workload, "env": contract.env}
    if contract.attestation_public_key is not None:
        sealed["attestationPublicKey"] = contract.attestation_public_key
    key = load_private_key(key_pem)
    plain: dict[str, bytes] = {}
    tokens = 0
    for name, text in sealed.items():
        if not is_token(text):
            plain[name] = text.encode()
            continue
        # What makes no sense fails as what doesn't open does: nobody learns from a start whether a padding was right.
        accept = _load_auditor if name == "attestationPublicKey" else parse_section
        try:
            token = open_token(text, key, accept)
        except CasemateError:
            raise Stop("HPL11007E", f"{name} can't be opened: damaged, or sealed for another image") from None
        if token.short_password:
            announce(f"# HPL11008W: the token of {name} has a short password; seal it again with another tool")
        plain[name] = token.plain
        tokens += 1
    return Opened(sealed, plain, contract.envworkload_signature, tokens)


def expiry(until: float, now: float) -> str | None:
    """Return what is to be said of the end of the encryption certificate, which came with the image; the machine goes on."""
    from casemate.contract.keys import WARN_DAYS

    day = time.strftime("%Y-%m-%d", time.gmtime(until))
    if now > until:
        return f"# HPL12013W: the encryption certificate of this image expired on {day}; seal for a newer image"
    if until - now < WARN_DAYS * 86400:
        return f"# HPL12011W: the encryption certificate of this image expires on {day}; seal for a newer image"
    return None


# ---------------------------------------------------------------------------------------------- record


def make_record(image: dict[str, Any], hashes: list[tuple[str, str]], now: float, attested: Attested | None) -> bytes:
    """Return the text of ``se-checksums.txt`` (``docs/formats/attestation-record.md``).

    ``hashes``: what was given, by name. ``attested``: the ultravisor's word.
    """
    from casemate.attestation import record

    facts = [*_machine_facts(), ("Image age", _age(float(image["created"]), now))]
    if attested is not None:
        facts.append((record.CUID, f"0x{attested.cuid.hex()}"))
    if host := _host(image["hosts"], attested):
        facts.append((record.HOST_KEY, host["document"]))
        facts.append((record.HOST_KEY_VALID, host["valid_until"]))
    own = []
    if attested is not None and attested.firmware:
        own.append((record.FIRMWARE, hashlib.sha256(attested.firmware).hexdigest()))
    own += [("root.tar.gz", image["root_sha256"]), ("baseimage", image["baseimage"]), ("sbom", image["sbom"])]
    return record.build(image["version"], facts, [*own, *hashes])


def contract_lines(volume: bytes, files: dict[str, bytes], opened: Opened) -> list[tuple[str, str]]:
    """Return the lines of a record that speak of the cidata volume and the contract, names and hashes."""
    parts = [("/dev/disk/by-label/cidata", volume)]
    parts += [(f"cidata/{name}", files[name]) for name in ("meta-data", "user-data", "vendor-data")]
    parts += [(f"contract:{name}", text.encode()) for name, text in opened.sealed.items()]
    return [(name, hashlib.sha256(data).hexdigest()) for name, data in parts]


def baked_lines(directory: Path) -> list[tuple[str, str]]:
    """Return the lines of a record that speak of the files that were baked into an image, names and hashes."""
    return [
        (f"baked:{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(directory.glob("*"))
    ]


def _host(hosts: list[dict[str, str]], attested: Attested | None) -> dict[str, str] | None:
    """Return the host whose key opened the image: as the ultravisor says, else the only one that could."""
    if attested is not None and attested.image_host_key:
        same = [one for one in hosts if hashlib.sha256(bytes.fromhex(one["key"])).digest() == attested.image_host_key]
        return same[0] if same else None
    return hosts[0] if len(hosts) == 1 else None


def ask_ultravisor(hosts: list[dict[str, str]]) -> Attested | None:
    """Return what the ultravisor tells of this machine; nothing where it does not answer: then the record says nothing.

    Whoever owns the host can keep it from answering; a verifier sees the lines missing.
    """
    from casemate.errors import CasemateError
    from casemate.guest import ultravisor
    from casemate.secureexec.hostkey import HostKey, from_coordinates

    try:
        if ultravisor.protected() and not ultravisor.DEVICE.exists():
            kernel.run("modprobe", "uvdevice")
        return ultravisor.identify([HostKey(from_coordinates(bytes.fromhex(host["key"]))) for host in hosts])
    except (CasemateError, ultravisor.NoUltravisor, OSError, EOFError, ValueError) as error:
        announce(f"# HPL11010W: the ultravisor tells nothing of this machine: {str(error) or type(error).__name__}")
        return None


def _machine_facts() -> list[tuple[str, str]]:
    """What is known of the machine. Only an ultravisor of IBM Z says that a guest is protected."""
    from casemate.guest.ultravisor import protected

    if protected():
        said = dict(line.split(":", 1) for line in Path("/proc/sysinfo").read_text().splitlines() if ":" in line)
        parts = (said.get(name, "").strip() for name in ("Type", "Plant", "Sequence Code"))
        return [("Machine Type/Plant/Serial", "/".join(parts))]
    return [("TEE", DEVELOPMENT), ("Machine Type/Plant/Serial", "none/none/none")]


def _age(created: float, now: float) -> str:
    days = max(0, int((now - created) // 86400))
    return f"{days} days since creation."


def write_record(
    directory: Path, text: bytes, key_pem: bytes | None, auditor: bytes | None, version: str
) -> dict[str, bytes]:
    """Sign the record where there is a key, encrypt it where the contract has an auditor's, write the files; return them."""
    from casemate.attestation import record
    from casemate.contract.keys import pem_of
    from casemate.contract.token import seal
    from casemate.errors import CasemateError

    files = {"se-version": version.encode()}
    if key_pem is not None:
        files["se-signature.bin"] = record.sign(text, key_pem)
    if auditor is None:
        files["se-checksums.txt"] = text
    else:
        try:
            files["se-checksums.txt.enc"] = seal(text, pem_of(auditor)).encode()
        except CasemateError as error:
            raise Stop("HPL11002E", f"the record can't be encrypted for attestationPublicKey: {error.cause}") from None
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return files


def leave_user_data(text: bytes, directory: Path) -> None:
    """Leave for ``hpl-attestation`` what ties a measurement of this machine to its record."""
    from casemate.attestation.machine import user_data

    (directory / "attestation").write_bytes(user_data(text))
    (directory / "attestation").chmod(0o600)


def send_record(files: dict[str, bytes]) -> None:
    """Offer the public record on the virtio port ``casemate.record``, where the machine has one: one line of JSON."""
    from base64 import b64encode

    from casemate.guest.ultravisor import port

    line = json.dumps({name: b64encode(content).decode() for name, content in files.items()}) + "\n"
    if (device := port(RECORD_PORT)) is not None:
        try:
            descriptor = os.open(device, os.O_WRONLY | os.O_NONBLOCK)
            os.write(descriptor, line.encode())
            os.close(descriptor)
        except OSError:
            announce("the record could not be offered on its port")  # it stays in /var/hyperprotect


# ---------------------------------------------------------------------------------------------- handing over


def hostname(meta_data: bytes) -> str:
    """Return ``local-hostname`` of the meta-data where it is a host name, else ``casemate``."""
    for line in meta_data.decode("utf-8", "replace").splitlines()[:100]:
        key, _, value = line.partition(":")
        value = value.strip().strip("\"'")
        if key.strip() == "local-hostname" and re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", value):
            return value
    return "casemate"


def hand_over(opened: Opened, directory: Path) -> None:
    """Leave the opened contract where the Hyper Protect Layer looks for it, in memory only."""
    directory.mkdir(mode=0o700, parents=True)
    directory.with_name(f"{directory.name}-public").mkdir(mode=0o755)
    contract = directory / "contract"
    contract.mkdir(mode=0o700)
    contents = dict(opened.plain)
    contents |= {f"sealed-{name}": opened.sealed[name].encode() for name in ("workload", "env")}
    if opened.signature is not None:
        contents["envWorkloadSignature"] = opened.signature.encode()
    for name, content in contents.items():
        (contract / name).write_bytes(content)
        (contract / name).chmod(0o600)


def keep_for_service(given: Given | None, directory: Path) -> None:
    """Leave keys, baked files and input of a machine that is none of the layer where its service looks for them: memory only."""
    directory.mkdir(mode=0o700, parents=True)
    for name in ("keys", "public"):
        (directory / name).mkdir(mode=0o700)
        for path in (BAKED / name).glob("*"):
            target = directory / name / path.name
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(path.read_bytes())
    (directory / "image.json").write_bytes((BAKED / "image.json").read_bytes())
    if given is not None:
        given.hand_over(directory)


def destroy_keys(directory: Path) -> None:
    """Overwrite and remove the private keys of the image."""
    for path in directory.iterdir():
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))
        path.unlink()
    directory.rmdir()


def become_root(root: str, kind: Kind) -> NoReturn:
    """Move the kernel's file systems over, and become the systemd of the root.

    The files of the initrd stay in memory, out of reach: 30 MiB, public, since the keys are gone. To wipe pages whose code
    has run takes an emulator seconds, in which nothing else can happen.
    """
    for name in ("dev", "proc", "sys", "run"):
        kernel.mount(f"/{name}", f"{root}/{name}", flags=kernel.MS_MOVE)
    os.chdir(root)
    kernel.mount(".", "/", flags=kernel.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    systemd = "/usr/lib/systemd/systemd"
    os.execve(systemd, [systemd, f"--unit={kind.target}"], {"PATH": "/usr/sbin:/usr/bin"})  # noqa: S606


# ---------------------------------------------------------------------------------------------- the story


def boot(image: dict[str, Any], kind: Kind) -> None:
    """Do everything of this module's list up to ``exec``. The kernel's file systems and the drivers are there."""
    if (memory := kernel.memory_mib()) < LEAST_MEMORY_MIB:
        raise Stop("HPL11003E", f"the machine has {memory} MiB of memory, it needs a machine of 1024 MiB")
    archive, disk = kernel.wait_for_disk(ARCHIVE_SERIAL, 10), kernel.wait_for_disk(ROOT_SERIAL, 1)
    serials = [each.serial for each in kernel.disks()]
    for serial in (ARCHIVE_SERIAL, ROOT_SERIAL):
        if serials.count(serial) > 1:
            raise Stop("HPL11009E", f"two disks with the serial number {serial} are attached: which one is meant?")
    if archive is None or disk is None:
        missing = ARCHIVE_SERIAL if archive is None else ROOT_SERIAL
        raise Stop("HPL11009E", f"no disk with the serial number {missing} is attached")
    if disk.size < max(SMALLEST_ROOT_DISK, 4 * image["root_size"]):
        raise Stop("HPL11009E", f"the root disk has {disk.size >> 20} MiB, too few")
    others = [d for d in kernel.disks() if d.name not in (archive.name, disk.name)]
    volume = read_cidata(others) if kind.opens else b""
    given = None
    if kind.input == CASEBUILD:
        from casemate.guest import builderinput

        given = builderinput.find(others, _read_disk)

    if not is_free(_read_disk(disk, PROBE), _read_disk(disk, PROBE, DATA_START)):
        raise Stop(
            "HPL11009E", f"the root disk {disk.name} holds something else than a root of ours, and is left as it is"
        )
    root = RootDisk(disk, archive, image["root_size"], image["root_sha256"])
    announce("# create new root partition...")
    announce("# encrypt root partition...")
    root.encrypt()
    announce("# write OS to root disk...")
    root.start()

    trust_own_keys()
    if kind.opens:
        _start_layer(image, volume, root)
    else:
        _start_service(image, kind, given, root)
    announce("# HPL11099I: bootloader end")


def _start_layer(image: dict[str, Any], volume: bytes, root: RootDisk) -> None:
    announce("# decrypt user-data...")
    from casemate import cidata
    from casemate.errors import CasemateError

    try:
        files = cidata.read_volume(volume)
    except CasemateError as error:
        raise Stop("HPL11004E", f"the cidata volume is damaged: {error}") from None
    if "user-data" not in files:
        raise Stop("HPL11004E", "the cidata volume has no user-data: the machine has no contract")
    for name in ("meta-data", "vendor-data"):
        files.setdefault(name, b"")
    keys = BAKED / "keys"
    opened = open_contract(files["user-data"], (keys / "contract.pem").read_bytes())
    announce(f"{opened.tokens} token decrypted, 0 encrypted token ignored")
    if warning := expiry(image["contracts_until"], time.time()):
        announce(warning)
    hand_over(opened, RUN)
    public = _mount_root(root)
    (public / "cidata").mkdir()
    for name in ("meta-data", "vendor-data"):
        (public / "cidata" / name).write_bytes(files[name])
    auditor = opened.plain.get("attestationPublicKey")
    _attest(image, contract_lines(volume, files, opened), public, auditor, signs=True)
    announce("# set hostname...")
    socket.sethostname(hostname(files["meta-data"]))
    announce("# finish root disk setup...")
    if "network-config" in files:
        (RUN / "network-config").write_bytes(files["network-config"])


def _start_service(image: dict[str, Any], kind: Kind, given: Given | None, root: RootDisk) -> None:
    keep_for_service(given, RUN)
    public = _mount_root(root)
    lines = [*(given.lines() if given is not None else []), *baked_lines(BAKED / "public")]
    _attest(image, lines, public, None, signs=kind.signs)
    socket.sethostname("casemate")
    announce("# finish root disk setup...")


def _mount_root(root: RootDisk) -> Path:
    announce("# create root filesystem...")
    root.make_state()
    root.finish()
    Path(ROOT).mkdir(exist_ok=True)
    root.mount(ROOT)
    public = Path(ROOT, "var/hyperprotect")
    public.mkdir(parents=True)
    return public


def _attest(
    image: dict[str, Any], lines: list[tuple[str, str]], public: Path, auditor: bytes | None, *, signs: bool
) -> None:
    announce("# run attestation...")
    keys = BAKED / "keys"
    text = make_record(image, lines, time.time(), ask_ultravisor(image["hosts"]))
    leave_user_data(text, RUN)
    key = (keys / "attestation.pem").read_bytes() if signs else None
    record = write_record(public, text, key, auditor, image["version"])
    destroy_keys(keys)
    send_record(record)
