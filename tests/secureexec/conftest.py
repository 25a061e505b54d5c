"""Host keys, and the parts of a small image."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from casemate.secureexec import image
from casemate.secureexec.hostkey import HostKey

Key = ec.EllipticCurvePrivateKey
KERNEL, CMDLINE, INITRD = os.urandom(2 * 4096 + 77), b"console=ttyS0 quiet", os.urandom(3 * 4096)


@pytest.fixture(scope="session")
def host() -> Key:
    return ec.generate_private_key(ec.SECP521R1())


@pytest.fixture(scope="session")
def other() -> Key:
    return ec.generate_private_key(ec.SECP521R1())


@pytest.fixture(scope="session")
def small(host: Key, other: Key) -> bytes:
    """An image of seven pages for two hosts."""
    out = io.BytesIO()
    hosts = [HostKey(key.public_key()) for key in (other, host)]
    image.pack(out, kernel=KERNEL, cmdline=CMDLINE, initrd=io.BytesIO(INITRD), hosts=hosts)
    return out.getvalue()


@pytest.fixture(scope="session")
def parts() -> list[bytes]:
    return [KERNEL, CMDLINE, INITRD]


@pytest.fixture
def keys(tmp_path: Path, host: Key) -> Callable[[Key, str], None]:
    """Write ``NAME.key`` and ``NAME.pub``."""

    def write(key: Key, name: str) -> None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.key").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)

    return write


@pytest.fixture(scope="session")
def signed(host: Key) -> Callable[[Path], None]:
    """Write documents of the host, good and bad, and all that is above them."""
    import signed

    return lambda directory: signed.write(directory, host)
