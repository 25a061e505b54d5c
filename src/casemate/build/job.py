"""What a builder machine is told to do, and what it answers: ``casemate-build/1`` and ``casemate-build-result/1``. Pure.

    job = parse_job(approved_bytes)                      # after casemate.approval has said that reviewers approved these bytes
    result = open_result(envelope, builders_certificate) # after the builder's record was verified under the same certificate

Both are strict JSON (:mod:`casemate.strictjson`), 1 MiB at most; a key that is not known, missing, or of another type is refused.

A job names its builder, the builder's generation, and ``after``: the SHA-256 of the job before it (of the first: the job that
made this generation, or nothing). So approvals form a chain: an older job is refused by its revision, and by what it comes after,
even where somebody has put an older state disk back.

A result is signed by the builder's attestation key, RSASSA-PKCS1-v1_5 with SHA-256 over DSSE's pre-authentication
encoding of its own payload type: no record is a result, and no result a record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate import strictjson
from casemate.approval import pae
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

FORMAT, RESULT_FORMAT = "casemate-build/1", "casemate-build-result/1"
RESULT_TYPE = "application/vnd.casemate.build-result+json"
BUNDLE_TYPE = "application/vnd.casemate.bundle+json"
LARGEST, LARGEST_RESULT = 1 << 20, 4 << 20
MOST_HOSTS, MOST_REVOKED, MOST_FILES = 64, 4096, 64
IMAGE, BUILDER, CRL = "image", "builder", "crl"
MODES = (IMAGE, BUILDER, CRL)
KERNEL, INITRD, BILL, PACKAGES, SOURCE = "kernel", "initrd", "sbom.spdx.json", "packages.txt", "source.deb"
READY_PARTS = (KERNEL, INITRD, BILL, PACKAGES)
"""Files that come in where an image is made of parts; of the root archive only the hash does."""
BUNDLES = (PACKAGES, SOURCE)
"""Files that come in where the root is built inside, and after them ``SHA256.deb`` for each line of ``packages.txt``."""
REASONS = ("unspecified", "key-compromise", "ca-compromise", "superseded", "cessation")
_HEX, BUILDER_NAME = re.compile(r"[0-9a-f]{64}"), re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")


class JobError(CasemateError):
    """A build configuration is none of the form that is known. ``BUILD-JOB``."""

    id = "BUILD-JOB"


class ResultError(CasemateError):
    """A result does not hold, or belongs to something else. ``BUILD-RESULT``."""

    id = "BUILD-RESULT"


@dataclass(frozen=True, slots=True)
class Part:
    """A file by its SHA-256 (hex) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Job:
    """A build configuration.

    ``hosts``: names and host key documents (PEM) of who may open the image; ``keyset``: a verified keyset in their place, JSON.
    ``parts``: files that come in; with ``root`` (the root archive's hash and size), ``release`` and ``selection`` the
    image is made of these parts, else the root is built inside. ``signature``: of the source bundle, by the pipeline's
    key (:func:`bundle_signature`). ``intermediate``,
    ``root_list``: the authority's answers, PEM, where they are new. ``reviewers``: who approves jobs of the next generation.
    """

    mode: str
    builder: str
    generation: int
    after: str
    arch: str = "amd64"
    hosts: tuple[tuple[str, bytes], ...] = ()
    keyset: bytes = b""
    parts: dict[str, Part] = field(default_factory=dict)
    root: Part | None = None
    release: str = ""
    selection: dict[str, Any] = field(default_factory=dict)
    signature: bytes = b""
    revoke: tuple[tuple[int, str], ...] = ()
    intermediate: bytes = b""
    root_list: bytes = b""
    reviewers: bytes = b""

    @property
    def ready(self) -> bool:
        """Whether the parts come in ready: then only keys are made inside."""
        return self.root is not None

    def as_bytes(self) -> bytes:
        """The file, in one form. Raises :class:`JobError` where it would not read back."""
        document: dict[str, Any] = {
            **{"format": FORMAT, "mode": self.mode, "builder": self.builder, "generation": self.generation},
            **{"after": self.after, "arch": self.arch},
        }
        try:
            optional = self._optional()
        except UnicodeDecodeError:
            raise JobError(
                "a certificate, list, or file of text in it is none", "give certificates and lists as PEM"
            ) from None
        document |= {name: value for name, value in optional.items() if value}
        data = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"
        if parse_job(data) != self:
            raise JobError("a value can't stand in a build configuration", "correct it")
        return data

    def _optional(self) -> dict[str, Any]:
        return {
            "hosts": [{"name": name, "document": data.decode("ascii")} for name, data in self.hosts],
            "keyset": self.keyset.decode("utf-8"),
            "parts": {name: _part_as_dict(part) for name, part in self.parts.items()},
            "root": _part_as_dict(self.root) if self.root else None,
            **{"release": self.release, "selection": self.selection},
            "signature": strictjson.b64(self.signature),
            "revoke": [{"serial": f"{serial:x}", "reason": reason} for serial, reason in self.revoke],
            "intermediate": self.intermediate.decode("ascii"),
            "root_list": self.root_list.decode("ascii"),
            "reviewers": self.reviewers.decode("utf-8"),
        }


