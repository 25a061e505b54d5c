"""What a build server may do: its configuration, and the jobs that fit it.

    config = parse_config(text)                  # HPSB_CONFIG of the contract
    job = parse_job(document, config)            # what a client asks for; raises BuildError

The configuration, YAML or JSON, is the contract's: a client can't widen it. All of it names what may be reached; what it doesn't
name, no step of a job reaches.

    repositories:                      # where sources come from: a job's URL is one, or begins with one that ends in /
      https://git.example.com/team/: {username: u, password: p}
    registries:                        # where base images come from
      registry.example.com: {username: u, password: p, hosts: [auth.example.com]}
    images:                            # the names that results get, and with whose login they are pushed
      registry.example.com/team/app: {username: u, password: p}
    hosts: [deb.debian.org:443]        # what RUN steps may reach by TLS; none named: no network
    authorities: |                     # PEM: who vouches for these servers, beside the public authorities
    addresses: {registry.example.com:443: 10.0.0.7:443}      # where a name is, when no name server says so
    limits: {source_mib: 256, fetch_mib: 4096, job_mib: 16384, minutes: 60}
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract.document import parse
from casemate.contract.errors import ContractError, KeyFileError
from casemate.contract.images import DEFAULT_REGISTRY, parse_reference
from casemate.contract.keys import certificates_alone
from casemate.hpsb.errors import BuildError, refused

_URL = re.compile(
    r"https://(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,250})(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~-]+)*/?)"
)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,250}(?::[0-9]{1,5})?")
_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LIMITS = {"source_mib": 256, "fetch_mib": 4096, "job_mib": 16384, "minutes": 60}
_JOB = {"repository", "revision", "containerfile", "name", "tag", "arguments", "expect"}
MOST_ARGUMENTS, LONGEST_VALUE = 64, 4096


@dataclass(frozen=True, slots=True)
class Login:
    """A login, possibly none, and hosts that a server sends its clients to beside its own."""

    username: str = ""
    password: str = field(default="", repr=False)
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a source tree, bytes that a step may receive, bytes that a job may hold on disk; seconds that a job may take."""

    source: int
    fetch: int
    job: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Config:
    """All that a server may reach and write, each host as ``name:port``."""

    repositories: Mapping[str, Login]
    registries: Mapping[str, Login]
    images: Mapping[str, Login]
    hosts: tuple[str, ...]
    authorities: str
    addresses: Mapping[str, tuple[str, int]]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Job:
    """What a client asks for. ``arguments`` are build arguments; ``expect`` is the digest that must come out, or empty."""

    repository: str
    revision: str
    containerfile: str
    name: str
    tag: str
    arguments: Mapping[str, str]
    expect: str = ""

    def inputs(self) -> str:
        """Return the SHA-256 (hex) of what decides the result: two jobs with the same should give the same image."""
        parts = [self.repository, self.revision, self.containerfile, sorted(self.arguments.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def image(self) -> str:
        """Name and tag of the result."""
        return f"{self.name}:{self.tag}"


def parse_config(text: str) -> Config:
    """Read a configuration, plain or base64. Raises :class:`BuildError`: each mistake is one, nothing is passed over."""
    if re.fullmatch(r"[A-Za-z0-9+/=\s]+", text):
        try:
            text = base64.b64decode("".join(text.split()), validate=True).decode("utf-8")
        except ValueError:
            raise _wrong("the whole", "neither YAML nor base64 of YAML") from None
    try:
        document = parse(text.encode())
    except ContractError as error:
        raise _wrong("the whole", error.cause) from None
    known = {"repositories", "registries", "images", "hosts", "authorities", "addresses", "limits"}
    if not isinstance(document, dict) or set(document) - known:
        raise _wrong("the whole", f"a mapping of {', '.join(sorted(known))}")
    repositories = _logins(document, "repositories")
    urls = [_URL.fullmatch(url) for url in repositories]
    if not urls or not all(url and _port(url["port"]) and "/../" not in f"{url[0]}/" for url in urls):
        raise _wrong("repositories", "at least one URL of the kind https://host/path")
    registries, images = _logins(document, "registries"), _logins(document, "images")
    if not all(_is_host(name) for name in registries):
        raise _wrong("registries", "names of hosts, with their ports")
    for name in images:
        try:
            named = parse_reference(name)
        except ContractError as error:
            raise _wrong("images", error.cause) from None
        if named.name != name or named.tag or named.digest:
            raise _wrong("images", "full names without tag: registry/path")
    if not images:
        raise _wrong("images", "at least one name that results may have")
    given = document.get("limits") or {}
    if not isinstance(given, dict) or set(given) - set(_LIMITS):
        raise _wrong("limits", f"a mapping of {', '.join(_LIMITS)}")
    numbers = {**_LIMITS, **given}
    if any(type(value) is not int or not 0 < value <= 1 << 20 for value in numbers.values()):
        raise _wrong("limits", "whole numbers above 0")
    limits = Limits(
        numbers["source_mib"] << 20, numbers["fetch_mib"] << 20, numbers["job_mib"] << 20, numbers["minutes"] * 60
    )
    authorities = document.get("authorities") or ""
    if not isinstance(authorities, str) or (authorities and not _certificates(authorities)):
        raise _wrong("authorities", "certificates, PEM")
    return Config(
        repositories, registries, images, _hosts(document.get("hosts"), "hosts"), authorities,
        _addresses(document.get("addresses") or {}), limits,
    )  # fmt: skip


def parse_job(document: Any, config: Config) -> Job:
    """Read what a client asks for, as far as the configuration allows it. Raises :class:`BuildError`."""
    if (
        not isinstance(document, dict)
        or set(document) - _JOB
        or not {"repository", "revision", "name"} <= set(document)
    ):
        raise refused("JOB", f"a job has {', '.join(sorted(_JOB))}", "repository, revision and name are needed")
    texts = {key: document.get(key, "") for key in _JOB - {"arguments"}}
    if not all(isinstance(text, str) and len(text) <= 1024 for text in texts.values()):
        raise refused("JOB", "a value of the job is no text, or too long")
    url, revision = texts["repository"], texts["revision"]
    if not _URL.fullmatch(url) or "/.." in url or repository_login(config, url) is None:
        raise refused(
            "REPOSITORY", "the repository is none that the server's configuration names", "ask who wrote the contract"
        )
    if not _REVISION.fullmatch(revision):
        raise refused(
            "REVISION",
            "the revision is no full hash",
            "a branch or tag can be moved: give what `git rev-parse HEAD` prints",
        )
    if texts["name"] not in config.images:
        raise refused(
            "NAME", "the server's configuration does not name this image", f"one of {', '.join(config.images)}"
        )
    tag = texts["tag"] or revision[:12]
    if not _TAG.fullmatch(tag) or tag.startswith("sha256-"):
        raise refused("JOB", "not a tag", "letters, digits, _ . - only, at most 128")
    if texts["expect"] and not _DIGEST.fullmatch(texts["expect"]):
        raise refused("JOB", "what is expected is no digest", "sha256: and 64 hex digits")
    arguments = document.get("arguments", {})
    if (
        not isinstance(arguments, dict)
        or len(arguments) > MOST_ARGUMENTS
        or not all(
            _ARGUMENT.fullmatch(name) and isinstance(value, str) and len(value) <= LONGEST_VALUE and value.isprintable()
            for name, value in arguments.items()
        )
        or {name.lower() for name in arguments} & {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
    ):
        raise refused("JOB", "a build argument can't be", "names of variables with text on one line; no proxies")
    path = texts["containerfile"] or "Containerfile"
    if not path.isprintable() or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise refused(
            "CONTAINERFILE", "the Containerfile must lie in the repository", "give its path there, without . and .."
        )
    return Job(url, revision, path, texts["name"], tag, dict(sorted(arguments.items())), texts["expect"])


def repository_login(config: Config, url: str) -> Login | None:
    """Return the login for a repository; ``None`` where it is none of the configuration's."""
    found = [key for key in config.repositories if url == key or (key.endswith("/") and url.startswith(key))]
    return config.repositories[max(found, key=len)] if found else None


def host_of(url: str) -> str:
    """Return host and port of a repository's URL."""
    match = _URL.fullmatch(url)
    if match is None:
        raise refused("REPOSITORY", "not a URL of the kind https://host/path")
    return f"{match['host']}:{match['port'] or 443}"


def registry_hosts(registry: str, login: Login) -> tuple[str, ...]:
    """Return the hosts that a client of a registry must reach."""
    own = "registry-1.docker.io" if registry == DEFAULT_REGISTRY else registry
    return (own if ":" in own else f"{own}:443", *login.hosts)


def _logins(document: Mapping[str, Any], key: str) -> dict[str, Login]:
    table = document.get(key) or {}
    if not isinstance(table, dict):
        raise _wrong(key, "a mapping")
    found = {}
    for name, value in table.items():
        entry = {} if value is None else value
        if not isinstance(entry, dict) or set(entry) - {"username", "password", "hosts"}:
            raise _wrong(key, "each has username and password, or nothing; a registry may have hosts")
        user, password = entry.get("username", ""), entry.get("password", "")
        if not all(isinstance(text, str) and text.isprintable() and " " not in text for text in (user, password)):
            raise _wrong(key, "a login is text without spaces")
        found[name] = Login(user, password, _hosts(entry.get("hosts"), f"{key}.hosts"))
    return found


def _hosts(value: Any, place: str) -> tuple[str, ...]:
    listed = value or []
    if not isinstance(listed, list) or not all(isinstance(item, str) and _is_host(item) for item in listed):
        raise _wrong(place, "a list of host or host:port")
    return tuple(item if ":" in item else f"{item}:443" for item in listed)


def _addresses(value: Any) -> dict[str, tuple[str, int]]:
    found = {}
    try:
        for name, where in value.items():
            host, _, port = where.rpartition(":")
            if not _is_host(name) or not _port(port):
                raise ValueError
            found[name if ":" in name else f"{name}:443"] = (str(ipaddress.ip_address(host.strip("[]"))), int(port))
    except (AttributeError, ValueError, TypeError):
        raise _wrong("addresses", "a mapping of host:port to address:port") from None
    return found


def _is_host(text: str) -> bool:
    return bool(_HOST.fullmatch(text)) and _port(text.partition(":")[2] or None)


def _port(text: str | None) -> bool:
    return text is None or (bool(re.fullmatch("[0-9]{1,5}", text)) and 0 < int(text) < 1 << 16)


def _certificates(text: str) -> bool:
    from cryptography.x509 import load_pem_x509_certificate  # Debian's has no function for several

    try:
        return bool([load_pem_x509_certificate(block) for block in certificates_alone(text.encode())])
    except (KeyFileError, ValueError):
        return False


def _wrong(place: str, what: str) -> BuildError:
    return refused(
        "CONFIG", f"the server's configuration can't be: {place} must be {what}", "correct HPSB_CONFIG in the contract"
    )
