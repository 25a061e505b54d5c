"""What the library of the tools for IBM Z (the crate ``s390_pv``, s390-tools' own code) says of our files, and ours of its.

The program beside (``realtools/``) is built with cargo from its lock file: minutes, and from a registry of crates. So these tests
run where that was done before, or is asked for: ``make realtools``.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from casemate.errors import CasemateError
from casemate.machine import home
from casemate.secureexec import attestation, documents, header
from casemate.secureexec.hostkey import HostKey

SOURCE = Path(__file__).parent / "realtools"
Tool = Callable[..., list[str] | None]


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Run the program: its lines, or nothing where the library refuses."""
    target = home.directory() / "cache/realtools"
    program = target / "debug/realtools"
    cargo = shutil.which("cargo")
    version = (
        re.search(r"1\.(\d+)", subprocess.run([cargo, "-V"], capture_output=True, text=True).stdout) if cargo else None
    )
    if cargo is None or version is None or int(version[1]) < 75:
        pytest.skip("needs cargo 1.75 or newer")
    if not program.exists() and not os.environ.get("CASEMATE_REALTOOLS"):
        pytest.skip("`make realtools` builds the program first")
    subprocess.run(
        [cargo, "build", "--quiet", "--locked", "--manifest-path", str(SOURCE / "Cargo.toml")],
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=True,
    )

    def run(*words: object) -> list[str] | None:
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 3), done.stderr
        return done.stdout.splitlines() if done.returncode == 0 else None

    return run


@pytest.fixture
def opened(small: bytes, host: ec.EllipticCurvePrivateKey) -> header.Header:
    import io

    from casemate.secureexec import image

    found = image.read_clear(io.BytesIO(small)).header
    header.open_secrets(found, host)
    return found


def test_it_reads_the_measures_of_an_image_of_ours(
    tool: Tool, small: bytes, opened: header.Header, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(small)
    assert tool("tags", tmp_path / "image") == [part.hex() for part in (opened.pld, opened.ald, opened.tld, opened.tag)]
    (tmp_path / "none").write_bytes(small[:1000])
    assert tool("tags", tmp_path / "none") is None


@pytest.mark.parametrize("letters", ["-", "i", "a", "f", "ia", "iasf"])
def test_its_requests_are_answered_and_it_computes_the_same_measurement(
    tool: Tool,
    small: bytes,
    opened: header.Header,
    host: ec.EllipticCurvePrivateKey,
    signed: Callable[[Path], None],
    tmp_path: Path,
    letters: str,
) -> None:
    signed(tmp_path)
    flags = letters.strip("-")
    size = tool("request", tmp_path / "request", tmp_path / "key", flags, tmp_path / "host.crt")
    own = HostKey(host.public_key()).fingerprint
    configuration = attestation.Configuration(opened, bytes(range(16)), own)
    user = hashlib.sha256(b"a record").digest()
    answer = attestation.perform((tmp_path / "request").read_bytes(), host, configuration, user)
    assert size == [str(len(answer.additional))]
    verified = attestation.verify(answer, (tmp_path / "key").read_bytes(), opened)
    for name, data in (
        *(("image", small), ("cuid", answer.cuid), ("user", user)),
        ("additional", answer.additional),
    ):
        (tmp_path / name).write_bytes(data)
    names = [tmp_path / name for name in ("image", "request", "key", "cuid", "user", "additional")]
    said = tool("measure", *names)
    assert said is not None and said[0] == answer.measurement.hex()
    parts = (verified.image_host_key, verified.attestation_host_key, verified.secret_store, verified.firmware)
    assert said[1:] == [*(part.hex() for part in parts), ""]
    (tmp_path / "user").write_bytes(b"another record")
    other = tool("measure", *names)
    assert other is not None and other[0] != answer.measurement.hex()


def test_it_opens_requests_of_ours(
    tool: Tool, small: bytes, opened: header.Header, host: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    ask = attestation.NONCE | attestation.IMAGE_HOST_KEY
    request, key = attestation.create([HostKey(host.public_key())], ask)
    configuration = attestation.Configuration(opened, b"\x07" * 16, HostKey(host.public_key()).fingerprint)
    answer = attestation.perform(request, host, configuration, b"user")
    files = {"image": small, "request": request, "key": key, "cuid": answer.cuid, "user": b"user"}
    for name, data in {**files, "additional": answer.additional}.items():
        (tmp_path / name).write_bytes(data)
    said = tool("measure", *(tmp_path / name for name in ("image", "request", "key", "cuid", "user", "additional")))
    assert said is not None and said[0] == answer.measurement.hex()
    (tmp_path / "key").write_bytes(bytes(32))
    assert (
        tool("measure", *(tmp_path / name for name in ("image", "request", "key", "cuid", "user", "additional")))
        is None
    )


HOSTS = (
    *(
        "host.crt",
        "host2.crt",
        "host_armonk.crt",
        "host_crt_expired.crt",
        "host_invalid_signing_key.crt",
        "host_rev.crt",
    ),
    *("host_uri_na.crt", "fake_host.crt"),
)
SIGNING = (
    *(("ibm.crt", "ibm.crl"), ("ibm_armonk.crt", "ibm_armonk.crl"), ("ibm_wrong_subject.crt", "ibm_wrong_subject.crl")),
    *(("ibm_rev.crt", "ibm.crl"), ("ibm_expired.crt", "ibm.crl"), ("fake_ibm.crt", "fake_ibm.crl"), ("ibm.crt", "")),
    *(("ibm.crt", "ibm_outdated_early.crl"), ("ibm.crt", "ibm_outdated_late.crl"), ("ibm.crt", "ibm_wrong_issuer.crl")),
    ("ibm.crt", "ibm_invalid_hash.crl"),
)
ISSUERS = (
    *(("inter_ca.crt", "inter_ca.crl"), ("fake_inter_ca.crt", "fake_inter_ca.crl"), ("inter_ca.crt", "")),
    *(("inter_ca.crt", "inter_ca.invalid_date.crl"), ("inter_ca.crt", "inter_ca.invalid_signer.crl")),
)


@pytest.mark.parametrize("document", HOSTS)
def test_both_take_and_refuse_the_same_of_the_librarys_own_certificates(tool: Tool, document: str) -> None:
    """Its test certificates come with the crate, and stay there: good and bad keys, issuers, lists, in each combination."""
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    assets = next(cargo.glob("registry/src/*/s390_pv-0.12.0/tests/assets/cert"))
    taken = 0
    for (signing, list_of_signing), (issuer, list_of_issuer), list_of_root in itertools.product(
        SIGNING, ISSUERS, ("root_ca.crl", "")
    ):
        lists = [assets / name for name in (list_of_signing, list_of_issuer, list_of_root) if name]
        above = [assets / name for name in (signing, issuer, "root_ca.crt")]
        try:
            read = [path.read_bytes() for path in above], [path.read_bytes() for path in lists]
            now = datetime.datetime.now(datetime.UTC)
            documents.verify([(assets / document).read_bytes()], *read, time=now)
            ours = True
        except CasemateError:
            ours = False
        words = assets / "root_ca.crt", assets / document, f"{above[1]},{above[0]}", ",".join(map(str, lists))
        theirs = tool("verify", *words) is not None
        assert ours == theirs, (signing, issuer, [path.name for path in lists])
        taken += ours
    good = document in ("host.crt", "host2.crt", "host_armonk.crt", "host_uri_na.crt")
    assert taken == (2 if good else 0)
