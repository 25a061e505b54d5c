"""Checks contracts: every problem at once, each with its place and what to do. Used by the host and the guest.

    for problem in check_sections(workload, env):
        print(problem)         # workload.volumes.data: env has no seed for this volume; …

``schema.json`` has the form of the sections; what a schema can't say is below, a function a rule. No message holds a
value of the contract: places, names of keys, and rules only.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from casemate.contract.archive import Archive, read_archive
from casemate.contract.document import KEYS, SECTIONS, Contract, exact, parse_contract, parse_section
from casemate.contract.errors import ContractError, DocumentError, ImageError
from casemate.contract.images import Reference, compose_images, parse_reference, pod_images, read_compose, variables
from casemate.contract.keys import kinds, pem_of
from casemate.contract.token import has_form, is_token, load_public_key

Severity = Literal["error", "warning", "note"]
Section = Mapping[str, Any]

_SYSTEM = re.compile(
    r"/(proc|sys|dev|run|etc|usr|bin|sbin|lib|lib64|boot|tmp)(/.*)?|/var(/(lib|hyperprotect|log|tmp)(/.*)?)?"
)
_KEY_SERVICES = ("uv-secret-id", "kms", "grep11")
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


def schema() -> dict[str, Any]:
    """Return the shipped JSON Schema (draft 2020-12); ``$defs`` has contract, workload and env."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_bytes())
    return document


def check_sections(workload: Section, env: Section) -> list[Problem]:
    """Check two opened sections, each by itself and against the other: the whole check of the guest."""
    return [*check_workload(workload, env), *check_env(env), *_partners(workload, env)]


def check_workload(workload: Section, env: Section | None = None) -> list[Problem]:
    """Check a workload section; without ``env``, what hangs on the deployer's values is left open."""
    problems = list(_form("workload", workload))
    if not problems_stop(problems):
        problems += _mounts(workload)
        problems += _workload_seeds(workload)
        problems += _containers(workload, env)
    return problems


def check_env(env: Section) -> list[Problem]:
    """Check an env section by itself."""
    problems = list(_form("env", env))
    if not problems_stop(problems):
        problems += _syslog(env)
        problems += _signing_key(env)
    return problems


def check_contract(data: bytes, certificate: bytes | None = None) -> list[Problem]:
    """Check ``user-data``: the outer contract and what is plain in it. Sealed parts are noted as not checkable.

    ``certificate`` (PEM) is the one that the tokens should be sealed for; their form is checked against it.
    """
    try:
        contract = parse_contract(data)
    except DocumentError as error:
        return [Problem(error.where, _sentence(error), id="HPL05000E")]
    problems = [_unknown("", key, KEYS, closed=False) for key in contract.unknown]
    opened: dict[str, Section] = {}
    for name in SECTIONS:
        text = contract.workload if name == "workload" else contract.env
        if is_token(text):
            problems += _token(name, text, certificate)
            continue
        try:
            opened[name] = parse_section(text.encode())
        except DocumentError as error:
            place = f"{name}, {error.where} of its text" if error.where else name
            problems.append(Problem(place, _sentence(error), id="HPL05000E"))
    workload, env = opened.get("workload"), opened.get("env")
    if workload is not None:
        problems += check_workload(workload, env)
    if env is not None:
        problems += check_env(env)
    if workload is not None and env is not None:
        problems += _partners(workload, env)
    problems += _signature(contract, env)
    problems += _auditor(contract, certificate)
    return problems


def check_any(data: bytes, certificate: bytes | None = None) -> list[Problem]:
    """Check a contract, or one opened section by itself, told apart by the ``type`` that sections have."""
    try:
        section = parse_section(data)
    except DocumentError as error:
        return [Problem(error.where, _sentence(error), id="HPL05000E")]
    if section.get("type") == "workload":
        return check_workload(section)
    return check_env(section) if section.get("type") == "env" else check_contract(data, certificate)


def problems_stop(problems: Iterable[Problem]) -> bool:
    """Whether there is an error among the problems: a machine would not go on."""
    return any(problem.severity == "error" for problem in problems)


# ------------------------------------------------------------------------------------------------- form