def subject(builder: str) -> str:
    """Return what approvals of a builder's jobs are for."""
    return f"build.{builder}"


def parse_job(data: bytes) -> Job:
    """Read a build configuration that was approved. Raises :class:`JobError`."""
    document = _object(data, LARGEST, JobError, "build configuration")
    needed = {"format", "mode", "builder", "generation", "after", "arch"}
    known = {"hosts", "keyset", "parts", "root", "release", "selection", "signature", "revoke", "intermediate"}
    if not needed <= set(document) <= needed | known | {"root_list", "reviewers"}:
        raise _job("a key is missing, or not known")
    if document["format"] != FORMAT or document["mode"] not in MODES or document["arch"] not in ("amd64", "s390x"):
        raise _job("format, mode or architecture is another")
    if not _matches(BUILDER_NAME, document["builder"]) or not (
        document["after"] == "" or _matches(_HEX, document["after"])
    ):
        raise _job("it names no builder, or nothing that it comes after")
    if type(document["generation"]) is not int or not 1 <= document["generation"] <= 1 << 30:
        raise _job("a generation is a whole number from 1")
    parts = {str(name): _part(part) for name, part in _dict(document, "parts").items()}
    root = _part(document["root"]) if "root" in document else None
    texts = {name: _text(document, name) for name in ("keyset", "intermediate", "root_list", "reviewers", "release")}
    job = Job(
        *(document["mode"], document["builder"], document["generation"], document["after"], document["arch"]),
        hosts=tuple(_host(one) for one in _list(document, "hosts", MOST_HOSTS)),
        keyset=texts["keyset"].encode(),
        parts=parts,
        root=root,
        release=texts["release"],
        selection=_dict(document, "selection"),
        signature=_base64(_text(document, "signature"), JobError),
        revoke=tuple(_revoked(one) for one in _list(document, "revoke", MOST_REVOKED)),
        intermediate=texts["intermediate"].encode(),
        root_list=texts["root_list"].encode(),
        reviewers=texts["reviewers"].encode(),
    )
    _check(job)
    return job


def _check(job: Job) -> None:
    """What fits together and what doesn't."""
    if job.mode == CRL:
        if (
            job.hosts
            or job.keyset
            or job.parts
            or job.root
            or job.release
            or job.selection
            or job.signature
            or job.reviewers
        ):
            raise _job("a revocation list is made of serial numbers, nothing else")
        return
    if job.revoke or (job.reviewers and job.mode != BUILDER):
        raise _job("serial numbers are for a revocation list, reviewers for a builder")
    if bool(job.hosts) == bool(job.keyset):
        raise _job("an image is for hosts, or for a keyset of hosts: one of both")
    if len({name for name, _ in job.hosts}) != len(job.hosts):
        raise _job("a host stands twice")
    if set(job.parts) != set(READY_PARTS if job.ready else BUNDLES):
        raise _job("the files that come in are not those of this kind of build")
    if job.ready != bool(job.release) or job.ready != bool(job.selection) or job.ready == bool(job.signature):
        raise _job("ready parts have a release and a selection, a source bundle has a signature")
    if job.release and not _WORD.fullmatch(job.release):
        raise _job("the kernel's release is none")


