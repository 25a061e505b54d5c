"""Checks contracts: every problem at once, each with its place and what to do. Used by the host and the guest.

    for problem in check_sections(workload, env):
        print(problem)         # workload.volumes.data: env has no seed for this volume; …

``schema.json`` has the form of the sections; what a schema can't say is below, a function a rule. A rule takes what has
the right form and passes over the rest, which the schema has told of: one mistake hides no other. No message holds a
value of the contract: places, names of keys, and rules only.

The rules know no clock. Where a caller gives ``now``, certificates are parsed and their dates are told too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from casemate.contract.admission import entries
from casemate.contract.archive import Archive, read_archive
from casemate.contract.document import KEYS, SECTIONS, Contract, exact, outer, parse_section
from casemate.contract.errors import ContractError, DocumentError, ImageError, TokenError, printable
from casemate.contract.images import (
    OPEN,
    Open,
    Reference,
    play_images,
    read_compose,
    services_images,
    variables,
    with_defaults,
)
from casemate.contract.keys import (
    WARN_DAYS,
    certificates_alone,
    first_block,
    kinds,
    load_public_key,
    pem_of,
    validity,
)
from casemate.contract.schema import fulfils, schema
from casemate.contract.workload import Places, Problems, Workload

if TYPE_CHECKING:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

Severity = Literal["error", "warning", "note"]
Section = Mapping[str, Any]

_SYSTEM = re.compile(r"/(proc|sys|dev)(/.*)?")  # others are names only: a volume lies elsewhere

_NOT_YET = ("uv-secret-id", "uv-previous-secret-id", "grep11")
_NOT_HERE = {
    "host-attestation": "no machine here asks for its host's key; make images for the hosts that you trust",
    "crypto-pt": "no machine here has a crypto card",
}
_PEM_KINDS = {
    "server": ("CERTIFICATE", "HPL01007E"),
    "cert": ("CERTIFICATE", "HPL01008E"),
    "key": ("PRIVATE KEY", "HPL01009E"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to know. An ``error`` stops a machine, a ``warning`` doesn't, a ``note`` says what was not checked."""

    place: str
    text: str
    severity: Severity = "error"
    id: str = "HPL05001E"

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def check_sections(workload: Section, env: Section, *, now: datetime.datetime | None = None) -> list[Problem]:
    """Check two opened sections, each by itself and against the other: the whole check of the guest."""
    return [*check_workload(workload, env), *check_env(env, now=now), *_partners(workload, env)]


def check_workload(workload: Section, env: Section | None = None) -> list[Problem]:
    """Check a workload section; without ``env``, what hangs on the deployer's values is left open."""
    return _with_rules(
        _form("workload", workload), _mounts(workload), _workload_seeds(workload), _containers(workload, env)
    )


def check_env(env: Section, *, now: datetime.datetime | None = None) -> list[Problem]:
    """Check an env section by itself."""
    return _with_rules(
        _form("env", env),
        (Problem(f"env.{key}", f"is not supported: {why}") for key, why in _NOT_HERE.items() if key in env),
        _key_services(env),
        _anchors(env, now),
        _syslog(env, now),
        _authorities(env, now),
        _signing_key(env, now),
    )


def _with_rules(form: Iterable[Problem], *rules: Iterable[Problem]) -> list[Problem]:
    """Join the problems of form and rules; a rule adds nothing where the form is wrong already, nothing is said twice."""
    problems = dict.fromkeys(form)
    told = {problem.place for problem in problems}
    for rule in rules:
        problems |= dict.fromkeys(problem for problem in rule if problem.place not in told)
    return list(problems)


