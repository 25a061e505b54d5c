"""An authority: what it certifies, rotation with overlap, revocation, expiry, a public root, keys in a token."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.build import authority as module
from casemate.build import forms, keylog, signers
from casemate.build.authority import Authority, AuthorityError, Plan
from casemate.build.publish import server
from casemate.certificates.chain import Chain, verify_chain
from casemate.errors import CasemateError
from casemate.guest import builderwork
from casemate.image.build import build_image
from casemate.image.ca import DevelopmentCA
from program import Result

if TYPE_CHECKING:
    from tokens import Token

Run = Callable[..., Result]
DAY = datetime.timedelta(days=1)
PLAN = Plan("Example", algorithm="p-384", lists_at="http://127.0.0.1:8/x/")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority.create(tmp_path_factory.mktemp("made") / "ca", PLAN).directory


@pytest.fixture
def authority(made: Path, tmp_path: Path) -> Authority:
    return Authority(Path(shutil.copytree(made, tmp_path / "ca")))


def leaf(authority: Authority) -> bytes:
    """A certificate of the kind that images get; the image's RSA keys would cost seconds each."""
    return authority._issue_leaf("Casemate test attestation", ec.generate_private_key(ec.SECP384R1()).public_key())


def crl(authority: Authority, *names: str) -> list[bytes]:
    return [(authority.directory / f"{name}.crl.pem").read_bytes() for name in names]


def chain(
    authority: Authority, pem: bytes, name: str = "intermediate", lists: Sequence[bytes] = (), days: int = 0
) -> Chain:
    issuers = [authority.root_pem, (authority.directory / f"{name}.crt").read_bytes()]
    return verify_chain(pem, issuers, lists, time=now() + days * DAY)


def problems(found: Chain) -> list[str]:
    return [problem.id for problem in found.problems]


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CasemateError) as error:
        act()
    assert error.value.cure
    return error.value.id


def later(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    real = now().replace(microsecond=0)
    for each in (module, forms):
        monkeypatch.setattr(each, "moment", lambda: real + days * DAY)


# ------------------------------------------------------------------------------------------------- what it certifies


def test_certificates_carry_what_tools_expect(authority: Authority) -> None:
    issued = authority.issue("26.11.0")
    lists = crl(authority, "intermediate", "root")
    for pem, encrypts in ((issued.encryption_certificate, True), (issued.attestation_certificate, False)):
        found = chain(authority, pem, lists=lists)
        assert found.proved and not found.development and found.revocation_checked and len(found.links) == 3
        one = x509.load_pem_x509_certificate(pem)
        get = one.extensions.get_extension_for_class
        usage = get(x509.KeyUsage)
        assert usage.critical and (usage.value.key_encipherment, usage.value.digital_signature) == (
            encrypts,
            not encrypts,
        )
        assert not get(x509.BasicConstraints).value.ca and get(x509.SubjectKeyIdentifier)
        (point,) = get(x509.CRLDistributionPoints).value
        assert point.full_name and point.full_name[0].value == "http://127.0.0.1:8/x/intermediate.crl"
        assert "DEVELOPMENT" not in one.subject.rfc4514_string()
    between = x509.load_pem_x509_certificate(authority.intermediate_pem).extensions
    basic = between.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0


@pytest.mark.components
def test_openssl_verifies_the_chain_with_the_lists(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "leaf.crt").write_bytes(leaf(authority))
    (tmp_path / "crls.pem").write_bytes(b"".join(crl(authority, "root", "intermediate")))
    verify = ["openssl", "verify", "-x509_strict", "-crl_check_all", "-CAfile", "ca/root.crt", "-untrusted"]
    verify += ["ca/intermediate.crt", "-CRLfile", "crls.pem", "leaf.crt"]
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True).stdout == b"leaf.crt: OK\n"
    authority.revoke_certificate((tmp_path / "leaf.crt").read_bytes(), "key-compromise")
    (tmp_path / "crls.pem").write_bytes(b"".join(crl(authority, "root", "intermediate")))
    assert b"certificate revoked" in subprocess.run(verify, cwd=tmp_path, capture_output=True).stderr


def test_no_certificate_outlives_its_issuer(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, module.INTERMEDIATE_DAYS - 100)
    end = x509.load_pem_x509_certificate(authority.intermediate_pem).not_valid_after_utc
    assert x509.load_pem_x509_certificate(leaf(authority)).not_valid_after_utc == end
    (row,) = (one for one in authority.status() if (one.kind, one.name) == ("issuer", "intermediate"))
    assert any("rotate" in warning for warning in row.warnings)


