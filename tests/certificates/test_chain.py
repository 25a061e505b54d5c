"""Chains, revocation lists and platform certificate documents: what is proved, and every way in which it is not."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import warnings

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import DAY, NOW

from casemate.certificates.chain import DEVELOPMENT_OID, certificates_of, has_development_mark, require, verify_chain
from casemate.certificates.errors import CertificateError

CAS = [pki.intermediate(), pki.root()]


def check(certificate=None, issuers=None, crls=(), *, time=NOW, untrusted=()):
    issuers = CAS if issuers is None else issuers
    return verify_chain(certificate or pki.leaf(), issuers, crls, time=time, untrusted=untrusted)


def problems(*args, **options) -> list[str]:
    chain = check(*args, **options)
    assert chain.proved == (not chain.problems)
    return [problem.id.removeprefix("CERTIFICATE-") for problem in chain.problems]


def test_a_chain_up_to_a_given_root_is_proved_link_by_link() -> None:
    chain = check()
    assert chain.proved and not chain.development
    require(chain)
    assert [link.name for link in chain.links] == ["leaf", "intermediate", "root"]
    assert [link.how for link in chain.links] == ["issuer", "issuer", "given"]
    assert [link.signed_by for link in chain.links] == ["CN=intermediate", "CN=root", "CN=root"]
    assert chain.links[0].signing_key == chain.links[0].signing_key.lower() and len(chain.links[0].signing_key) == 64
    assert [link.revocation for link in chain.links[:2]] == ["not checked", "not checked"]
    assert chain.as_dict()["proved"] is True


def test_order_bundles_der_and_strangers_among_the_issuers_do_not_matter() -> None:
    stranger = pki.certificate("stranger", "stranger", ca=True)
    assert problems(issuers=[stranger + pki.root() + pki.intermediate()]) == []
    der = [base64.b64decode(b"".join(pem.split(b"\n")[1:-2])) for pem in CAS]
    assert problems(issuers=der) == []


def test_text_around_a_pem_certificate_is_skipped() -> None:
    assert len(certificates_of(b"subject: x\n" + pki.leaf() + b"\ntext\n" + pki.root())) == 2


def test_intermediates_may_be_untrusted_roots_may_not() -> None:
    assert problems(issuers=[pki.root()], untrusted=[pki.intermediate()]) == []
    assert problems(issuers=[pki.intermediate()], untrusted=[pki.root()]) == ["ISSUER"]


def test_a_chain_that_ends_below_a_root_is_not_proved() -> None:
    assert problems(issuers=[pki.intermediate()]) == ["ISSUER"]
    assert problems(issuers=[pki.root()]) == ["ISSUER"]
    with pytest.raises(CertificateError, match="was not given"):
        require(check(issuers=[pki.root()]))


def test_an_issuer_of_the_same_name_with_another_key_signed_nothing() -> None:
    other = pki.certificate("intermediate", "root", ca=True, public=pki.key("other").public_key())
    assert problems(issuers=[other, pki.root()]) == ["SIGNATURE"]
    assert problems(issuers=[other, pki.intermediate(), pki.root()]) == []


def test_a_root_of_the_same_name_is_another_root() -> None:
    forged = pki.certificate("root", "root", ca=True, public=pki.key("forger").public_key(), signer=pki.key("forger"))
    assert problems(issuers=[pki.intermediate(), forged]) == ["SIGNATURE"]


def test_the_time_must_be_inside_of_every_validity() -> None:
    assert problems(time=NOW - 2 * DAY) == ["TIME"] * 3
    assert problems(time=NOW + 400 * DAY) == ["TIME"] * 3
    old = pki.certificate("intermediate", "root", ca=True, start=NOW - 9 * DAY, end=NOW - DAY)
    assert problems(issuers=[old, pki.root()]) == ["TIME"]
    assert problems(issuers=[old, pki.intermediate(), pki.root()]) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"ca": False},
        {"ca": None},
        {"ca": True, "usage": False, "extensions": [(x509.KeyUsage(*[True] + [False] * 8), True)]},
    ],
)
def test_who_is_no_authority_can_not_issue_an_authority(bad) -> None:
    middle = pki.certificate("middle", "intermediate", **bad)
    below = pki.certificate("below", "middle", ca=True)
    end = pki.certificate("end", "below")
    assert "AUTHORITY" in problems(end, [below, middle, *CAS])


def test_an_untrusted_end_entity_can_not_issue() -> None:
    ordinary = pki.certificate("ordinary", "intermediate")
    forged = pki.certificate("attestation", "ordinary")
    assert "AUTHORITY" in problems(forged, CAS, untrusted=[ordinary])


def test_the_path_length_is_kept() -> None:
    narrow = pki.certificate("narrow", "root", ca=True, path=0)
    below = pki.certificate("below", "narrow", ca=True)
    assert problems(pki.certificate("end", "below"), [below, narrow, pki.root()]) == ["AUTHORITY"]
    assert problems(pki.certificate("end", "narrow"), [narrow, pki.root()]) == []


def test_a_critical_extension_that_is_not_understood_is_refused() -> None:
    odd = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    assert problems(pki.certificate("leaf", "intermediate", extensions=[odd])) == ["EXTENSION"]
    assert problems(pki.certificate("leaf", "intermediate", extensions=[(odd[0], False)])) == []
    limits = (x509.NameConstraints([x509.DNSName("example.org")], None), True)
    narrow = pki.certificate("intermediate", "root", ca=True, extensions=[limits])
    assert problems(issuers=[narrow, pki.root()]) == ["EXTENSION"]


def test_weak_keys_and_hashes_are_refused() -> None:
    weak = pki.certificate("weak", "intermediate", public=pki.key("weak", 1024).public_key())
    assert problems(weak) == ["ALGORITHM"]
    odd = pki.certificate("leaf", "intermediate", digest=hashes.SHA224())
    assert problems(odd) == ["ALGORITHM"]


def test_elliptic_curve_authorities_are_understood() -> None:
    root = pki.certificate("ec", "ec", ca=True, public=pki.ec_key("ec").public_key(), signer=pki.ec_key("ec"))
    end = pki.certificate("leaf", "ec", signer=pki.ec_key("ec"), digest=hashes.SHA384())
    assert problems(end, [root]) == []


def test_an_endless_chain_ends() -> None:
    names = [f"n{index}" for index in range(12)]
    authorities = [
        pki.certificate(one, two, ca=True, public=pki.key("x").public_key(), signer=pki.key("x"))
        for one, two in zip(names, [*names[1:], names[0]], strict=True)
    ]
    chain = check(pki.certificate("end", "n0", signer=pki.key("x")), authorities)
    assert not chain.proved and len(chain.links) <= 8


def test_one_changed_byte_is_found_wherever_it_is() -> None:
    der = base64.b64decode(b"".join(pki.leaf().split(b"\n")[1:-2]))
    for position in range(0, len(der), 7):
        changed = der[:position] + bytes([der[position] ^ 1]) + der[position + 1 :]
        with contextlib.suppress(CertificateError):
            assert not check(changed).proved, position


# ------------------------------------------------------------------------------------------ revocation


def test_a_list_without_the_certificate_says_not_revoked() -> None:
    chain = check(crls=[pki.crl("intermediate", [1, 2, 3])])
    assert chain.proved and chain.revocation_checked
    assert [link.revocation for link in chain.links] == ["not revoked", "not checked", "trusted: it was given as root"]
    both = check(crls=[pki.crl("intermediate", encoding=Encoding.DER), pki.crl("root")])
    assert both.proved and [link.revocation for link in both.links[:2]] == ["not revoked"] * 2


def test_a_revoked_certificate_is_refused_at_every_depth() -> None:
    assert problems(crls=[pki.crl("intermediate", [4711])]) == ["REVOKED"]
    serial = x509.load_pem_x509_certificate(pki.intermediate()).serial_number
    assert problems(crls=[pki.crl("root", [serial])]) == ["REVOKED"]


def test_a_list_by_another_key_is_no_list() -> None:
    forged = pki.crl("intermediate", [], signer=pki.key("other"))
    assert problems(crls=[forged]) == ["CRL"]
    assert check(crls=[forged]).links[0].revocation == "not checked"


def test_a_list_of_nobody_in_the_chain_is_an_error_not_a_silence() -> None:
    assert problems(crls=[pki.crl("stranger")]) == ["CRL"]


@pytest.mark.parametrize("dates", [(NOW - 9 * DAY, NOW - DAY), (NOW + DAY, NOW + 9 * DAY)])
def test_a_list_of_another_time_is_no_list(dates) -> None:
    assert problems(crls=[pki.crl("intermediate", start=dates[0], end=dates[1])]) == ["CRL"]


def test_a_good_list_does_not_heal_a_bad_one() -> None:
    stale = pki.crl("intermediate", start=NOW - 9 * DAY, end=NOW - DAY)
    assert problems(crls=[pki.crl("intermediate"), stale]) == ["CRL"]


def test_a_list_that_covers_less_than_all_is_no_list() -> None:
    def scope(**options):
        return x509.IssuingDistributionPoint(
            **{
                **{"full_name": None, "relative_name": None, "only_contains_user_certs": False},
                **{"only_contains_ca_certs": False, "only_some_reasons": None, "indirect_crl": False},
                "only_contains_attribute_certs": False,
                **options,
            }
        )

    place = [x509.UniformResourceIdentifier("http://example.org/one.crl")]
    for partial in (
        scope(only_contains_ca_certs=True),
        scope(full_name=place, indirect_crl=True),
        scope(full_name=place),
    ):
        assert problems(crls=[pki.crl("intermediate", extensions=[(partial, True)])]) == ["CRL"]
    point = x509.DistributionPoint(place, None, None, None)
    own = pki.certificate("leaf", "intermediate", extensions=[(x509.CRLDistributionPoints([point]), False)])
    assert problems(own, crls=[pki.crl("intermediate", extensions=[(scope(full_name=place), True)])]) == []
    delta = (x509.DeltaCRLIndicator(3), True)
    assert problems(crls=[pki.crl("intermediate", extensions=[delta])]) == ["CRL"]


# ------------------------------------------------------------------------ platform certificate documents


def platform():
    """An end-entity certificate of a public authority whose key signs documents, and a document of it."""
    forwards, backwards = (
        pki.name("Signing Service", "Maker"),
        x509.Name(reversed(list(pki.name("Signing Service", "Maker")))),
    )
    signer = pki.certificate(forwards, "intermediate", public=pki.key("service").public_key())
    document = pki.certificate("platform document", backwards, signer=pki.key("service"), serial=99)
    return signer, document


def test_a_platform_document_is_proved_under_an_issuer_that_was_given() -> None:
    signer, document = platform()
    chain = check(document, [signer, *CAS], [pki.crl("intermediate")])
    assert chain.proved and [link.how for link in chain.links] == ["platform document", "issuer", "issuer", "given"]


def test_the_issuer_of_a_platform_document_is_no_authority_to_count() -> None:
    """The public authorities that sign such issuers allow no authority below themselves."""
    signer, document = platform()
    narrow = pki.certificate("intermediate", "root", ca=True, path=0)
    assert verify_chain(document, [signer, narrow, pki.root()], time=pki.NOW).proved
    below = pki.certificate("below", "intermediate", ca=True)
    signer = pki.certificate(pki.name("Signing Service", "Maker"), "below", public=pki.key("service").public_key())
    chain = verify_chain(document, [signer, below, narrow, pki.root()], time=pki.NOW)
    assert [problem.id for problem in chain.problems] == ["CERTIFICATE-AUTHORITY"]


def test_a_platform_document_needs_its_issuer_given_by_name() -> None:
    signer, document = platform()
    assert problems(document, CAS, untrusted=[signer]) == ["ISSUER"]
    regular = pki.certificate("platform document", pki.name("Signing Service", "Maker"), signer=pki.key("service"))
    assert "AUTHORITY" in problems(regular, CAS, untrusted=[signer])


def test_a_platform_document_can_not_issue_further() -> None:
    signer, document = platform()
    further = pki.certificate("further", "platform document")
    assert not check(further, [document, *CAS], untrusted=[signer]).proved


def test_a_platform_document_can_be_revoked_expired_and_forged() -> None:
    signer, document = platform()
    backwards = x509.load_pem_x509_certificate(document).issuer
    revoked = pki.crl(backwards, [99], signer=pki.key("service"))
    assert problems(document, [signer, *CAS], [revoked]) == ["REVOKED"]
    assert problems(document, [signer, *CAS], [pki.crl(backwards, signer=pki.key("service"))]) == []
    assert "TIME" in problems(document, [signer, *CAS], time=NOW + 366 * DAY)
    forged = pki.certificate("platform document", backwards, signer=pki.key("forger"))
    assert problems(forged, [signer, *CAS]) == ["SIGNATURE"]


# ------------------------------------------------------------------------------------- marks and limits


def test_the_development_mark_of_any_link_marks_the_chain() -> None:
    mark = (x509.UnrecognizedExtension(x509.ObjectIdentifier(DEVELOPMENT_OID), b"development"), False)
    marked = pki.certificate("intermediate", "root", ca=True, extensions=[mark])
    chain = check(issuers=[marked, pki.root()])
    assert chain.proved and chain.development
    assert has_development_mark(marked) and not has_development_mark(pki.leaf())


@pytest.mark.parametrize(
    "data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", b"\x30" * 70_000]
)
def test_what_is_no_certificate_is_an_error_of_ours(data) -> None:
    with pytest.raises(CertificateError):
        check(data or b"\0")
    with pytest.raises(CertificateError):
        check(issuers=[data])
    with pytest.raises(CertificateError):
        check(crls=[data])


def test_numbers_are_bounded() -> None:
    with pytest.raises(CertificateError, match="certificates in one file"):
        check(issuers=[pki.root() * 33])
    with pytest.raises(CertificateError, match="too many"):
        check(issuers=[pki.root()] * 33)
    with pytest.raises(CertificateError, match="more than one"):
        check(pki.leaf() + pki.root())


DER = base64.b64decode(b"".join(pki.leaf().split(b"\n")[1:-2]))
CRL = pki.crl("intermediate", [1], encoding=Encoding.DER)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_never_raises_anything_else_and_never_proves(data) -> None:
    which = data.draw(st.sampled_from([DER, CRL]))
    damaged = bytearray(which)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if bytes(damaged) == which:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chain = check(bytes(damaged)) if which is DER else check(crls=[bytes(damaged)])
    except CertificateError:
        return
    assert not chain.proved


# -------------------------------------------------------------------------------------------- openssl


@pytest.mark.components
@pytest.mark.parametrize("case", ["good", "revoked", "wrong", "expired list"])
def test_openssl_agrees(tmp_path, case) -> None:
    issuers = CAS
    if case == "wrong":
        other = pki.certificate("intermediate", "root", ca=True, public=pki.key("other").public_key())
        issuers = [other, pki.root()]
    dates = {"start": NOW - 9 * DAY, "end": NOW - DAY} if case == "expired list" else {}
    revoked = [pki.crl("intermediate", [4711] if case == "revoked" else [], **dates)]
    for name, content in {"leaf": pki.leaf(), "ca": b"".join(issuers), "crl": revoked[0]}.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    command = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-crl_check"]
    command += ["-CAfile", tmp_path / "ca.pem", "-CRLfile", tmp_path / "crl.pem", tmp_path / "leaf.pem"]
    theirs = subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert theirs == check(issuers=issuers, crls=revoked).proved == (case == "good")