def check_contract(
    data: bytes,
    certificate: bytes | None = None,
    *,
    key: RSAPrivateKey | None = None,
    now: datetime.datetime | None = None,
) -> list[Problem]:
    """Check ``user-data``: the outer contract and what is plain in it. Sealed parts are noted as not checkable.

    ``certificate`` (PEM) is the one that the tokens should be sealed for; their form is checked against it. Who holds
    the private ``key`` has what is sealed checked too.
    """
    try:
        document = parse_section(data)
    except DocumentError as error:
        return [Problem(error.where, _sentence(error), id="HPL05000E")]
    contract, faults = outer(document)
    problems = [Problem(fault.where, _sentence(fault), id="HPL05000E") for fault in faults]
    problems += [_unknown("", name, KEYS, closed=False) for name in contract.unknown]
    problems += _dates("encryption certificate", certificate, now, ("HPL12011W", "HPL12013W", "warning"))
    opened: dict[str, Section] = {}
    for name in SECTIONS:
        text = contract.workload if name == "workload" else contract.env
        if not text:
            continue
        plain = _opened(name, text, certificate, key, problems)
        if plain is None:
            continue
        try:
            opened[name] = parse_section(plain)
        except DocumentError as error:
            place = f"{name}, {error.where} of its text" if error.where else name
            problems.append(Problem(place, _sentence(error), id="HPL05000E"))
    workload, env = opened.get("workload"), opened.get("env")
    if workload is not None:
        problems += check_workload(workload, env)
    if env is not None:
        problems += check_env(env, now=now)
    if workload is not None and env is not None:
        problems += _partners(workload, env)
    if contract.workload and contract.env:
        problems += _signature(contract, env)
    problems += _auditor(contract, certificate, key)
    return problems


def check_any(
    data: bytes,
    certificate: bytes | None = None,
    *,
    key: RSAPrivateKey | None = None,
    now: datetime.datetime | None = None,
) -> list[Problem]:
    """Check a contract, or a section or token by itself; sections are told apart by the ``type`` that they have."""
    from casemate.contract.token import is_token

    text = data[: 2 << 20].decode("utf-8", "replace").strip()
    if is_token(text):
        problems: list[Problem] = []
        plain = _opened("", text, certificate, key, problems)
        return problems if plain is None else [*problems, *check_any(plain, certificate, now=now)]
    try:
        section = parse_section(data)
    except DocumentError as error:
        return [Problem(error.where, _sentence(error), id="HPL05000E")]
    if section.get("type") == "workload":
        return check_workload(section)
    if section.get("type") == "env":
        return check_env(section, now=now)
    return check_contract(data, certificate, key=key, now=now)


def problems_stop(problems: Iterable[Problem]) -> bool:
    """Whether there is an error among the problems: a machine would not go on."""
    return any(problem.severity == "error" for problem in problems)


# ------------------------------------------------------------------------------------------------- form


def _form(name: str, section: Section) -> Iterator[Problem]:
    """Check a section against the schema; one readable sentence an error."""
    whole = schema()
    if not fulfils(section, whole["$defs"][name], whole["$defs"]):
        yield from faults(name, section, whole)
    properties = whole["$defs"][name]["properties"]
    for key in section:
        if key not in properties:
            yield _unknown(name, key, properties, closed=False)


