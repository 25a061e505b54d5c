"""Ultravisor attestation: requests, measurements, files; and every way in which an answer is not this one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from se_format import point, wrapping

from casemate.attestation import machine
from casemate.attestation.record import RecordError
from casemate.secureexec import attestation as att
from casemate.secureexec import header as headers
from casemate.secureexec import image
from casemate.secureexec.attestation import Answer, AttestationError, Configuration
from casemate.secureexec.hostkey import HostKey

Key = ec.EllipticCurvePrivateKey
EVERYTHING = att.IMAGE_HOST_KEY | att.ATTESTATION_HOST_KEY | att.SECRET_STORE | att.FIRMWARE
CUID, USER = os.urandom(16), b"what the guest says"
RECORD = b"26.11.0\nUltravisor CUID: 0x" + CUID.hex().encode() + b"\n" + b"ab" * 32 + b" root.tar.gz"


@pytest.fixture(scope="module")
def header(small: bytes) -> headers.Header:
    return image.read_clear(io.BytesIO(small)).header


@pytest.fixture(scope="module")
def configuration(header: headers.Header, host: Key) -> Configuration:
    return Configuration(header, CUID, HostKey(host.public_key()).fingerprint)


@pytest.fixture(scope="module")
def asked(host: Key, other: Key) -> tuple[bytes, bytes]:
    """A request for two hosts, and its key."""
    return att.create([HostKey(key.public_key()) for key in (other, host)], EVERYTHING)


@pytest.fixture(scope="module")
def answer(asked: tuple[bytes, bytes], host: Key, configuration: Configuration) -> Answer:
    return att.perform(asked[0], host, configuration, USER)


def test_an_answer_says_what_was_asked_for(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header, host: Key
) -> None:
    found = att.verify(att.unpack(att.pack_answer(answer)), asked[1], header)
    mine = hashlib.sha256(point(host.public_key())).digest()
    assert (found.tag, found.cuid, found.user_data) == (header.tag, CUID, USER)
    assert (found.image_host_key, found.attestation_host_key) == (mine, mine)
    assert found.secret_store == hashlib.sha512(b"\0").digest()
    assert found.firmware == att.SOFTWARE_STATE and found.development


@pytest.mark.parametrize("ask", [0, att.IMAGE_HOST_KEY, att.SECRET_STORE | att.FIRMWARE])
def test_what_was_not_asked_for_is_not_there(
    host: Key, header: headers.Header, configuration: Configuration, ask: int
) -> None:
    request, key = att.create([HostKey(host.public_key())], ask)
    answer = att.perform(request, host, configuration)
    assert len(answer.additional) == sum(size for flag, size in att.ADDITIONAL.items() if ask & flag)
    found = att.verify(answer, key, header)
    assert bool(found.image_host_key) == bool(ask & att.IMAGE_HOST_KEY)
    assert found.development == bool(ask & att.FIRMWARE)


def test_a_request_is_laid_out_as_the_page_says(host: Key, other: Key) -> None:
    """Read here a second time, from the format page alone."""
    request, key = att.create([HostKey(other.public_key()), HostKey(host.public_key())], att.SECRET_STORE)
    assert request[:8] == bytes(8)
    assert struct.unpack_from(">II", request, 8) == (0x100, len(request))
    assert request[28:39] == bytes(11) and request[39] == 2 and request[40:44] == bytes(4)
    assert struct.unpack_from(">IQII", request, 44) == (80, 1 << 62 | 1 << 59, 1, 0)
    x, y = (int.from_bytes(request[at : at + 80], "big") for at in (64, 144))
    customer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP521R1()).public_key()
    slot = request[224 + 80 : 224 + 160]
    assert slot[:32] == hashlib.sha256(point(host.public_key())).digest()
    assert wrapping(host, customer).decrypt(bytes(12), slot[32:], None) == key
    assert len(AESGCM(key).decrypt(request[16:28], request[384:], request[:384])) == 80
    assert len(request) == 384 + 80 + 16


# The measurements that the tests of s390-tools (rust/pv, uvattest/attest.rs) expect for the same constant inputs.
VECTORS = [
    (
        *(bytes([7]) * 256, bytes([8]) * 16, bytes([9]) * 128),
        "88794c62cce7bcf26216deb3f48f 13fea6374b6d7e35bcc5c2ce6812 1db6f45dfc8c171856463549408b"
        "f8e7d1aca11efad0a878af97dc9e 21a1fc2a32f3a675",
    ),
    (
        *(b"", b"", b""),
        "c5c34c93835d1ec23f5c2d778dfa 20129b11b305601742cb2f38e0ed 9894dcdb73fc8695ab6a8dbad074"
        "4073ddc81a5eaafa52e4a15af8de b8d761091922847f",
    ),
]


@pytest.mark.parametrize(("user", "nonce", "additional", "expected"), VECTORS, ids=["all", "least"])
def test_a_measurement_is_that_of_real_tools(user: bytes, nonce: bytes, additional: bytes, expected: str) -> None:
    digests = (bytes([number]) * 64 for number in (1, 2, 3))
    header = headers.Header(b"", 0, 0, b"", *digests, (), 0, raw=bytes([4]) * 16)
    assert att.measure(header, bytes([5]) * 16, user, nonce, additional, bytes([0x41]) * 64) == bytes.fromhex(expected)


def test_files_are_laid_out_as_those_of_pvattest(asked: tuple[bytes, bytes], answer: Answer) -> None:
    request, _ = asked
    file = att.pack_request(request)
    assert file[:8] == b"pvattest"
    assert struct.unpack_from(">IIQ10I", file, 8) == (
        *(0x100, 64 + len(request), 0, len(request), 64, 64, 0, 448, 0, 0, 0, 0, 0),
    )
    assert file[64:] == request
    assert not att.is_answered(att.unpack(file))
    file = att.pack_answer(answer)
    entries = struct.unpack_from(">10I", file, 24)
    parts = [file[at : at + size] for size, at in zip(entries[::2], entries[1::2], strict=True)]
    assert parts == [request, answer.measurement, answer.additional, USER, CUID]
    assert len(file) == struct.unpack_from(">I", file, 12)[0] == 64 + sum(map(len, parts))
    assert att.is_answered(att.unpack(file))


# ---------------------------------------------------------------------------- attacks


def test_every_flipped_byte_of_an_answer_is_refused(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header
) -> None:
    for name in ("request", "measurement", "additional", "user_data", "cuid"):
        value = getattr(answer, name)
        for at in range(len(value)):
            changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            with pytest.raises(AttestationError):
                att.verify(dataclasses.replace(answer, **{name: changed}), asked[1], header)


def test_every_flipped_byte_of_a_file_is_refused_or_changes_nothing(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header
) -> None:
    file, honest = att.pack_answer(answer), att.verify(answer, asked[1], header)
    for at in range(len(file)):
        try:
            found = att.verify(att.unpack(file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]), asked[1], header)
        except AttestationError:
            continue
        assert found == honest and at in range(16, 24), at  # the reserved field


def test_every_flipped_byte_of_a_request_is_refused_by_the_ultravisor(
    asked: tuple[bytes, bytes], host: Key, configuration: Configuration
) -> None:
    request = asked[0]
    for at in range(len(request)):
        with pytest.raises(AttestationError):
            att.perform(request[:at] + bytes([request[at] ^ 1]) + request[at + 1 :], host, configuration)


def test_moved_borders_between_the_parts_are_refused(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header
) -> None:
    """The sizes are measured too: no byte of one part can be taken for one of another."""
    shorter = dataclasses.replace(answer, user_data=USER[:-1], additional=USER[-1:] + answer.additional[:-1])
    for changed in (shorter, dataclasses.replace(answer, user_data=b"", additional=answer.additional)):
        with pytest.raises(AttestationError):
            att.verify(changed, asked[1], header)


def test_the_header_of_another_image_is_refused(asked: tuple[bytes, bytes], answer: Answer, host: Key) -> None:
    out = io.BytesIO()
    image.pack(out, kernel=b"k", cmdline=b"another", initrd=None, hosts=[HostKey(host.public_key())])
    out.seek(0)
    another = image.read_clear(out).header
    with pytest.raises(AttestationError, match="another image"):
        att.verify(answer, asked[1], another)


@pytest.mark.parametrize("field", ["pld", "ald", "tld", "tag"])
def test_each_digest_of_the_header_is_measured(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header, field: str
) -> None:
    change = {"raw": header.raw[:-1] + b"!"} if field == "tag" else {field: bytes(64)}
    with pytest.raises(AttestationError, match="another image"):
        att.verify(answer, asked[1], dataclasses.replace(header, **change))


def test_a_host_that_was_not_asked_can_not_answer(host: Key, other: Key, configuration: Configuration) -> None:
    request, _ = att.create([HostKey(other.public_key())])
    with pytest.raises(AttestationError, match="not made for this host"):
        att.perform(request, host, configuration)


def test_a_host_whose_slot_is_another_hosts_can_not_answer(host: Key, other: Key, configuration: Configuration) -> None:
    request, _ = att.create([HostKey(other.public_key())])
    mine = HostKey(host.public_key()).fingerprint
    with pytest.raises(AttestationError, match="key slot"):
        att.perform(request[:224] + mine + request[256:], host, configuration)


def test_an_older_answer_is_refused(
    asked: tuple[bytes, bytes], answer: Answer, header: headers.Header, host: Key, configuration: Configuration
) -> None:
    """Replayed as it is, and grafted onto the new request."""
    request, key = att.create([HostKey(host.public_key())], EVERYTHING)
    with pytest.raises(AttestationError, match="does not open"):
        att.verify(answer, key, header)
    with pytest.raises(AttestationError, match="does not hold"):
        att.verify(dataclasses.replace(answer, request=request), key, header)
    fresh = att.perform(request, host, configuration, USER)
    with pytest.raises(AttestationError, match="does not hold"):
        att.verify(dataclasses.replace(fresh, measurement=answer.measurement), key, header)


def test_who_asks_for_less_does_not_get_a_verified_answer_to_it(
    host: Key, header: headers.Header, configuration: Configuration
) -> None:
    """Additional data without its flag, and less of it than was asked for."""
    request, key = att.create([HostKey(host.public_key())], att.IMAGE_HOST_KEY)
    answer = att.perform(request, host, configuration)
    for additional in (b"", answer.additional * 2, answer.additional[:-1]):
        with pytest.raises(AttestationError, match="not what was asked for"):
            att.verify(dataclasses.replace(answer, additional=additional), key, header)


def resealed(request: bytes, key: bytes, at: int, new: bytes) -> bytes:
    """A request with a field changed by who knows its key: its tag holds."""
    secret = AESGCM(key).decrypt(request[16:28], request[-96:], request[:-96])
    clear = request[:at] + new + request[at + len(new) : -96]
    return clear + AESGCM(key).encrypt(request[16:28], secret, clear)


@pytest.mark.parametrize(
    ("at", "new", "what"),
    [
        (0, b"\1", "no attestation request"),
        (8, b"\0\0\1\1", "version 0x101"),
        (8, b"\0\0\2\0", "version 0x200"),
        (12, b"\0\0\0\1", "size"),
        (39, b"\0", "size"),
        (39, b"\3", "size"),
        (44, b"\0\0\0\x51", "size"),
        (48, b"\x20", "no nonce"),
        (48, b"\xc0", "not known"),
        (55, b"\1", "not known"),
        (56, b"\0\0\0\2", "kind 2"),
    ],
)
def test_requests_of_other_kinds_are_refused_by_both_sides(
    asked: tuple[bytes, bytes], answer: Answer, host: Key, configuration: Configuration, at: int, new: bytes, what: str
) -> None:
    request = resealed(*asked, at, new)
    with pytest.raises(AttestationError, match=what):
        att.perform(request, host, configuration)
    with pytest.raises(AttestationError, match=what):
        att.verify(dataclasses.replace(answer, request=request), asked[1], configuration.header)


def test_wrong_sizes_are_refused(
    asked: tuple[bytes, bytes], answer: Answer, host: Key, header: headers.Header, configuration: Configuration
) -> None:
    request, key = asked
    for data in (b"", request[:-1], request + b"\0", bytes(att.LARGEST_REQUEST + 1)):
        with pytest.raises(AttestationError):
            att.parse_request(data)
    with pytest.raises(AttestationError, match="257 bytes"):
        att.perform(request, host, configuration, bytes(257))
    with pytest.raises(AttestationError, match="wrong size"):
        att.perform(request, host, dataclasses.replace(configuration, cuid=b"short"))
    for changed in ({"cuid": CUID + b"\0"}, {"user_data": bytes(257)}, {"measurement": answer.measurement[:-1]}):
        with pytest.raises(AttestationError):
            att.verify(dataclasses.replace(answer, **changed), key, header)
    with pytest.raises(AttestationError, match="does not open"):
        att.verify(answer, key[:-1], header)
    for hosts in ([], [HostKey(host.public_key())] * 256):
        with pytest.raises(AttestationError, match="1 to 255"):
            att.create(hosts)
    with pytest.raises(AttestationError, match="not known"):
        att.create([HostKey(host.public_key())], 1 << 63)


def test_files_that_can_not_be_are_refused(answer: Answer) -> None:
    file = att.pack_answer(answer)

    def with_entry(number: int, size: int, at: int) -> bytes:
        return file[: 24 + 8 * number] + struct.pack(">II", size, at) + file[32 + 8 * number :]

    for broken in (
        *(b"", file[:63], b"x" + file[1:], file[:8] + struct.pack(">I", 0x200) + file[12:], file[:-1], file + b"\0"),
        *(with_entry(0, 16, 1), with_entry(0, 16, 63), with_entry(1, 65, 64), with_entry(4, 17, 64)),
        *(with_entry(3, 16, len(file) - 15), with_entry(0, 1 << 31, 64), with_entry(4, 16, 0xFFFFFFFF)),
    ):
        with pytest.raises(AttestationError):
            att.unpack(broken)


@given(st.binary(max_size=700))
def test_any_bytes_only_ever_give_our_errors(data: bytes) -> None:
    for read in (att.unpack, att.parse_request, lambda rest: att.unpack(b"pvattest\0\0\1\0" + rest)):
        with contextlib.suppress(AttestationError):
            read(data)


@given(st.binary(max_size=256), st.binary(max_size=600), st.binary(max_size=64), st.binary(max_size=16), st.binary())
def test_files_come_back_as_they_were(
    user: bytes, additional: bytes, measurement: bytes, cuid: bytes, arcb: bytes
) -> None:
    answer = Answer(arcb, measurement, additional, user, cuid)
    assert att.unpack(att.pack_answer(answer)) == answer


# ---------------------------------------------------------------------------- both levels


def attested(host: Key, configuration: Configuration, says: bytes) -> att.Attested:
    request, key = att.create([HostKey(host.public_key())])
    return att.verify(att.perform(request, host, configuration, says), key, configuration.header)


def test_a_record_belongs_to_the_machine_that_names_its_hash(host: Key, configuration: Configuration) -> None:
    found = attested(host, configuration, machine.user_data(RECORD))
    machine.require_same_machine(RECORD, found)


@pytest.mark.parametrize(
    ("says", "cuid", "what"),
    [
        (b"", CUID, "another record, or none"),
        (hashlib.sha512(RECORD).digest(), CUID, "another record, or none"),
        (machine.user_data(RECORD + b"\n"), CUID, "another record, or none"),
        (machine.user_data(RECORD.replace(b"ab", b"cd")), CUID, "another record, or none"),
        (machine.user_data(RECORD), bytes(16), "another start"),
    ],
    ids=["nothing", "without the label", "one byte more", "another contract", "another start"],
)
def test_a_record_of_another_machine_is_refused(
    host: Key, configuration: Configuration, says: bytes, cuid: bytes, what: str
) -> None:
    found = attested(host, dataclasses.replace(configuration, cuid=cuid), says)
    with pytest.raises(RecordError, match=what) as caught:
        machine.require_same_machine(RECORD, found)
    assert caught.value.id == "RECORD-MACHINE"


def test_a_record_without_the_line_is_bound_by_its_hash(host: Key, configuration: Configuration) -> None:
    plain = b"26.11.0\n" + b"ab" * 32 + b" root.tar.gz"
    found = attested(host, configuration, machine.user_data(plain))
    machine.require_same_machine(plain, found)
    with pytest.raises(RecordError):
        machine.require_same_machine(RECORD, found)


def test_a_record_that_names_another_state_of_the_firmware_is_refused(host: Key, configuration: Configuration) -> None:
    def measured(text: bytes) -> att.Attested:
        request, key = att.create([HostKey(host.public_key())], att.FIRMWARE)
        answer = att.perform(request, host, configuration, machine.user_data(text))
        return att.verify(answer, key, configuration.header)

    line = b"\n%s uv_firmware.state"
    same = RECORD + line % hashlib.sha256(att.SOFTWARE_STATE).hexdigest().encode()
    machine.require_same_machine(same, measured(same))
    other = RECORD + line % (b"ef" * 32)
    with pytest.raises(RecordError, match="another state of the firmware"):
        machine.require_same_machine(other, measured(other))


def test_a_file_says_how_long_it_is_or_is_none(asked: tuple[bytes, bytes], answer: Answer) -> None:
    for file in (att.pack_request(asked[0], USER), att.pack_answer(answer), att.REFUSAL):
        assert att.file_size(file[: att.START]) == len(file)
    assert not att.is_answered(att.unpack(att.REFUSAL))
    assert att.unpack(att.pack_request(asked[0], USER)).user_data == USER
    sizes = (0, 63, att.LARGEST_FILE + 1, 2**32 - 1)
    for start in (bytes(16), b"pvattest" + bytes(8), *(b"pvattest" + struct.pack(">II", 0x100, n) for n in sizes)):
        with pytest.raises(AttestationError):
            att.file_size(start)