def bundle_statement(source: Part, number: int) -> bytes:
    """Return what the build pipeline signs of a source bundle (P-384, ECDSA with SHA-384), encoded for signing.

    ``number`` grows from bundle to bundle: a builder takes none that is older than one that it has built.
    """
    document = {"name": SOURCE, "number": number, "sha256": source.sha256, "size": source.size}
    return pae(BUNDLE_TYPE, strictjson.dumps(document))


def bundle_signature(number: int, signature: bytes) -> bytes:
    """Return a bundle's number (8 bytes, big-endian) and its signature (DER), as they stand in a job and beside the bundle."""
    return number.to_bytes(8, "big") + signature


def open_bundle_signature(data: bytes) -> tuple[int, bytes]:
    """Return a bundle's number and its signature, of which nothing is verified."""
    return int.from_bytes(data[:8], "big"), data[8:]


# --- results ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What a builder machine says that it did.

    ``job``, ``approval``, ``record``: SHA-256 of the configuration, its approval, and the builder's own record. ``after``: of the
    configuration before. ``counter``: how many results this builder has put out. ``files``: all that came out, by name.
    ``head``: the last line of the log of the builder's keys.
    """

    builder: str
    generation: int
    mode: str
    revision: int
    approved_by: tuple[str, ...]
    job: str
    approval: str
    record: str
    after: str
    counter: int
    files: dict[str, Part]
    head: str
    finished: str

    def as_bytes(self) -> bytes:
        """The payload that is signed, in one form."""
        document = {
            **{"format": RESULT_FORMAT, "builder": self.builder, "generation": self.generation, "mode": self.mode},
            **{"revision": self.revision, "approved_by": list(self.approved_by)},
            **{"job": self.job, "approval": self.approval, "record": self.record, "after": self.after},
            **{"counter": self.counter, "head": self.head, "finished": self.finished},
            "files": {name: _part_as_dict(part) for name, part in self.files.items()},
        }
        return strictjson.dumps(document)


def sign_result(result: Result, key: RSAPrivateKey) -> bytes:
    """Return the envelope of a result."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    payload = result.as_bytes()
    signature = key.sign(pae(RESULT_TYPE, payload), PKCS1v15(), SHA256())
    document = {
        **{"payloadType": RESULT_TYPE, "payload": strictjson.b64(payload)},
        "signatures": [{"keyid": "", "sig": strictjson.b64(signature)}],
    }
    return json.dumps(document).encode() + b"\n"