def faults(name: str, section: Section, whole: dict[str, Any]) -> Iterator[Problem]:
    """Have the library explain what is wrong. An emulated guest takes seconds to import it, so it is not asked before."""
    import jsonschema

    def pattern(_validator: Any, expression: str, value: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and not re.fullmatch(expression, value):  # `$` alone allows a newline after it
            yield jsonschema.ValidationError("another form")

    strict: Any = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    validator = strict({"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]})
    for error in sorted(validator.iter_errors(section), key=lambda error: [str(part) for part in error.absolute_path]):
        yield from _readable(_place(name, error.absolute_path), error)


def _readable(place: str, error: Any) -> Iterator[Problem]:
    rule, value = error.validator, error.schema
    identifier = value.get("x-id", "HPL05001E")
    if rule == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        if (lost := next((key for key in missing if repr(key) in error.message), None)) is not None:
            yield Problem(_place(place, [lost]), "is missing", id=identifier)
    elif rule == "additionalProperties":
        for key in error.instance:
            if key not in value.get("properties", {}):
                yield _unknown(place, key, value.get("properties", {}), closed=True)
    elif rule == "type" and "x-must" not in value:
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        yield Problem(place, f"must be {' or '.join(_WORDS[kind] for kind in wanted)}", id=identifier)
    elif rule == "enum":
        yield Problem(place, f"must be one of {', '.join(map(str, error.validator_value))}", id=identifier)
    elif rule == "const":
        yield Problem(place, f"must be {error.validator_value}", id=identifier)
    elif "propertyNames" in error.absolute_schema_path:
        yield Problem(place, f"the name {_shown(error.instance)}: {value['x-must']}", id=identifier)
    else:
        yield Problem(place, f"must {value.get('x-must', 'have another form')}", id=identifier)


_WORDS = {
    "string": "text",
    "object": "a mapping",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
}


def _unknown(place: str, key: str, known: Iterable[str], *, closed: bool) -> Problem:
    """An unknown key. In an open place it is an error only where it looks like a slip of a known one."""
    near = _close_matches(key, list(known), 0.6 if closed else 0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    severity: Severity = "error" if closed or near else "warning"
    return Problem(_place(place, [key]), f"no such key{hint}", severity)


def _close_matches(word: str, known: list[str], cutoff: float = 0.6) -> list[str]:
    import difflib

    return difflib.get_close_matches(word, known, 1, cutoff)


def _place(start: str, path: Iterable[Any]) -> str:
    """Write a path as ``workload.volumes.data.seed``, names with other characters in brackets."""
    text = start
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{_shown(part)}]"
    return text


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= 60 else name[:57] + "...")


def _sentence(error: ContractError) -> str:
    return f"{error.cause}; {error.cure}" if error.cure else error.cause


# ------------------------------------------------------------------------------------------------- volumes


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one where there is something else, of which the schema tells."""
    return value if isinstance(value, dict) else {}


def _volumes(section: Section) -> dict[str, dict[str, Any]]:
    return {name: value for name, value in _mapping(section.get("volumes")).items() if isinstance(value, dict)}


def _mounts(workload: Section) -> Iterator[Problem]:
    used: dict[str, str] = {}
    for name, volume in _volumes(workload).items():
        mount = volume.get("mount", "/mnt/data")
        place = _place("workload.volumes", [name, "mount"])
        if not isinstance(mount, str):
            continue
        if _SYSTEM.fullmatch(mount):
            yield Problem(place, "is a directory of the system; mount volumes under /mnt or /data", id="HPL07001E")
        if mount in used:
            other = _place("", [used[mount]])
            yield Problem(place, f"is the mount point of the volume {other} already", id="HPL07001E")
        used.setdefault(mount, name)


def _workload_seeds(workload: Section) -> Iterator[Problem]:
    for name, volume in _volumes(workload).items():
        if "seed" not in volume:
            place = _place("workload.volumes", [name, "seed"])
            yield Problem(place, "is missing: a volume is opened with a seed of each party", id="HPL07001E")


def _key_services(env: Section) -> Iterator[Problem]:
    """Third seeds: what is supported is understood, and nothing else is passed over, or the passphrase would be weaker."""
    for name, volume in _volumes(env).items():
        for key in _NOT_YET:
            if key in volume:
                yield Problem(_place("env.volumes", [name, key]), "is not supported yet; use kms", id="HPL07001E")
        if not {"kms", "kmsTimeout"} & volume.keys():
            continue
        from casemate.contract import keyservices

        if "kms" in volume:
            yield from _attempt(
                _place("env.volumes", [name, "kms"]), "HPL07001E", partial(keyservices.read_services, volume["kms"])
            )
        yield from _attempt(
            _place("env.volumes", [name, "kmsTimeout"]), "HPL07001E", partial(keyservices.patience, volume)
        )


def _anchors(env: Section, now: datetime.datetime | None) -> Iterator[Problem]:
    """Freshness anchors can be reached and believed by what the contract says."""
    for name, volume in _volumes(env).items():
        if "anchor" in volume:
            from casemate.contract import anchors

            place = _place("env.volumes", [name, "anchor"])
            try:
                anchor = anchors.read_anchor(volume["anchor"])
            except ContractError as error:
                yield Problem(place, _sentence(error), id="HPL07001E")
                continue
            yield from _trusted_by(_place("env.volumes", [name, "anchor", "ca"]), anchor.ca, now, "HPL07001E")


def _partners(workload: Section, env: Section) -> Iterator[Problem]:
    """Each volume has a seed in both sections."""
    ours, theirs = _volumes(workload), _volumes(env)
    for name in ours:
        given = theirs.get(name)
        if given is None:
            if name not in _mapping(env.get("volumes")):
                place = _place("workload.volumes", [name, "seed"] if "seed" in ours[name] else [name])
                yield Problem(place, "has no partner: env has no seed for this volume", id="HPL07001E")
        elif "seed" not in given:
            yield Problem(_place("env.volumes", [name, "seed"]), "is missing", id="HPL07001E")
        if "anchor" in (given or {}) and ours[name].get("filesystem") != "btrfs":
            text = "an anchor needs a volume with filesystem: btrfs, whose blocks are bound to its generation"
            yield Problem(_place("env.volumes", [name, "anchor"]), text, id="HPL07001E")
    for name, volume in theirs.items():
        if name not in _mapping(workload.get("volumes")):
            near = _close_matches(name, list(ours))
            hint = f"; did you mean {_place('', near)}?" if near else ""
            place = _place("env.volumes", [name, "seed"] if "seed" in volume else [name])
            text = f"has no partner: workload has no volume of this name{hint}"
            yield Problem(place, text, id="HPL07001E")


# ------------------------------------------------------------------------------------------------- containers


def _containers(workload: Section, env: Section | None) -> Iterator[Problem]:
    """The containers are understood; every image is named by digest, or has a key; the variables are given."""
    given: dict[str, str] = {**_variables(env or {}), **_variables(workload)}
    if env is None:
        given = Open(given)
    trusted = _trusted(workload)
    yield from trusted.problems
    mounts = {str(volume.get("mount", "/mnt/data")): f"/volumes/{name}" for name, volume in _volumes(workload).items()}
    if isinstance(text := _mapping(workload.get("compose")).get("archive"), str):
        place = "compose.archive"
        try:
            archive = read_archive(text)
            name, content = archive.compose()
            given = with_defaults(archive, given)
            place = f"{place}, {name}"
            document = read_compose(content)
        except ContractError as error:
            where = ", ".join(filter(None, (f"workload.{place}", error.where)))
            yield Problem(where, _sentence(error), id=getattr(error, "message", "HPL06009E"))
            return
        yield from _needed(f"workload.{place}", document, given)
        yield from _images(services_images(place, document, given), trusted)
        from casemate.contract import compose

        made = compose.translate(
            document, given, Places("/archive", "/scratch", mounts, archive.files), problems := Problems()
        )
        yield from (Problem(f"workload.{place}, {each.where}", each.cause, id="HPL08002E") for each in problems)
        yield from _noted(f"workload.{place}, ", problems)
        yield from _not_packed(f"workload.{place}", made, archive)
    elif play := _mapping(workload.get("play")):
        yield from _pods(play, given, mounts, trusted)
    elif "confidential-containers" in workload:
        text = "this version starts compose and play workloads only"
        yield Problem("workload.confidential-containers", text, id="HPL05003E")


def _pods(play: Section, given: dict[str, str], mounts: dict[str, str], trusted: _Trust) -> Iterator[Problem]:
    from casemate.contract import play as pods

    manifests, problems = pods.read_play(play, given)
    archive = Archive({})
    if isinstance(play.get("archive"), str):
        with suppress(ContractError):  # told of already
            archive = read_archive(play["archive"])
    yield from _images(play_images(manifests), trusted)
    made = pods.translate(manifests, given, Places("/archive", "/scratch", mounts, archive.files), problems)
    yield from (Problem(f"workload.{each.where}", each.cause, id="HPL15000E") for each in problems)
    yield from _noted("workload.", problems)
    yield from _not_packed("workload.play.archive", made, archive)


def _noted(place: str, problems: Problems) -> Iterator[Problem]:
    return (Problem(f"{place}{each.where}", each.cause, "warning", "HPL08013W") for each in problems.notes)


def _needed(place: str, document: Any, given: Mapping[str, str]) -> Iterator[Problem]:
    """What the deployer has to give; and names without a value that nobody gives, which a container will not have."""
    alone: set[str] = set()
    for service in document["services"].values():
        environment = _mapping(service).get("environment")
        names = (
            {name: None for name in environment if isinstance(name, str)}
            if isinstance(environment, list)
            else environment
        )
        alone |= {name for name, value in _mapping(names).items() if value is None and "=" not in name}
    lost = sorted(name for name in alone - given.keys() if name.isprintable())
    if isinstance(given, Open):
        if wanted := sorted({*_unset(document), *lost} - given.keys()):
            yield Problem(place, f"env has to give {', '.join(wanted)}", "note")
    else:
        for name in lost:
            yield Problem(
                place, f"the variable {name} is given by neither section: its container will not have it", "warning"
            )


def _not_packed(place: str, made: Workload, archive: Archive) -> Iterator[Problem]:
    """Relative mounts that the archive has nothing for: maybe a directory to write to, maybe a slip."""
    there = {*archive.files, *archive.directories, "."}
    for service in made.services:
        for path in service.directories:
            name = path.removeprefix("/archive").lstrip("/") or "."
            if path.startswith("/archive") and name not in there:
                text = f"the archive has no {printable(name)[:80]}: {service.name} gets an empty directory"
                yield Problem(place, text, "warning")


@dataclass(frozen=True, slots=True)
class _Trust:
    names: frozenset[str]
    problems: tuple[Problem, ...]


def _trusted(workload: Section) -> _Trust:
    """Return the full names of images that have a key, and what is wrong with keys."""
    names, problems = set(), []
    for path, name, entry in entries(workload):
        names.add(name)
        if isinstance(entry, ImageError):
            problems.append(Problem(_place("workload", path), _sentence(entry), id=entry.id))
    return _Trust(frozenset(names), tuple(problems))


def _images(found: Mapping[str, Reference | ImageError], trusted: _Trust) -> Iterator[Problem]:
    for place, image in found.items():
        if isinstance(image, ImageError):
            yield Problem(f"workload.{place}", _sentence(image), id="HPL06009E")
        elif image.digest is None and not _may_be_good(image, trusted):
            text = "has neither a digest nor a key; write name@sha256:…, or add its key under images"
            yield Problem(f"workload.{place}", text, id="HPL06010E")


def _may_be_good(image: Reference, trusted: _Trust) -> bool:
    """Whether an image without a digest has a key, or may get one or the other from values that are not known yet."""
    if OPEN in image.path or OPEN in (image.tag or ""):
        return True
    if image.registry.startswith(OPEN):  # whatever the registry, the rest says what is missing
        return any(name.endswith(f"/{image.path}") for name in trusted.names)
    return image.name in trusted.names


def _unset(document: Any) -> set[str]:
    """The variables without a default that the values of a compose file use."""
    found: set[str] = set()
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            found |= {name for name, needed in variables(value).items() if needed}
    return found


# ------------------------------------------------------------------------------------------------- keys


def _syslog(env: Section, now: datetime.datetime | None) -> Iterator[Problem]:
    syslog = _mapping(_mapping(env.get("logging")).get("syslog"))
    keys = {}
    for key, (kind, identifier) in _PEM_KINDS.items():
        place = f"env.logging.syslog.{key}"
        if not isinstance(syslog.get(key), str):
            continue
        try:
            pem = pem_of(syslog[key])
        except ContractError as error:
            yield Problem(place, _sentence(error), id="HPL01005E")
            continue
        found = kinds(pem)[0]
        if key == "server" and (problems := list(_trusted_by(place, pem, now, identifier))):
            yield from problems
        elif not found.endswith(kind):
            yield Problem(place, f"must be a {kind.lower()}", id=identifier)
        elif "ENCRYPTED" in found or b"Proc-Type: 4,ENCRYPTED" in pem:
            yield Problem(place, "is protected by a password; remove it, the section is sealed", id="HPL01006E")
        elif now is not None:
            keys[key] = _public_half(pem, kind)
            if keys[key] is None:
                damaged = identifier if kind == "CERTIFICATE" else "HPL01006E"
                yield Problem(place, f"the {kind.lower()} is damaged", id=damaged)
            elif kind == "CERTIFICATE":
                yield from _dates(place, pem, now, ("HPL01011E", "HPL01011E", "warning"))
    if keys.get("cert") and keys.get("key") and keys["cert"] != keys["key"]:
        yield Problem("env.logging.syslog.key", "does not belong to cert, the certificate beside it", id="HPL01006E")


def _public_half(pem: bytes, kind: str) -> bytes | None:
    """The public key of a certificate or private key of any kind, as DER; ``None`` where it can't be read."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key: Any = _certificate(pem) if kind == "CERTIFICATE" else load_pem_private_key(pem, None)
        return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except Exception:  # whatever a parser makes of it
        return None


def _certificate(pem: bytes) -> x509.Certificate:
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(first_block(pem))


def _authorities(env: Section, now: datetime.datetime | None) -> Iterator[Problem]:
    """The authorities for registries are certificates."""
    entries = env.get("cacerts")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        for name, text in _mapping(entry).items():
            place = _place("env.cacerts", [number, name])
            if isinstance(text, str):
                yield from _trusted_by(place, text, now, "HPL05001E")


def _trusted_by(place: str, text: str | bytes, now: datetime.datetime | None, identifier: str) -> Iterator[Problem]:
    """What says whom to trust has certificates, and nothing that would be passed over."""
    try:
        found = certificates_alone(pem_of(text))
    except ContractError as error:
        yield Problem(place, _sentence(error), id=identifier)
        return
    if now is not None and None in [_public_half(one, "CERTIFICATE") for one in found]:
        yield Problem(place, "a certificate is damaged", id=identifier)


def _signing_key(env: Section, now: datetime.datetime | None) -> Iterator[Problem]:
    place, text = "env.signingKey", env.get("signingKey")
    if isinstance(text, str):
        problems = list(_attempt(place, "HPL12003E", lambda: _load_signing_key(text, now)))
        if problems or now is None:
            yield from problems
            return
        from casemate.contract.signature import read_signing_key, trusted  # late: a machine comes not so far

        try:
            key = trusted(read_signing_key(text), now)
        except ContractError as error:
            yield Problem(place, _sentence(error), id="HPL12003E")
            return
        if key.not_before is not None and key.not_after is not None:
            yield from _bounds(place, key.not_before, key.not_after, now, ("HPL12006E", "HPL12007E", "error"))


def _load_signing_key(text: str, now: datetime.datetime | None) -> None:
    pem = pem_of(text)
    if now is not None or kinds(pem)[0] not in ("PUBLIC KEY", "CERTIFICATE"):  # else hpl-signature reads it
        load_public_key(pem)


def _dates(
    place: str, pem: bytes | None, now: datetime.datetime | None, told: tuple[str, str, Severity]
) -> Iterator[Problem]:
    """Tell of a certificate (not of a bare key) that is not valid now, or not for long: identifiers and severity."""
    if pem is not None and now is not None and kinds(pem) and kinds(pem)[0].endswith("CERTIFICATE"):
        yield from _bounds(place, *validity(pem), now, told)


def _bounds(
    place: str,
    begins: datetime.datetime,
    ends: datetime.datetime,
    now: datetime.datetime,
    told: tuple[str, str, Severity],
) -> Iterator[Problem]:
    soon, over, severity = told
    if now < begins:
        yield Problem(place, f"the certificate is valid only from {begins:%Y-%m-%d}", severity, over)
    elif now > ends:
        yield Problem(place, f"the certificate expired on {ends:%Y-%m-%d}", severity, over)
    elif (ends - now).days < WARN_DAYS:
        text = f"the certificate expires in {(ends - now).days} days, on {ends:%Y-%m-%d}"
        yield Problem(place, text, "warning", soon)


def _signature(contract: Contract, env: Section | None) -> Iterator[Problem]:
    """A signature is there where it is asked for, covers text, and holds."""
    from casemate.contract.signature import read_signing_key, verify

    place, signature = "envWorkloadSignature", contract.envworkload_signature
    if env is None:
        if signature is not None:
            yield Problem(place, "not checked: env is sealed, and the signing key with it", "note")
        return
    wanted = "signingKey" in env
    if wanted and signature is None:
        yield Problem(place, "is missing, and env has a signingKey; sign the contract", id="HPL12001E")
    elif signature is not None and not wanted:
        yield Problem(place, "is never verified: env has no signingKey", "warning", "HPL12001E")
    elif signature is not None:
        try:
            workload_text, env_text = exact(contract)
            verify(workload_text, env_text, signature, read_signing_key(str(env["signingKey"])).key)
        except ContractError as error:
            if error.id != "CONTRACT-KEY":  # said already, by its place
                yield Problem(place, _sentence(error), id="HPL12001E")


def _auditor(contract: Contract, certificate: bytes | None, key: RSAPrivateKey | None) -> Iterator[Problem]:
    place, text = "attestationPublicKey", contract.attestation_public_key
    if text is None:
        yield Problem(place, "is not given: the record of the machine is not encrypted", "note")
        return
    problems: list[Problem] = []
    plain = _opened(place, text, certificate, key, problems)
    yield from problems
    if plain is not None:
        yield from _attempt(place, "HPL11002E", lambda: load_public_key(pem_of(plain)))


def _opened(
    place: str, text: str, certificate: bytes | None, key: RSAPrivateKey | None, problems: list[Problem]
) -> bytes | None:
    """Return the plain text of a value, or ``None`` where it is sealed and stays so; tell of tokens."""
    from casemate.contract.token import has_form, is_token, open_token

    if not is_token(text):
        return text.encode()
    if key is not None:
        try:
            opened = open_token(text, key)
        except TokenError as error:
            problems.append(Problem(place, _sentence(error), id="HPL11001E"))
            return None
        if opened.short_password:
            sentence = (
                "is sealed under a short password: anyone may be able to open it; seal it again, with new secrets"
            )
            problems.append(Problem(place, sentence, "warning"))
        return opened.plain
    size = None if certificate is None else load_public_key(certificate).key_size
    if has_form(text, size):
        problems.append(Problem(place, "is sealed: its content can't be checked here", "note"))
    else:
        extra = " for this certificate" if size and has_form(text) else ""
        problems.append(Problem(place, f"is a damaged token, or not one{extra}", id="HPL11001E"))
    return None


def _attempt(place: str, identifier: str, action: Callable[[], object]) -> Iterator[Problem]:
    try:
        action()
    except ContractError as error:
        yield Problem(place, _sentence(error), id=identifier)


def _variables(section: Section) -> dict[str, str]:
    given = section.get("env", {})
    return {name: value for name, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}
