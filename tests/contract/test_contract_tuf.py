"""Docker Content Trust: honest data gives the signed digest; every way that data can lie is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tuf_kit import DAY, GUN, NOW, ONE, TWO, Repository, Signer, certified, new

from casemate.contract.errors import KeyFileError, TrustError
from casemate.contract.tuf import Targets, digest_of, read_pin, signed_targets


def look(repository: Repository, pin: bytes | None = None, gun: str = GUN) -> list[Targets]:
    return signed_targets(gun, read_pin(pin or repository.pin), NOW, repository.fetch)


def refused(repository: Repository, pin: bytes | None = None, gun: str = GUN) -> TrustError:
    with pytest.raises(TrustError) as error:
        look(repository, pin, gun)
    return error.value


# ------------------------------------------------------------------------------------------------- what is signed


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519", "rsa"])
def test_a_signed_tag_gives_its_digest_and_another_tag_nothing(kind: str) -> None:
    signers = {name: [new(kind)] for name in ("timestamp", "snapshot", "targets")}
    found = look(Repository(signers=signers).publish())
    assert digest_of(found, "17") == ONE
    assert digest_of(found, "18") is None


def test_the_contract_may_name_the_bare_key_of_the_root() -> None:
    repository = Repository().publish()
    public = repository.roots[0].key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert digest_of(look(repository, pem), "17") == ONE


def test_the_delegation_of_releases_comes_first_and_only_for_its_tags() -> None:
    both = look(Repository(targets={"17": ONE, "16": ONE}, releases={"17": TWO}).publish())
    assert (digest_of(both, "17"), digest_of(both, "16")) == (TWO, ONE)
    bounded = look(Repository(targets={"17": ONE}, releases={"17": TWO, "v1": TWO}, paths=["v"]).publish())
    assert (digest_of(bounded, "17"), digest_of(bounded, "v1")) == (ONE, TWO)
    nothing = look(Repository(targets={}, releases={"17": TWO}, paths=[]).publish())
    assert digest_of(nothing, "17") is None


def test_files_are_asked_for_by_hash() -> None:
    repository = Repository(releases={"17": TWO}).publish()
    look(repository)
    assert [name for name in repository.asked if "." not in name] == ["root", "timestamp"]
    assert len(repository.asked) == 5


def test_as_many_different_keys_as_the_threshold_asks_for() -> None:
    group = [new(), new("ed25519"), new()]
    repository = Repository(thresholds={"targets": 2})
    repository.signers["targets"] = group
    repository.signed_by["targets"] = group[:2]
    assert digest_of(look(repository.publish()), "17") == ONE
    repository.signed_by["targets"] = group[:1]
    assert "1 of the 2" in str(refused(repository.publish()))
    repository.signed_by["targets"] = [group[0], group[0]]
    assert "1 of the 2" in str(refused(repository.publish()))


# ------------------------------------------------------------------------------------------------- who has signed


def test_a_root_by_another_key_is_refused() -> None:
    assert "key of the contract" in str(refused(Repository().publish(), certified().certificate))


def test_the_data_of_another_image_by_the_same_signer_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = Repository(roots=[certified(key, "r.example.com/other")]).publish()
    assert digest_of(look(other, public, "r.example.com/other"), "17") == ONE
    for pin in (public, certified(key).certificate, other.pin):
        assert "certificate for this image" in str(refused(other, pin))


def test_a_root_that_lists_the_key_of_the_contract_without_its_signature_is_refused() -> None:
    mine, evil = certified(), certified()
    repository = Repository(roots=[mine, evil], signed_by={"root": [evil]}).publish()
    assert refused(repository, mine.certificate).where == "root"


def test_the_key_of_the_contract_alone_does_not_make_up_for_the_roots_threshold() -> None:
    mine, other = certified(), certified()
    repository = Repository(roots=[mine, other], thresholds={"root": 2}, signed_by={"root": [mine]}).publish()
    assert "1 of the 2" in str(refused(repository))
    repository.signed_by["root"] = [mine, other]
    assert digest_of(look(repository.publish()), "17") == ONE


def test_one_key_in_two_certificates_counts_once() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    repository = Repository(roots=[certified(key), certified(key)], thresholds={"root": 2}).publish()
    assert "1 of the 2" in str(refused(repository))


@pytest.mark.parametrize(("start", "days"), [(NOW - 10 * DAY, 9), (NOW + DAY, 9)])
def test_a_root_certificate_out_of_its_time_is_refused(start: Any, days: int) -> None:
    assert refused(Repository(roots=[certified(start=start, days=days)]).publish()).where == "root"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "targets/releases"])
def test_a_file_signed_by_the_key_of_another_role_is_refused(role: str) -> None:
    repository = Repository(releases={"17": TWO})
    repository.signed_by[role] = [new()]
    assert refused(repository.publish()).where == role
    repository.signed_by[role] = []
    assert refused(repository.publish()).where == role


def test_a_key_under_a_name_that_is_not_its_hash_is_refused() -> None:
    repository = Repository()

    def rename(signed: dict[str, Any]) -> None:
        key = next(iter(signed["keys"].values()))
        signed["keys"]["00" * 32] = key

    repository.changes["root"] = rename
    assert "not its hash" in str(refused(repository.publish()))


def test_a_signature_under_another_method_or_length_is_refused() -> None:
    repository = Repository().publish()
    for change in ({"method": "eddsa"}, {"sig": "AAAA"}, {"sig": 5}, {"method": ["ecdsa"]}):
        document = json.loads(repository.files["timestamp"])
        document["signatures"][0] |= change
        changed = copy.copy(repository)
        changed.files = {**repository.files, "timestamp": json.dumps(document).encode()}
        assert refused(changed).where == "timestamp"


# ------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "targets/releases"])
def test_expired_data_is_refused_as_such(role: str) -> None:
    repository = Repository(releases={"17": TWO})
    repository.changes[role] = lambda signed: signed.update(expires=NOW.isoformat())
    error = refused(repository.publish())
    assert (error.id, error.where) == (TrustError.EXPIRED, role)
    repository.changes[role] = lambda signed: signed.update(expires="never")
    assert refused(repository.publish()).id != TrustError.EXPIRED
    repository.changes[role] = lambda signed: signed.update(expires="2030-01-01T00:00:00")
    assert "date of expiry" in str(refused(repository.publish()))


def test_dates_are_read_as_go_writes_them() -> None:
    repository = Repository()
    repository.changes["root"] = lambda signed: signed.update(expires="2026-11-24T13:00:01.123456789+01:00")
    assert digest_of(look(repository.publish()), "17") == ONE
    repository.changes["root"] = lambda signed: signed.update(expires="2026-11-24T12:59:59.123456789+01:00")
    assert refused(repository.publish()).id == TrustError.EXPIRED


@pytest.mark.parametrize("part", ["root", "snapshot", "targets", "targets/releases"])
def test_one_file_rolled_back_among_newer_ones_is_refused(part: str) -> None:
    repository = Repository(releases={"17": TWO}).publish()
    old = dict(repository.files)
    for name in ("root", "snapshot", "targets", "targets/releases"):
        repository.changes[name] = lambda signed: signed.update(version=2)
    repository.publish()
    assert digest_of(look(repository), "17") == TWO
    repository.files[part] = old[part]
    assert refused(repository).where == part


# ------------------------------------------------------------------------------------------------- form


def test_a_file_of_another_type_is_refused() -> None:
    """Timestamp and snapshot by one key: the one does not pass for the other."""
    for role in ("root", "timestamp", "snapshot", "targets", "targets/releases"):
        repository = Repository(releases={"17": TWO})
        repository.changes[role] = lambda signed: signed.update(_type="Mirrors")
        assert refused(repository.publish()).where == role


def test_a_file_longer_than_the_signed_length_is_refused() -> None:
    repository = Repository().publish()
    repository.files["targets"] += b" "
    assert refused(repository).where == "targets"
    repository = Repository()
    repository.changes["timestamp"] = lambda signed: signed["meta"]["snapshot"].update(length=1 << 40)
    assert refused(repository.publish()).where == "snapshot"


def _deep(signed: dict[str, Any]) -> None:
    signed["custom"] = {}
    inner = signed["custom"]
    for _ in range(50):
        inner["x"] = {}
        inner = inner["x"]


def _twice(signed: dict[str, Any]) -> None:
    signed["delegations"]["roles"] *= 2


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "no version": ("targets", lambda signed: signed.pop("version")),
    "version is true": ("targets", lambda signed: signed.update(version=True)),
    "deep": ("targets", _deep),
    "two delegations of a name": ("targets", _twice),
    "no hashes": ("snapshot", lambda signed: signed["meta"]["targets"].pop("hashes")),
    "no sha256": ("snapshot", lambda signed: signed["meta"]["targets"]["hashes"].pop("sha256")),
    "another sha512": ("snapshot", lambda signed: signed["meta"]["targets"]["hashes"].update(sha512="AAAA")),
    "no targets": ("snapshot", lambda signed: signed["meta"].pop("targets")),
    "no root": ("snapshot", lambda signed: signed["meta"].pop("root")),
    "threshold 0": ("root", lambda signed: signed["roles"]["targets"].update(threshold=0)),
    "no keys": ("root", lambda signed: signed["roles"]["targets"].update(keyids=[])),
    "a key that is not there": ("root", lambda signed: signed["roles"]["targets"].update(keyids=["00"])),
    "no role": ("root", lambda signed: signed["roles"].pop("snapshot")),
    "a digest that is none": ("targets", lambda signed: signed["targets"]["17"]["hashes"].update(sha256="AAAA")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_data_of_another_form_is_refused_though_it_is_signed(change: str) -> None:
    role, make = CHANGES[change]
    repository = Repository(releases={"17": TWO})
    repository.changes[role] = make
    refused(repository.publish())


def test_a_key_that_stands_twice_in_the_json_is_refused() -> None:
    repository = Repository().publish()
    data = repository.files["timestamp"]
    repository.files["timestamp"] = data.replace(b'"version": 1', b'"version": 2, "version": 1')
    assert refused(repository).where == "timestamp"


@given(
    st.binary(max_size=200)
    | st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner)).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_bytes_are_refused_and_no_more(data: bytes) -> None:
    for name in ("root", "timestamp", "snapshot", "targets"):
        changed = copy.copy(HONEST)
        changed.files = {**HONEST.files, name: data}
        refused(changed)


@given(st.data())
def test_one_changed_byte_never_gives_another_digest(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(HONEST.files)))
    content = bytearray(HONEST.files[name])
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = copy.copy(HONEST)
    changed.files = {**HONEST.files, name: bytes(content)}
    with contextlib.suppress(TrustError):
        assert digest_of(look(changed), "17") == TWO


HONEST = Repository(releases={"17": TWO}).publish()


def test_a_pin_is_a_certificate_or_a_public_key() -> None:
    private = Signer(new().key).key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    small = ec.generate_private_key(ec.SECP224R1()).public_key()
    weak = small.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for pem in (b"", private, weak, certified().certificate[:100] + b"\n-----END CERTIFICATE-----\n"):
        with pytest.raises(KeyFileError):
            read_pin(pem)
