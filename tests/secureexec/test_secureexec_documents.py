"""Host key documents: signed by a host-key signing key, by a chain that holds, and not withdrawn; or refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from signed import ABOVE, LISTS, NOW, name, signing_name

from casemate.certificates.errors import CertificateError
from casemate.errors import CasemateError
from casemate.secureexec.documents import is_signing_key, verify
from casemate.secureexec.errors import HostKeyError

Read = Callable[[str], bytes]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, signed: Callable[[Path], None]) -> Read:
    directory = tmp_path_factory.mktemp("documents")
    signed(directory)
    return lambda name: (directory / name).read_bytes()


def check(read: Read, document: str, above=ABOVE, lists=LISTS, **more) -> None:
    verify([read(document)], [read(one) for one in above], [read(one) for one in lists], time=NOW, **more)


def test_documents_of_several_signing_keys_are_verified(read: Read) -> None:
    check(read, "host.crt")
    check(read, "host.der")
    check(read, "second.crt", ["signing2.crt", *ABOVE[1:]], ["signing2.crl", *LISTS[1:]])
    documents = [read("host.crt"), read("second.crt"), read("armonk.crt")]
    above, lists = ([read(one) for one in names] for names in ([*ABOVE, "signing2.crt"], [*LISTS, "signing2.crl"]))
    assert len(verify(documents, above, lists, time=NOW)) == 3
    with pytest.raises(CertificateError, match="belongs to no issuer"):
        verify(documents[:1], above, lists, time=NOW)
    with pytest.raises(HostKeyError, match="no revocation list"):
        verify(documents, above, lists[:-1], time=NOW)


def test_the_issuer_may_name_itself_in_another_order_and_at_its_older_place(read: Read) -> None:
    check(read, "armonk.crt")
    with pytest.raises(CertificateError, match="was not given"):
        check(read, "elsewhere.crt")


def test_what_the_public_authority_gave_to_anyone_else_is_no_host_key_document(read: Read) -> None:
    """Its chain holds, to the same root: it would be enough to buy a certificate for a P-521 key."""
    with pytest.raises(HostKeyError, match="not signed by a host-key signing key"):
        check(read, "stranger.crt", lists=LISTS[1:])


def test_what_a_key_with_nearly_the_right_name_signed_is_refused(read: Read) -> None:
    above = ["almost.crt", "inter.crt", "root.crt"]
    with pytest.raises(HostKeyError, match="not signed by a host-key signing key"):
        check(read, "by-almost.crt", above, ["almost.crl", *LISTS[1:]])
    check(read, "by-almost.crt", above[1:], ["almost.crl", *LISTS[1:]], signing=[read("almost.crt")])


def test_a_signing_key_needs_an_authority_above_it(read: Read) -> None:
    """A self-signed certificate can have any name."""
    with pytest.raises(HostKeyError, match="not signed by a host-key signing key"):
        check(read, "by-self.crt", ["self.crt"], ["self.crl"])


def test_without_the_root_nothing_is_proved(read: Read) -> None:
    with pytest.raises(CertificateError, match="was not given"):
        check(read, "host.crt", ABOVE[:2], LISTS[:2])


@pytest.mark.parametrize(
    ("document", "id"),
    [
        ("revoked.crt", "CERTIFICATE-REVOKED"),
        ("expired.crt", "CERTIFICATE-TIME"),
        ("forged.crt", "CERTIFICATE-SIGNATURE"),
    ],
)
def test_what_does_not_hold_is_refused(read: Read, document: str, id: str) -> None:
    with pytest.raises(CasemateError) as caught:
        check(read, document)
    assert caught.value.id == id


def test_a_withdrawn_signing_key_is_refused(read: Read) -> None:
    with pytest.raises(CertificateError, match="revoked"):
        check(read, "host.crt", lists=["signing.crl", "inter-revokes.crl", "root.crl"])


@pytest.mark.parametrize("missing", LISTS)
def test_every_list_is_needed(read: Read, missing: str) -> None:
    lists = [one for one in LISTS if one != missing]
    with pytest.raises(HostKeyError, match="no revocation list"):
        check(read, "host.crt", lists=lists)
    check(read, "host.crt", lists=lists, revocation=False)


def test_an_older_list_does_not_count(read: Read) -> None:
    with pytest.raises(CertificateError, match="not valid at this time"):
        verify(
            *([read("host.crt")], [read(one) for one in ABOVE], [read(one) for one in LISTS]),
            time=NOW + datetime.timedelta(60),
        )


def test_the_name_of_a_signing_key() -> None:
    good = signing_name()
    assert is_signing_key(good) and is_signing_key(signing_name("Armonk", backwards=True))
    parts = list(good)
    assert not any(is_signing_key(x509.Name(parts[:at] + parts[at + 1 :])) for at in range(len(parts)))
    assert not any(is_signing_key(x509.Name([*parts, part])) for part in parts)
    assert not is_signing_key(signing_name("Boston"))
    assert not is_signing_key(signing_name(unit="Key Signing Service of Mallory"))
    assert not is_signing_key(name("International Business Machines Corporation"))