def _form(name: str, section: Section) -> Iterator[Problem]:
    """Check a section against the schema; one readable sentence an error."""
    import jsonschema

    def pattern(_validator: Any, expression: str, value: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, str) and not re.fullmatch(expression, value):  # `$` alone allows a newline after it
            yield jsonschema.ValidationError("another form")

    whole = schema()
    strict: Any = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    validator = strict({"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]})
    for error in sorted(validator.iter_errors(section), key=lambda error: [str(part) for part in error.absolute_path]):
        yield from _readable(_place(name, error.absolute_path), error)
    properties = whole["$defs"][name]["properties"]
    for key in section:
        if key not in properties:
            yield _unknown(name, key, properties, closed=False)


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
    near = difflib.get_close_matches(key, list(known), 1, 0.6 if closed else 0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    severity: Severity = "error" if closed or near else "warning"
    return Problem(_place(place, [key]), f"no such key{hint}", severity)


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


def _mounts(workload: Section) -> Iterator[Problem]:
    used: dict[str, str] = {}
    for name, volume in workload.get("volumes", {}).items():
        mount = volume.get("mount", "/mnt/data")
        place = f"workload.volumes.{name}.mount"
        if _SYSTEM.fullmatch(mount) or mount == "/var/lib":
            yield Problem(place, "is a directory of the system; mount volumes under /mnt or /data", id="HPL07001E")
        if mount in used:
            yield Problem(place, f"is the mount point of the volume {used[mount]} already", id="HPL07001E")
        used.setdefault(mount, name)


def _workload_seeds(workload: Section) -> Iterator[Problem]:
    for name, volume in workload.get("volumes", {}).items():
        if "seed" not in volume:
            place = f"workload.volumes.{name}.seed"
            yield Problem(place, "is missing: a volume is opened with a seed of each party", id="HPL07001E")


def _partners(workload: Section, env: Section) -> Iterator[Problem]:
    """Each volume has a seed in both sections."""
    ours, theirs = workload.get("volumes", {}), env.get("volumes", {})
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return
    for name in ours:
        given = theirs.get(name)
        if not isinstance(given, dict):
            yield Problem(_place("workload.volumes", [name]), "env has no seed for this volume", id="HPL07001E")
        elif "seed" not in given:
            service = next((key for key in _KEY_SERVICES if key in given), None)
            text = f"is missing; {service} in its place is not supported yet" if service else "is missing"
            yield Problem(_place("env.volumes", [name, "seed"]), text, id="HPL07001E")
    for name in theirs:
        if name not in ours:
            near = difflib.get_close_matches(name, list(ours), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Problem(_place("env.volumes", [name]), f"workload has no volume of this name{hint}", id="HPL07001E")


# ------------------------------------------------------------------------------------------------- containers


def _containers(workload: Section, env: Section | None) -> Iterator[Problem]:
    """Every image is named by digest, or has a key; the archive is one; the variables are given."""
    given = {**_variables(env or {}), **_variables(workload)}
    trusted = _trusted(workload)
    yield from trusted.problems
    if "compose" in workload:
        place = "workload.compose.archive"
        try:
            archive = read_archive(workload["compose"]["archive"])
            name, content = archive.compose()
            inside = f"{place}, {name}"
            document = read_compose(content)
        except ContractError as error:
            where = f"{place}, {error.where}" if error.where else place
            yield Problem(where, _sentence(error), id="HPL06006E")
            return
        lost = sorted(_unset(document) - given.keys())
        if env is not None:
            for variable in lost:
                yield Problem(inside, f"the variable {variable} is used, and given by neither section", "warning")
        elif lost:
            yield Problem(inside, f"env has to give {', '.join(lost)}", "note")
        for service, image in compose_images(document, _Open(given) if env is None else given).items():
            yield from _image(_place(f"{inside}, services", [service]) + ".image", image, trusted)
    for place, pod in _pods(workload):
        if isinstance(pod, Problem):
            yield pod
        else:
            for inside, image in pod_images(pod):
                yield from _image(f"{place}.{inside}", image, trusted)


class _Open(dict[str, str]):
    """Variables of which some come later: their values here are placeholders that no reference may depend on."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, OPEN)


OPEN = "given-by-env.invalid"


@dataclass(frozen=True, slots=True)
class _Trust:
    names: frozenset[str]
    problems: tuple[Problem, ...]


def _trusted(workload: Section) -> _Trust:
    """Return the full names of images that have a key."""
    names, problems = set(), []
    images = workload.get("images", {})
    config = workload.get("confidential-containers", {}).get("config", {})
    cosign = config.get("cosign", {}) if isinstance(config, dict) else {}
    for place, table in (
        ("workload.images.dct", images.get("dct", {})),
        ("workload.images.rhs", images.get("rhs", {})),
        ("workload.confidential-containers.config.cosign", cosign if isinstance(cosign, dict) else {}),
    ):
        for name in table:
            try:
                names.add(parse_reference(name).name)
            except ImageError as error:
                problems.append(Problem(_place(place, [name]), error.cause, id="HPL16000E"))
    return _Trust(frozenset(names), tuple(problems))


def _image(place: str, image: Reference | ImageError, trusted: _Trust) -> Iterator[Problem]:
    if isinstance(image, ImageError):
        yield Problem(
            place.removesuffix(".image") if not image.where.endswith(".image") else place,
            _sentence(image),
            id="HPL06009E",
        )
    elif image.digest is None and OPEN not in image.canonical and image.name not in trusted.names:
        text = "has neither a digest nor a key; write name@sha256:…, or add its key under images"
        yield Problem(place, text, id="HPL06010E")


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


def _pods(workload: Section) -> Iterator[tuple[str, Any]]:
    """Give every Pod of a ``play`` section with its place, or a problem."""
    play = workload.get("play", {})
    for kind in ("resources", "templates"):
        for number, resource in enumerate(play.get(kind, [])):
            if resource["kind"] == "Pod":
                place = f"workload.play.{kind}[{number}]"
                if kind == "templates" and "{{" in json.dumps(resource.get("spec")):
                    yield place, Problem(place, "a template: its images are known in the machine only", "note")
                else:
                    yield place, resource
    if "archive" in play:
        place = "workload.play.archive"
        try:
            archive: Archive = read_archive(play["archive"])
        except ContractError as error:
            where = f"{place}, {error.where}" if error.where else place
            yield where, Problem(where, _sentence(error), id="HPL15000E")
            return
        for name, content in archive.files.items():
            if name.endswith((".yaml", ".yml")):
                inside = f"{place}, {name}"
                try:
                    document = parse_section(content)
                except DocumentError as error:
                    where = f"{inside}, {error.where}" if error.where else inside
                    yield inside, Problem(where, _sentence(error), id="HPL15000E")
                    continue
                if document.get("kind") == "Pod":
                    yield inside, document


# ------------------------------------------------------------------------------------------------- keys


def _syslog(env: Section) -> Iterator[Problem]:
    syslog = env["logging"].get("syslog", {})
    for key, (kind, identifier) in _PEM_KINDS.items():
        if key in syslog:
            place = f"env.logging.syslog.{key}"
            try:
                found = kinds(pem_of(syslog[key]))
            except ContractError as error:
                yield Problem(place, _sentence(error), id="HPL01005E")
                continue
            if not found[0].endswith(kind):
                yield Problem(place, f"must be a {kind.lower()}", id=identifier)
            elif "ENCRYPTED" in found[0]:
                yield Problem(place, "is protected by a password; remove it, the section is sealed", id="HPL01006E")


def _signing_key(env: Section) -> Iterator[Problem]:
    if "signingKey" in env:
        yield from _attempt("env.signingKey", "HPL12003E", lambda: load_public_key(pem_of(env["signingKey"])))


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


def _auditor(contract: Contract, certificate: bytes | None) -> Iterator[Problem]:
    text = contract.attestation_public_key
    if text is None:
        yield Problem("attestationPublicKey", "is not given: the record of the machine is not encrypted", "note")
    elif is_token(text):
        yield from _token("attestationPublicKey", text, certificate)
    else:
        yield from _attempt("attestationPublicKey", "HPL11002E", lambda: load_public_key(text.encode()))


def _token(place: str, text: str, certificate: bytes | None) -> Iterator[Problem]:
    size = None
    if certificate is not None:
        size = load_public_key(certificate).key_size
    if not has_form(text, size):
        extra = " for this certificate" if size and has_form(text) else ""
        yield Problem(place, f"is a damaged token, or not one{extra}", id="HPL11001E")
    else:
        yield Problem(place, "is sealed: its content can't be checked here", "note")


def _attempt(place: str, identifier: str, action: Callable[[], object]) -> Iterator[Problem]:
    try:
        action()
    except ContractError as error:
        yield Problem(place, _sentence(error), id=identifier)


def _variables(section: Section) -> dict[str, str]:
    given = section.get("env", {})
    return {name: value for name, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}