def open_result(envelope: bytes, key: RSAPublicKey) -> Result:
    """Return a result whose signature holds under the key of a builder's attestation certificate. Raises :class:`ResultError`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    document = _object(envelope, LARGEST_RESULT, ResultError, "result")
    signatures = document.get("signatures")
    if (
        set(document) != {"payloadType", "payload", "signatures"}
        or document["payloadType"] != RESULT_TYPE
        or not isinstance(signatures, list)
        or len(signatures) != 1
        or not isinstance(signatures[0], dict)
    ):
        raise ResultError("this is no envelope of a result", "take what the builder machine has put out")
    payload = _base64(document["payload"], ResultError)
    try:
        signature = _base64(signatures[0].get("sig"), ResultError)
        key.verify(signature, pae(RESULT_TYPE, payload), PKCS1v15(), SHA256())
    except InvalidSignature:
        raise ResultError("this builder has not signed it", "nothing in it can be believed") from None
    result = _result(_object(payload, LARGEST_RESULT, ResultError, "result"))
    if result.as_bytes() != payload:
        raise ResultError("it is written in another form", "it was made by another release")
    return result


def _result(document: Mapping[str, Any]) -> Result:
    try:
        if document["format"] != RESULT_FORMAT or len(document) != 14:
            raise ValueError
        texts = [
            document[name] for name in ("builder", "mode", "job", "approval", "record", "after", "head", "finished")
        ]
        numbers = [document[name] for name in ("generation", "revision", "counter")]
        names = document["approved_by"]
        files = {str(name): _part(part) for name, part in document["files"].items()}
        if not all(isinstance(text, str) for text in (*texts, *names)) or any(type(one) is not int for one in numbers):
            raise ValueError
        if len(files) > MOST_FILES or not all(_WORD.fullmatch(name) for name in files):
            raise ValueError
        builder, mode, job, approval, record, after, head, finished = texts
        generation, revision, counter = numbers
    except (KeyError, ValueError, TypeError, AttributeError, JobError):
        raise ResultError(f"it is none of the form {RESULT_FORMAT}", "it was made by another release") from None
    return Result(
        *(
            builder,
            generation,
            mode,
            revision,
            tuple(names),
            job,
            approval,
            record,
            after,
            counter,
            files,
            head,
            finished,
        )
    )


# --- pieces -----------------------------------------------------------------------------------------------------


def _job(cause: str) -> JobError:
    return JobError(cause, "casemate buildvm job writes one")


def _object(data: bytes, limit: int, error: type[CasemateError], what: str) -> dict[str, Any]:
    try:
        document = strictjson.loads(data) if len(data) <= limit else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise error(f"the {what} is too large, no JSON object, or says something twice", "is it the right file?")
    return document


def _part_as_dict(part: Part) -> dict[str, Any]:
    return {"sha256": part.sha256, "size": part.size}


def _part(said: object) -> Part:
    if not isinstance(said, dict) or set(said) != {"sha256", "size"} or not _matches(_HEX, said["sha256"]):
        raise _job("a file has a SHA-256 and a size")
    if type(said["size"]) is not int or not 0 <= said["size"] <= 16 << 30:
        raise _job("a file's size can't be")
    return Part(said["sha256"], said["size"])


def _host(said: object) -> tuple[str, bytes]:
    if not isinstance(said, dict) or set(said) != {"name", "document"} or not _matches(_WORD, said["name"]):
        raise _job("a host has a name and a document")
    document = said["document"]
    if not isinstance(document, str) or not document.isascii() or not 0 < len(document) <= 64 << 10:
        raise _job("a host key document is PEM")
    return said["name"], document.encode()


def _revoked(said: object) -> tuple[int, str]:
    if not isinstance(said, dict) or set(said) != {"serial", "reason"} or said["reason"] not in REASONS:
        raise _job("what is revoked has a serial number and a reason")
    if not isinstance(said["serial"], str) or not re.fullmatch("[1-9a-f][0-9a-f]{0,39}", said["serial"]):
        raise _job("a serial number is up to 40 hexadecimal digits")
    return int(said["serial"], 16), said["reason"]


def _dict(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise _job(f"{name} is an object")
    return found


def _list(document: Mapping[str, Any], name: str, most: int) -> list[Any]:
    found = document.get(name, [])
    if not isinstance(found, list) or len(found) > most:
        raise _job(f"{name} is a list of {most} entries at most")
    return found


def _text(document: Mapping[str, Any], name: str) -> str:
    found = document.get(name, "")
    if not isinstance(found, str) or (name != "reviewers" and name != "keyset" and not found.isascii()):
        raise _job(f"{name} is a text")
    return found


def _base64(text: object, error: type[CasemateError]) -> bytes:
    try:
        return strictjson.unb64(text)
    except ValueError:
        raise error("something in it is not base64", "take it as it was written") from None


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