def test_an_expired_intermediate_certifies_nothing_and_verifies_no_more(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = leaf(authority)
    later(monkeypatch, module.INTERMEDIATE_DAYS + 1)
    assert refused(lambda: leaf(authority)) == "AUTHORITY-EXPIRED"
    assert "CERTIFICATE-TIME" in problems(chain(authority, pem, days=module.INTERMEDIATE_DAYS + 1))
    authority.rotate(algorithm="p-384")
    found = chain(authority, leaf(authority), "intermediate-2", days=module.INTERMEDIATE_DAYS + 1)
    assert found.proved


def test_a_signer_with_another_key_is_noticed_before_it_signs(authority: Authority) -> None:
    (authority.directory / "intermediate.key").unlink()
    signers.find("file:intermediate.key", authority.directory).generate("p-384")
    lines = len(authority.log())
    assert refused(lambda: leaf(authority)) == "AUTHORITY-KEYS" and len(authority.log()) == lines


def test_root_and_intermediate_may_not_share_a_key(tmp_path: Path) -> None:
    plan = Plan("Example", root="file:a.key", intermediate="file:a.key", algorithm="p-384")
    assert refused(lambda: Authority.create(tmp_path / "ca", plan)) == "AUTHORITY-KEYS"
    find = signers.find("file:a.key", tmp_path)
    find.generate("p-384")
    (tmp_path / "b.key").hardlink_to(tmp_path / "a.key")
    plan = Plan("Example", root=f"file:{tmp_path}/a.key", intermediate=f"file:{tmp_path}/b.key", adopt=True)
    assert refused(lambda: Authority.create(tmp_path / "ca", plan)) == "AUTHORITY-KEYS"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.key", "b.key"]  # and nothing is left of it


def test_an_authority_is_never_made_over_another(authority: Authority) -> None:
    before = authority.root_pem
    assert refused(lambda: Authority.create(authority.directory, PLAN)) == "AUTHORITY-EXISTS"
    assert authority.root_pem == before
    empty = authority.directory.parent / "empty"
    empty.mkdir()
    assert Authority.create(empty, PLAN).root_pem


@pytest.mark.parametrize("name", ["x" * 47, "x" * 64, "ä" * 24, "ä" * 62, "", "a\nb", "\ud800"])
def test_a_name_that_leaves_no_room_for_its_issuers_is_refused(tmp_path: Path, name: str) -> None:
    keys = {"root": f"file:{tmp_path}/a.key", "intermediate": f"file:{tmp_path}/b.key"}
    for act in (Authority.create, Authority.request):
        assert refused(lambda act=act: act(tmp_path / "ca", replace(PLAN, name=name, **keys))) == "AUTHORITY-NAME"
    assert not list(tmp_path.iterdir())  # and no key was made for it


def test_the_longest_name_makes_issuers_that_all_have_names_of_their_own(authority: Authority, tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "long", replace(PLAN, name="ä" * 23))
    made.rotate(algorithm="p-384")
    names = ("root", "intermediate", "intermediate-2")
    assert len({x509.load_pem_x509_certificate((made.directory / f"{n}.crt").read_bytes()).subject for n in names}) == 3
    # An authority of before, whose name is longer: nothing is cut.
    authority.write_description(replace(authority.describe(), name="x" * 64))
    assert refused(lambda: authority.rotate(algorithm="p-384")) == "CERTIFICATE-NAME"
    assert not (authority.directory / "intermediate-2.key").exists()
    assert refused(lambda: forms.request(made.describe(), f"Casemate builder {'b' * 46} 10")) == "CERTIFICATE-NAME"


# ------------------------------------------------------------------------------------------------- rotation


def test_after_a_rotation_both_chains_hold_and_new_images_are_under_the_new_one(authority: Authority) -> None:
    old = leaf(authority)
    assert authority.rotate(algorithm="p-384") == "intermediate-2"
    new = leaf(authority)
    assert chain(authority, old, "intermediate", crl(authority, "intermediate", "root")).proved
    assert chain(authority, new, "intermediate-2", crl(authority, "intermediate-2", "root")).proved
    assert not chain(authority, new, "intermediate").proved
    assert [one.state for one in authority.describe().intermediates] == ["overlap", "current"]
    authority.require_chain(new)
    assert refused(lambda: authority.require_chain(new, old)) == "AUTHORITY-ROTATED"
    # The old one goes on to say what is revoked, by a list of its own.
    assert authority.revoke_certificate(old) == ("intermediate", True)
    found = chain(authority, old, "intermediate", crl(authority, "intermediate"))
    assert problems(found) == ["CERTIFICATE-REVOKED"]


def test_a_list_of_another_intermediate_proves_nothing(authority: Authority) -> None:
    old = leaf(authority)
    authority.rotate(algorithm="p-384")
    found = chain(authority, old, "intermediate", crl(authority, "intermediate-2"))
    assert problems(found) == ["CERTIFICATE-CRL"] and found.links[0].revocation == "not checked"


def test_a_key_is_not_rotated_to_itself(authority: Authority) -> None:
    assert refused(lambda: authority.rotate("file:intermediate.key")) == "AUTHORITY-ROTATION"
    (authority.directory / "again.key").hardlink_to(authority.directory / "intermediate.key")
    assert refused(lambda: authority.rotate("file:again.key", adopt=True)) == "AUTHORITY-ROTATION"
    assert len(authority.describe().intermediates) == 1


def test_a_rotation_that_was_interrupted_is_taken_up_again(authority: Authority) -> None:
    key, description = authority.directory / "root.key", authority.directory / "authority.json"
    key.rename(authority.directory / "away")
    assert refused(lambda: authority.rotate(algorithm="p-384")) == "SIGNER-KEY"
    assert not (authority.directory / "intermediate-2.key").exists()  # nothing is made that can't be certified
    (authority.directory / "away").rename(key)
    before = description.read_bytes()
    authority.rotate(algorithm="p-384")
    description.write_bytes(before)  # as if the power had gone just before it was written
    (authority.directory / "intermediate-2.crl.pem").unlink()
    assert refused(lambda: authority.rotate(algorithm="p-384")) == "SIGNER-EXISTS"
    assert authority.rotate(adopt=True) == "intermediate-2"
    (authority.directory / "intermediate-2.crl.pem").unlink()  # and just before its list
    assert chain(authority, leaf(authority), "intermediate-2", [authority.crl_pem]).proved


# ------------------------------------------------------------------------------------------------- revocation


def test_a_revoked_image_is_refused_and_its_siblings_are_not(authority: Authority) -> None:
    one, other = leaf(authority), leaf(authority)
    assert authority.revoke_certificate(one, "key-compromise") == ("intermediate", True)
    assert authority.revoke_certificate(one, "superseded") == ("intermediate", False)
    assert problems(chain(authority, one, lists=crl(authority, "intermediate"))) == ["CERTIFICATE-REVOKED"]
    assert chain(authority, other, lists=crl(authority, "intermediate")).proved
    (entry,) = x509.load_pem_x509_crl(crl(authority, "intermediate")[0])
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    states = {row.serial: row.state for row in authority.status() if row.kind == "image"}
    assert sorted(states.values()) == ["revoked", "valid"]


def test_a_revoked_intermediate_takes_all_below_with_it_and_certifies_no_more(authority: Authority) -> None:
    pem = leaf(authority)
    assert authority.revoke_certificate(authority.intermediate_pem, "ca-compromise") == ("root", True)
    found = chain(authority, pem, lists=crl(authority, "root"))
    assert problems(found) == ["CERTIFICATE-REVOKED"] and found.links[1].revocation == "revoked"
    assert refused(lambda: leaf(authority)) == "AUTHORITY-CURRENT"
    assert any("rotate" in warning for row in authority.status() for warning in row.warnings)
    authority.rotate(algorithm="p-384")
    lists = crl(authority, "intermediate-2", "root")
    assert chain(authority, leaf(authority), "intermediate-2", lists).proved


@pytest.mark.parametrize(
    "back", [("authority.json",), ("authority.json", "root.crl.pem"), ("authority.json", "keys.jsonl")]
)
def test_a_description_that_is_put_back_does_not_bring_a_revoked_intermediate_back(
    run: Run, authority: Authority, back: tuple[str, ...]
) -> None:
    paths = [authority.directory / name for name in back]
    before = [path.read_bytes() for path in paths]
    authority.revoke_certificate(authority.intermediate_pem, "key-compromise")
    for path, data in zip(paths, before, strict=True):
        path.write_bytes(data)
    assert refused(lambda: leaf(authority)) == "AUTHORITY-CURRENT"
    assert refused(authority.require_ready) == "AUTHORITY-CURRENT"
    assert refused(lambda: authority.intermediate_pem) == "AUTHORITY-CURRENT"
    listed = run("ca", "list", "ca")
    assert listed.code == 1 and b"authority.json says current: it was put back or changed" in listed.out
    authority.rotate(algorithm="p-384")
    assert leaf(authority)
    assert [
        one["state"] for one in json.loads((authority.directory / "authority.json").read_text())["intermediates"]
    ] == [
        "revoked",
        "current",
    ]


def test_an_authority_without_its_log_does_nothing(run: Run, authority: Authority) -> None:
    path = authority.directory / "keys.jsonl"
    log = path.read_bytes()
    for act in (path.unlink, lambda: path.write_bytes(b""), lambda: path.write_bytes(log[:50])):
        act()
        assert refused(lambda: leaf(authority)) == "AUTHORITY-LOG"
        assert refused(lambda: authority.issue_lists()) == "AUTHORITY-LOG"
        assert refused(lambda: authority.rotate(algorithm="p-384")) == "AUTHORITY-LOG"
        result = run("ca", "list", "ca", "--json")
        assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-LOG"
    path.write_bytes(log + b'{"action":')  # the power went: the next line takes its place
    assert leaf(authority) and len(authority.log()) == log.count(b"\n") + 1


def test_a_certificate_of_a_stranger_is_not_revoked(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", PLAN)  # the same names, other keys
    for pem in (leaf(other), other.intermediate_pem, other.root_pem, authority.root_pem):
        assert refused(lambda pem=pem: authority.revoke_certificate(pem)) == "AUTHORITY-STRANGER"


def test_a_stale_list_proves_nothing(authority: Authority) -> None:
    pem = leaf(authority)
    found = chain(authority, pem, lists=crl(authority, "intermediate"), days=31)
    assert problems(found) == ["CERTIFICATE-CRL"] and found.links[0].revocation == "not checked"


def test_a_list_under_the_same_name_by_another_key_proves_nothing(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", PLAN)
    assert problems(chain(authority, leaf(authority), lists=crl(other, "intermediate"))) == ["CERTIFICATE-CRL"]
    shutil.copy(other.directory / "intermediate.crl.pem", authority.directory / "intermediate.crl.pem")
    assert refused(lambda: authority.issue_lists(["intermediate"])) == "AUTHORITY-LIST"


def test_an_older_list_put_back_loses_no_entry_and_no_number(authority: Authority) -> None:
    older, pem = crl(authority, "intermediate")[0], leaf(authority)
    authority.revoke_certificate(pem, "superseded")
    (authority.directory / "intermediate.crl.pem").write_bytes(older)
    ((_, number),) = authority.issue_lists(["intermediate"])
    new = x509.load_pem_x509_crl(crl(authority, "intermediate")[0])
    assert number == 3 == new.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert [entry.serial_number for entry in new] == [x509.load_pem_x509_certificate(pem).serial_number]


def test_numbers_grow_and_lists_that_end_soon_are_told(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    assert authority.issue_lists() == [("root", 2), ("intermediate", 2)]
    assert authority.issue_lists(["root"]) == [("root", 3)]
    assert not any(row.warnings for row in authority.status())
    later(monkeypatch, 25)
    assert [row.warnings[0] for row in authority.status() if row.warnings] == ["soon out of date: casemate ca crl"] * 2
    later(monkeypatch, 31)
    assert [row.warnings[0] for row in authority.status() if row.warnings] == ["out of date: casemate ca crl"] * 2


# ------------------------------------------------------------------------------------------------- the log, several at once


def test_each_use_of_a_key_is_logged_and_no_secret_is(authority: Authority) -> None:
    authority.revoke_certificate(leaf(authority))
    log = authority.log()
    actions = [entry.action for entry in log]
    assert actions == [*["generate"] * 2, *["certificate"] * 2, *["list"] * 2, "certificate", "revoke", "list"]
    text = (authority.directory / "keys.jsonl").read_text()
    assert "PRIVATE" not in text and "pin" not in text
    sha = hashes.Hash(hashes.SHA256())
    sha.update(x509.load_pem_x509_crl(crl(authority, "intermediate")[0]).public_bytes(Encoding.DER))
    assert log[-1].facts["sha256"] == sha.finalize().hex()


def test_an_authority_whose_log_was_changed_signs_nothing_more(authority: Authority) -> None:
    path = authority.directory / "keys.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"entries":0', b'"entries":1'))
    assert refused(lambda: leaf(authority)) == "AUTHORITY-LOG"
    assert refused(lambda: authority.issue_lists()) == "AUTHORITY-LOG"


def _issue_some(directory: Path) -> None:
    for _ in range(5):
        leaf(Authority(directory))


def test_several_programs_at_once_lose_no_line(authority: Authority) -> None:
    before = len(authority.log())
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_issue_some, [authority.directory] * 3)
    assert len(authority.log()) == before + 15


# ------------------------------------------------------------------------------------------------- a builder's request


def builder_request(authority: Authority, name: str = "buildvm 2") -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    asked = forms.request(authority.describe(), f"Casemate builder {name}").sign(key, hashes.SHA384())
    return forms.pem(asked), key


def test_the_command_answers_a_builders_request(run: Run, authority: Authority, tmp_path: Path) -> None:
    request, key = builder_request(authority)
    (tmp_path / "intermediate.csr").write_bytes(request)
    result = run("ca", "certify", "ca", "intermediate.csr", "-o", "builder.crt", "--json")
    assert result.code == 0
    said, made = json.loads(result.out), x509.load_pem_x509_certificate((tmp_path / "builder.crt").read_bytes())
    assert (said["path"], said["serial"]) == ("builder.crt", f"{made.serial_number:x}")
    assert said["subject"] == made.subject.rfc4514_string() and "Casemate builder buildvm 2" in said["subject"]
    assert made.public_key() == key.public_key() and authority.log()[-1].facts["for"] == "builder"
    assert verify_chain(forms.pem(made), [authority.root_pem], crl(authority, "root"), time=now()).proved
    below = forms.certificate(authority.describe(), "below", ec.generate_private_key(ec.SECP384R1()).public_key(), made)
    issuers = [authority.root_pem, forms.pem(made)]
    assert verify_chain(forms.pem(forms.sign(below, key)), issuers, time=now()).proved
    assert run("ca", "revoke", "ca", "builder.crt").code == 0
    assert problems(verify_chain(forms.pem(made), [authority.root_pem], crl(authority, "root"), time=now())) == [
        "CERTIFICATE-REVOKED"
    ]
    assert leaf(authority)  # the authority's own intermediate goes on

    other = run("ca", "certify", "ca", "intermediate.csr", "-o", "-")
    assert other.code == 0 and other.out.startswith(b"-----BEGIN CERTIFICATE-----") and other.out.count(b"\n---") == 1


def test_a_request_that_is_none_of_a_builder_is_not_certified(run: Run, authority: Authority, tmp_path: Path) -> None:
    request, _ = builder_request(authority)
    lines = len(authority.log())
    named, _ = builder_request(authority, "x")
    subject = x509.load_pem_x509_certificate(authority.intermediate_pem).subject
    key = ec.generate_private_key(ec.SECP384R1())
    forged = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA384())  # an issuer's name
    asked = x509.load_pem_x509_csr(request).public_bytes(Encoding.DER)
    changed = x509.load_der_x509_csr(asked[:-1] + bytes([asked[-1] ^ 1]))  # its signature does not hold
    bad = (b"", b"nothing", request[:200], forms.pem(forged), forms.pem(changed))
    for data in bad:
        (tmp_path / "x.csr").write_bytes(data)
        result = run("ca", "certify", "ca", "x.csr", "-o", "x.crt", "--json")
        assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-REQUEST"
    assert not (tmp_path / "x.crt").exists() and len(authority.log()) == lines
    public = Authority.request(tmp_path / "public", PLAN)
    (tmp_path / "x.csr").write_bytes(named)
    (public.directory / "root.crt").write_bytes(authority.root_pem)
    result = run("ca", "certify", "public", "x.csr", "-o", "x.crt", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-REQUEST"


# ------------------------------------------------------------------------------------------------- a public root


class Public:
    """A public authority: a root, something between, and an answer to a request."""

    def __init__(self) -> None:
        self.keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
        root, between = self._name("Public root"), self._name("Public issuing")
        self.root = self._certificate(root, self.keys[0].public_key(), root, self.keys[0], None)
        self.between = self._certificate(between, self.keys[1].public_key(), root, self.keys[0], 1)

    def _name(self, common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    def _certificate(self, subject, public, issuer, key, path, ca=True) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        builder = builder.not_valid_before(now() - DAY).not_valid_after(now() + 900 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca, path), critical=True)
        return builder.serial_number(x509.random_serial_number()).sign(key, hashes.SHA384())

    def answer(self, request: bytes, ca: bool = True) -> bytes:
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        issuer = self.between.subject
        made = self._certificate(asked.subject, asked.public_key(), issuer, self.keys[1], 0 if ca else None, ca)
        return made.public_bytes(Encoding.PEM)

    @property
    def above(self) -> list[bytes]:
        return [one.public_bytes(Encoding.PEM) for one in (self.root, self.between)]


def test_a_public_authority_answers_a_request_and_images_chain_to_its_root(tmp_path: Path) -> None:
    public = Public()
    authority = Authority.request(tmp_path / "ca", PLAN)
    assert refused(lambda: leaf(authority)) == "AUTHORITY-CURRENT"
    request = (authority.directory / "intermediate.csr").read_bytes()
    answer = public.answer(request)
    assert refused(lambda: authority.accept(public.answer(request, ca=False), public.above)) == "AUTHORITY-ANSWER"
    assert refused(lambda: authority.accept(answer, public.above[:1])) == "AUTHORITY-ANSWER"
    assert refused(lambda: authority.accept(answer, Public().above)) == "AUTHORITY-ANSWER"
    other = Authority.request(tmp_path / "other", PLAN)
    stranger = public.answer((other.directory / "intermediate.csr").read_bytes())
    assert refused(lambda: authority.accept(stranger, public.above)) == "AUTHORITY-ANSWER"
    assert authority.accept(answer, public.above) == authority.accept(answer, public.above) == "intermediate"
    pem = leaf(authority)
    found = verify_chain(pem, [authority.root_pem, authority.intermediate_pem], [authority.crl_pem], time=now())
    assert found.proved and len(found.links) == 4 and authority.root_crl_pem is None

    assert authority.rotate(algorithm="p-384") == "intermediate-2"
    authority.require_chain(leaf(authority))  # the old one goes on until the answer is there
    assert refused(lambda: authority.rotate(algorithm="p-384")) == "AUTHORITY-ROTATION"
    authority.accept(public.answer((authority.directory / "intermediate-2.csr").read_bytes()), public.above)
    assert [one.state for one in authority.describe().intermediates] == ["overlap", "current"]
    assert refused(lambda: authority.require_chain(pem)) == "AUTHORITY-ROTATED"


def test_an_answer_that_is_its_own_root_is_none(run: Run, tmp_path: Path) -> None:
    authority = Authority.request(tmp_path / "ca", PLAN)
    asked = x509.load_pem_x509_csr((authority.directory / "intermediate.csr").read_bytes())
    with signers.find("file:intermediate.key", authority.directory).open() as key:
        made = Public()._certificate(asked.subject, asked.public_key(), asked.subject, key, 0)
    (tmp_path / "self.crt").write_bytes(made.public_bytes(Encoding.PEM))
    result = run("ca", "accept", "ca", "self.crt", "--ca", "self.crt", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-ANSWER"
    assert (
        not (authority.directory / "root.crt").exists() and authority.describe().intermediates[0].state == "requested"
    )
    (authority.directory / "intermediate.csr").write_bytes(b"-----BEGIN CERTIFICATE REQUEST-----\n")
    result = run("ca", "accept", "ca", "self.crt", "--ca", "self.crt", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-REQUEST"


@pytest.mark.parametrize("name", ["root", "intermediate"])
@pytest.mark.parametrize("broken", [b"", b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", b"\xff"])
def test_a_broken_list_is_told_and_signed_anew_from_the_log(
    run: Run, authority: Authority, tmp_path: Path, name: str, broken: bytes
) -> None:
    pem = leaf(authority)
    authority.revoke_certificate(pem)
    (tmp_path / "leaf.crt").write_bytes(pem)
    path = authority.directory / f"{name}.crl.pem"
    path.write_bytes(broken)
    commands = (["list", "ca", "--json"], ["crl", "ca", "--json"], ["revoke", "ca", "leaf.crt", "--json"])
    for command in commands[: 3 if name == "intermediate" else 2]:
        result = run("ca", *command)
        assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-LIST"
        assert json.loads(result.out)["error"]["cure"]
    result = run("ca", "publish", "ca", "web")
    assert result.code == 1 and "AUTHORITY-LIST" in result.err and "Traceback" not in result.err
    path.unlink()
    assert run("ca", "crl", "ca").code == 0
    assert problems(chain(authority, pem, lists=crl(authority, "intermediate", "root"))) == ["CERTIFICATE-REVOKED"]


def test_a_certificate_that_is_away_or_broken_is_told(authority: Authority) -> None:
    path = authority.directory / "intermediate.crt"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    assert refused(lambda: leaf(authority)) == "AUTHORITY-CERTIFICATE"
    path.unlink()
    assert refused(lambda: leaf(authority)) == "AUTHORITY-CERTIFICATE"


def test_a_name_of_umlauts_is_refused_by_the_command(run: Run) -> None:
    result = run("ca", "init", "ca", "--name", "ä" * 62, "--algorithm", "p-384", "--json")
    assert result.code == 1 and json.loads(result.out)["error"]["id"] == "AUTHORITY-NAME"


# ------------------------------------------------------------------------------------------------- commands, tokens, images


@pytest.mark.components
def test_an_authority_in_a_token_is_kept_by_commands_and_no_private_key_is_a_file(
    run: Run, token: Token, tmp_path: Path
) -> None:
    where = ["--root", token.uri("root"), "--intermediate", token.uri("one"), "--algorithm", "p-384"]
    assert run("ca", "init", "ca", "--name", "Example", *where, "--json").code == 0
    pin = token.pin.read_text().strip()
    authority = Authority(tmp_path / "ca")
    (tmp_path / "image.crt").write_bytes(leaf(authority))
    assert run("ca", "rotate", "ca", "--signer", token.uri("two"), "--algorithm", "p-384").code == 0
    again = run("ca", "rotate", "ca", "--signer", token.uri("two"), "--json")
    assert again.code == 1 and json.loads(again.out)["error"]["id"] == "AUTHORITY-ROTATION"
    assert run("ca", "list", "ca").code == 0
    twice = json.loads(run("ca", "revoke", "ca", "image.crt", "image.crt", "--json").out)
    assert [row["new"] for row in twice] == [True, False]
    verify = ("certificate", "verify", "image.crt", "--ca", "ca/root.crt", "--ca", "ca/intermediate.crt", "--crl")
    assert b"revoked by" in (refusal := run(*verify, "ca/intermediate.crl.pem", "--json")).out and refusal.code == 1
    rows = json.loads(run("ca", "crl", "ca", "--json").out)
    assert [row["issuer"] for row in rows] == ["root", "intermediate", "intermediate-2"]
    log = json.loads(run("ca", "log", "ca", "--json").out)
    assert [entry["n"] for entry in log] == list(range(1, len(log) + 1))
    assert run("ca", "log", "ca", "--head", log[3]["digest"]).code == 0
    assert run("ca", "log", "ca", "--head", "0" * 64).code == 1
    told = json.loads(run("ca", "publish", "ca", "public", "--json").out)
    assert told == {"path": "public", "files": sorted(path.name for path in (tmp_path / "public").iterdir())}
    for path in (*authority.directory.iterdir(), *(tmp_path / "public").iterdir()):
        assert b"PRIVATE KEY" not in path.read_bytes() and pin.encode() not in path.read_bytes()
    assert not list(authority.directory.glob("*.key"))


@pytest.mark.components
def test_a_public_half_that_was_replaced_in_the_token_is_not_certified(
    authority: Authority, token: Token, tmp_path: Path
) -> None:
    import pkcs11
    from pkcs11.util.ec import decode_ec_public_key

    signer = signers.find(token.uri("two"), tmp_path)
    signer.generate("p-384")
    stranger = signers.spki(ec.generate_private_key(ec.SECP384R1()).public_key())
    with signer._session(write=True) as session:  # type: ignore[attr-defined]
        (public,) = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY})
        identity = public[pkcs11.Attribute.ID]
        public.destroy()
        planted = {**decode_ec_public_key(stranger), pkcs11.Attribute.ID: identity, pkcs11.Attribute.TOKEN: True}
        session.create_object(planted)
    assert refused(lambda: authority.rotate(token.uri("two"), adopt=True)) == "AUTHORITY-SIGNATURE"
    assert len(authority.describe().intermediates) == 1


def test_a_weak_key_is_taken_for_no_issuer(authority: Authority) -> None:
    weak = authority.directory / "weak.key"
    form = module.serialization.PrivateFormat.PKCS8, module.serialization.NoEncryption()
    weak.touch(0o600)
    weak.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, *form))
    assert refused(lambda: authority.rotate("file:weak.key", adopt=True)) == "AUTHORITY-KEYS"


def test_only_what_is_public_is_served(authority: Authority) -> None:
    with server(authority) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{running.server_address[1]}/"
            got = urllib.request.urlopen(base + "intermediate.crl", timeout=10)
            assert got.headers["Content-Type"] == "application/pkix-crl"
            served = x509.load_der_x509_crl(got.read())
            assert served == x509.load_pem_x509_crl(crl(authority, "intermediate")[0])
            for name in ("intermediate.key", "authority.json", "keys.jsonl", "../ca/root.key", "%2e%2e/root.key", ""):
                with pytest.raises(urllib.error.HTTPError):
                    urllib.request.urlopen(base + name, timeout=10)
            (authority.directory / "root.crl.pem").write_bytes(b"")
            with pytest.raises(urllib.error.HTTPError, match="500"):
                urllib.request.urlopen(base + "intermediate.crl", timeout=10)
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.components
def test_openssl_fetches_the_list_where_a_certificate_says_that_it_is(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    authority = Authority.create(tmp_path / "ca", replace(PLAN, lists_at=f"http://127.0.0.1:{port}"))
    (tmp_path / "leaf.crt").write_bytes(leaf(authority))
    verify = ["openssl", "verify", "-crl_check", "-crl_download", "-CAfile", "ca/root.crt", "-untrusted"]

    def said() -> bytes:
        command = [*verify, "ca/intermediate.crt", "leaf.crt"]
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, timeout=30, env={"PATH": os.environ["PATH"]}
        )
        return result.stdout + result.stderr

    with server(authority, port) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            assert said() == b"leaf.crt: OK\n"
            authority.revoke_certificate((tmp_path / "leaf.crt").read_bytes())
            assert b"certificate revoked" in said()
        finally:
            running.shutdown()
            thread.join()


def test_a_production_authority_certifies_no_image_for_a_host_that_nobody_verified(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    lines = len(authority.log())
    assert refused(lambda: build_image(tmp_path / "i", ca=authority.directory)) == "IMAGE-HOST-UNVERIFIED"
    host = tmp_path / "home/host/host.crt"
    assert (
        refused(
            lambda: build_image(tmp_path / "i", host_keys=[("host.crt", host.read_bytes())], ca=authority.directory)
        )
        == "IMAGE-HOST-UNVERIFIED"
    )
    assert len(authority.log()) == lines and not (tmp_path / "i").exists()


def test_an_authority_whose_key_is_away_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_HOME", str(tmp_path / "home"))
    authority = Authority.create(tmp_path / "ca", Plan("Casemate", algorithm="p-384", development=True))
    authority.revoke_certificate(authority.intermediate_pem)
    assert refused(lambda: build_image(tmp_path / "i", ca=authority.directory)) == "AUTHORITY-CURRENT"
    authority.rotate(algorithm="p-384")
    (authority.directory / "intermediate-2.key").unlink()
    assert refused(lambda: build_image(tmp_path / "i", ca=authority.directory)) == "SIGNER-KEY"
    assert not (tmp_path / "i").exists() and not (tmp_path / "home/cache").exists()


def test_the_command_that_verifies_says_what_each_list_and_certificate_is_worth(
    run: Run, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(pem: bytes, name: str, *lists: bytes) -> str:
        for number, data in enumerate((pem, *lists)):
            (tmp_path / f"file{number}").write_bytes(data)
        given = [f"--crl=file{number}" for number in range(1, len(lists) + 1)]
        result = run("certificate", "verify", "file0", "--ca=ca/root.crt", f"--ca=ca/{name}.crt", *given, "--json")
        found = json.loads(result.out)
        assert (result.code == 0) is found["proved"]
        return " ".join(dict.fromkeys(one["id"].removeprefix("CERTIFICATE-") for one in found["problems"])) or "proved"

    one, two, other = leaf(authority), leaf(authority), Authority.create(tmp_path / "other", PLAN)
    first = crl(authority, "intermediate", "root")
    assert verify(one, "intermediate", *first) == "proved"
    authority.revoke_certificate(one, "key-compromise")
    assert verify(one, "intermediate", *crl(authority, "intermediate", "root")) == "REVOKED"
    assert verify(two, "intermediate", *crl(authority, "intermediate", "root")) == "proved"
    assert verify(two, "intermediate", *crl(other, "intermediate", "root")) == "CRL"
    authority.rotate(algorithm="p-384")
    three = leaf(authority)
    assert verify(two, "intermediate", *crl(authority, "intermediate", "root")) == "proved"
    assert verify(three, "intermediate-2", *crl(authority, "intermediate-2", "root")) == "proved"
    assert verify(three, "intermediate-2", *crl(authority, "intermediate", "root")) == "CRL"
    authority.revoke_certificate((authority.directory / "intermediate.crt").read_bytes(), "superseded")
    assert verify(two, "intermediate", *first[:1], *crl(authority, "root")) == "REVOKED"
    assert verify(three, "intermediate-2", *crl(authority, "intermediate-2", "root")) == "proved"
    later(monkeypatch, -40)
    authority.issue_lists(["intermediate-2"])
    assert verify(three, "intermediate-2", *crl(authority, "intermediate-2")) == "CRL"  # ten days out of date
    later(monkeypatch, -module.IMAGE_DAYS - 2)
    past = Authority.create(tmp_path / "past", PLAN)
    ended = leaf(past)
    shutil.copytree(tmp_path / "past", tmp_path / "ca", dirs_exist_ok=True)
    assert verify(ended, "intermediate") == "TIME"


def test_a_development_authority_of_before_goes_on_with_its_keys(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", Plan("Casemate", algorithm="p-384", development=True))
    pem, root = leaf(authority), authority.root_pem
    for name in ("authority.json", "keys.jsonl", "root.crl.pem", ".lock"):
        (authority.directory / name).unlink()
    (authority.directory / "intermediate.crl.pem").rename(authority.directory / "crl.pem")
    again = DevelopmentCA.load_or_create(tmp_path / "ca")
    assert again.root_pem == root and chain(again, pem, lists=crl(again, "intermediate", "root")).proved
    again.revoke_certificate(pem)
    assert problems(chain(again, pem, lists=crl(again, "intermediate"))) == ["CERTIFICATE-REVOKED"]
    assert keylog.parse((tmp_path / "ca/keys.jsonl").read_bytes())


@pytest.mark.parametrize("development", [True, False])
def test_an_authority_that_lost_its_description_is_none_of_before(tmp_path: Path, development: bool) -> None:
    made = Authority.create(tmp_path / "ca", Plan("Casemate", algorithm="p-384", development=development))
    (made.directory / "authority.json").unlink()
    assert refused(lambda: DevelopmentCA.load_or_create(made.directory)) == "AUTHORITY-EXISTS"
    if not development:  # what is for production is never taken for a development authority
        (made.directory / "keys.jsonl").unlink()
        assert refused(lambda: DevelopmentCA.load_or_create(made.directory)) == "AUTHORITY-EXISTS"


@pytest.mark.parametrize("text", ["", "{}", '{"format": "casemate-authority/1"}', "[]", '"x"', "null"])
def test_a_description_that_is_none_is_refused(authority: Authority, text: str) -> None:
    (authority.directory / "authority.json").write_text(text)
    with pytest.raises(AuthorityError, match=r"authority\.json"):
        authority.describe()


@pytest.mark.parametrize("twice", [b'{\n "development": false,', b'{\n "list_days": NaN,', b'{\n "name": "\\ud800",'])
def test_a_description_that_two_readers_read_differently_is_refused(authority: Authority, twice: bytes) -> None:
    path = authority.directory / "authority.json"
    path.write_bytes(path.read_bytes().replace(b"{", twice, 1))
    assert refused(authority.describe) == "AUTHORITY-DESCRIPTION"
    with pytest.raises(ValueError):
        builderwork.Names.parse(path.read_bytes())
