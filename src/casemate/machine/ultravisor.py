"""The software ultravisor: does for a development machine what firmware does on IBM Z, except protect it.

It holds a host key, opens and verifies an encrypted image with the same format and the same checks, and hands kernel and
initrd to QEMU in sealed anonymous memory: nothing of them is written to a disk. **It protects from nobody who owns
the host**: root here can read the host key and the guest's memory. Records made under it say so.

While its guest runs, it measures for it, as firmware does for a guest that asks ``/dev/uv``: :func:`attach` starts a process for
one machine, which ends with it, and returns the other end of its line. Files of an attestation go to and fro
(:mod:`casemate.secureexec.attestation`): a request with the guest's user data, and its answer, or an empty one.

    python -P -m casemate.machine.ultravisor DESCRIPTOR DIRECTORY < header
"""

from __future__ import annotations

import datetime
import fcntl
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from casemate.errors import CasemateError
from casemate.machine import home

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from casemate.secureexec.attestation import Configuration
    from casemate.secureexec.header import Header

_SEALS = 0x0008 | 0x0004 | 0x0002 | 0x0001  # no write, no grow, no shrink, no further seals (linux/fcntl.h)
_ADD_SEALS = 1033


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """What was in an image: descriptors of sealed memory, the command line, and the header that was verified."""

    kernel: int
    initrd: int
    cmdline: str
    header: Header


@dataclass(frozen=True, slots=True)
class SoftwareUltravisor:
    """A software ultravisor whose host key is kept in a directory, readable by its owner only."""

    directory: Path

    @classmethod
    def load_or_create(cls, directory: Path | None = None) -> SoftwareUltravisor:
        """Return this user's ultravisor; make its host key and host key document on first use."""
        directory = directory or home.directory() / "host"
        if not (directory / "host.crt").is_file():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".host-", dir=directory.parent) as work:
                new = Path(work) / "host"
                new.mkdir(mode=0o700)
                _make_host_key(new)
                try:
                    new.rename(directory)
                except OSError:
                    if not (directory / "host.crt").is_file():  # else another process was faster
                        raise
        return cls(directory)

    @property
    def document(self) -> bytes:
        """The host key document, PEM."""
        return (self.directory / "host.crt").read_bytes()

    @contextmanager
    def open(self, path: Path) -> Iterator[OpenedImage]:
        """Open and verify the image at ``path``; its parts live in memory until the context ends.

        Raises :class:`casemate.secureexec.errors.ImageError` and gives out nothing where anything does not hold.
        """
        from casemate.secureexec import hostkey, image

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        host = hostkey.load_private((self.directory / "host.key").read_bytes())
        parts: dict[str, BinaryIO] = {}

        def sink(name: str, size: int) -> BinaryIO:
            descriptor = os.memfd_create(f"casemate-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            parts[name] = os.fdopen(descriptor, "w+b")
            return parts[name]

        try:
            try:
                file = path.open("rb")
            except OSError as error:
                raise CasemateError(
                    f"the image can't be read: {error.strerror}",
                    "casemate image build DIR makes one",
                    str(path),
                    id="IMAGE-NOT-FOUND",
                ) from None
            with file:
                contents = image.open_image(file, host, sink)
            for part in parts.values():
                part.flush()
                part.seek(0)
                fcntl.fcntl(part.fileno(), _ADD_SEALS, _SEALS)
            if "initrd" not in parts:
                raise CasemateError("the image has no initrd, and so no bootloader", id="IMAGE-NO-BOOTLOADER")
            try:
                cmdline = parts["cmdline"].read().decode("ascii")
            except UnicodeDecodeError:
                raise CasemateError("the image's command line is not ASCII", id="IMAGE-CMDLINE") from None
            yield OpenedImage(parts["kernel"].fileno(), parts["initrd"].fileno(), cmdline, contents.header)
        finally:
            for part in parts.values():
                part.close()

    def attach(self, header: Header) -> socket.socket:
        """Start what measures for one machine of the image with this header, and return the machine's end of the line."""
        ours, theirs = socket.socketpair()
        with ours:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "casemate.machine.ultravisor",
                    str(ours.fileno()),
                    str(self.directory.absolute()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[ours.fileno()],
            )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(header.raw)
        return theirs


def serve(line: socket.socket, directory: Path, header: Header) -> None:
    """Answer what a guest asks, one file after the other, until the line ends."""
    import secrets

    from casemate.secureexec import attestation, hostkey

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    host = hostkey.load_private((directory / "host.key").read_bytes())
    own = hostkey.HostKey(host.public_key()).fingerprint
    configuration = attestation.Configuration(header, secrets.token_bytes(attestation.CUID), own)
    with line.makefile("rwb") as files:
        while len(start := files.read(attestation.START)) == attestation.START:
            rest = files.read(attestation.file_size(start) - len(start))
            files.write(_measured(start + rest, host, configuration))
            files.flush()


def _measured(data: bytes, host: EllipticCurvePrivateKey, configuration: Configuration) -> bytes:
    from casemate.secureexec import attestation

    try:
        asked = attestation.unpack(data)
        return attestation.pack_answer(attestation.perform(asked.request, host, configuration, asked.user_data))
    except CasemateError:
        return attestation.REFUSAL


def main() -> int:
    """Measure for one machine. A line that carries no files ends it: the guest gets no answer any more."""
    from casemate.secureexec import header as headers

    descriptor, directory = int(sys.argv[1]), Path(sys.argv[2])
    header = headers.parse(sys.stdin.buffer.read())
    with socket.socket(fileno=descriptor) as line:
        try:
            serve(line, directory, header)
        except (CasemateError, OSError):
            return 1
    return 0


def _make_host_key(directory: Path) -> None:
    """Make a host key, and a document for it signed by a signing key that is forgotten at once."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    host, signing = ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP521R1())
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    names = [
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Casemate"),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "DEVELOPMENT, no protection"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )
        for common in ("Software ultravisor host key", "Development host-key signing key")
    ]
    document = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(host.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(signing, hashes.SHA512())
    )
    with os.fdopen(os.open(directory / "host.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(host.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (directory / "host.crt").write_bytes(document.public_bytes(Encoding.PEM))


if __name__ == "__main__":
    raise SystemExit(main())
