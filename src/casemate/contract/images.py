"""Image references, and where the files of a workload name them.

    parse_reference("postgres@sha256:…").canonical    # "docker.io/library/postgres@sha256:…"
    compose_images(compose_file, {"REGISTRY": "r.example.com"})   # {"db": Reference(...)}

Of compose's interpolation these forms are understood, as its specification has them: ``$VAR``, ``${VAR}``,
``${VAR:-default}``, ``${VAR-default}``, ``${VAR:+text}``, ``${VAR+text}``, ``${VAR:?text}``, ``${VAR?text}``, and ``$$`` for a
dollar; a default or text may have variables again. A dollar before anything else stands for itself (``$(date)``, ``$5``). Another
form in braces is an error, and in an image's name a variable that nobody gives: a guess here would admit an image that nobody
named. No error quotes a name: what follows a dollar may be the rest of a password.

A service with ``profiles`` starts only where ``COMPOSE_PROFILES`` names one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate.contract.archive import Archive, read_archive
from casemate.contract.document import parse
from casemate.contract.errors import ContractError, DocumentError, ImageError, printable

if TYPE_CHECKING:
    from casemate.contract.pod import Manifest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_AUTHS_KEY = "https://index.docker.io/v1/"

_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9][a-zA-Z0-9-]{0,62}"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])(?::[0-9]{{1,5}})?"
_TAG, _DIGEST = r"\w[\w.-]{0,127}", r"sha256:[0-9a-f]{64}"
_REFERENCE = re.compile(
    rf"(?:(?P<host>{_HOST})/)?(?P<path>{_PATH}(?:/{_PATH})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(rf"\{{(?P<name>{_NAME.pattern})(?P<how>:?[-+?])?")
_DEEPEST = 16

OPEN = "given-by-env.invalid"


class Open(dict[str, str]):
    """Variables of which some come later: their values are placeholders that nothing may depend on."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a variable, or the placeholder."""
        return super().get(name, OPEN)


@dataclass(frozen=True, slots=True)
class Reference:
    """An image reference in full: the registry (with port), the path there, a tag or digest (or both)."""

    registry: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """``registry/path``, as the contract's ``images`` name it."""
        return f"{self.registry}/{self.path}"

    @property
    def canonical(self) -> str:
        """The whole reference; a tag beside a digest says nothing and is left out."""
        if self.digest:
            return f"{self.name}@{self.digest}"
        return f"{self.name}:{self.tag or 'latest'}"

    @property
    def auths_keys(self) -> tuple[str, ...]:
        """The keys under which ``auths`` may have this registry's login."""
        if self.registry == DEFAULT_REGISTRY:
            return (DEFAULT_AUTHS_KEY, DEFAULT_REGISTRY, "index.docker.io")
        return (self.registry, f"https://{self.registry}")


def parse_reference(text: str) -> Reference:
    """Parse an image reference. Raises :class:`ImageError`."""
    match = _REFERENCE.fullmatch(text) if len(text) <= 512 else None
    if not match:
        raise ImageError(
            "not an image reference", "write registry/path@sha256:…; a digest has 64 hex digits, a path small letters"
        )
    host, path = match["host"], match["path"]
    if host and not ("." in host or ":" in host or host == "localhost"):
        host, path = None, f"{host}/{path}"
        if path != path.lower():
            raise ImageError("not an image reference", "the path of an image has small letters only")
    if host in (None, "index.docker.io", "registry-1.docker.io", DEFAULT_REGISTRY):
        host = DEFAULT_REGISTRY
        path = path if "/" in path else f"library/{path}"
    return Reference(host, path, match["tag"], match["digest"])


@dataclass(frozen=True, slots=True)
class _Use:
    """A variable where it stands: its name, the operator (``:-``, ``+`` …) and the text behind that."""

    name: str
    how: str = ""
    rest: str = ""


def interpolate(text: str, env: Mapping[str, str], depth: int = 0, *, unset: Callable[[], None] | None = None) -> str:
    """Replace the variables of a compose file's value. Raises :class:`ImageError`: a form not understood.

    A variable that nobody gives is an error too, or, with ``unset``, empty: then that is called.
    """
    if depth > _DEEPEST:
        raise ImageError("variables in defaults of variables, too deep", f"at most {_DEEPEST} levels")
    return "".join(part if isinstance(part, str) else _value(part, env, depth, unset) for part in _parts(text))


def variables(text: str) -> dict[str, bool]:
    """The names that a text's ``$VAR`` and ``${VAR}`` refer to; true for those that have no default."""
    names: dict[str, bool] = {}
    with suppress(ImageError):  # a form that is not understood is told of where its value is needed
        for part in _parts(text):
            if isinstance(part, _Use):
                names[part.name] = names.get(part.name, False) or not part.how.endswith(("-", "+"))
    return names


def _parts(text: str) -> Iterator[str | _Use]:
    position = 0
    while (dollar := text.find("$", position)) >= 0:
        yield text[position:dollar]
        start = dollar + 1
        if match := _NAME.match(text, start):
            yield _Use(match[0])
            position = match.end()
        elif text.startswith("{", start):
            use, position = _braced(text, start)
            yield use
        else:
            yield "$"
            position = start + text.startswith("$", start)
    yield text[position:]


def _braced(text: str, start: int) -> tuple[_Use, int]:
    """Return what stands in braces, and the place behind them; a brace that a variable inside opens is closed before."""
    if match := _BRACED.match(text, start):
        depth = 1
        for each in re.finditer(r"\$\{|\}", text[match.end() :]):
            depth += 1 if each[0] == "${" else -1
            if depth == 0:
                rest = text[match.end() : match.end() + each.start()]
                if rest and not match["how"]:
                    break
                return _Use(match["name"], match["how"] or "", rest), match.end() + each.end()
    raise ImageError(
        "a variable in a form that is not understood",
        "use $VAR, ${VAR}, ${VAR:-default}, ${VAR:?text}, $$ for a dollar",
    )


def _value(use: _Use, env: Mapping[str, str], depth: int, unset: Callable[[], None] | None) -> str:
    value = env.get(use.name)
    is_set = value is not None and not (use.how.startswith(":") and value == "")
    if use.how.endswith("+"):
        return interpolate(use.rest, env, depth + 1, unset=unset) if is_set else ""
    if value is not None and is_set:
        return value
    if use.how.endswith("-"):
        return interpolate(use.rest, env, depth + 1, unset=unset)
    if unset is not None and not use.how:
        unset()
        return ""
    raise ImageError(
        "a variable in it is not set; a dollar of the text itself is written $$", "give it under env of either section"
    )


def read_compose(data: bytes) -> dict[str, Any]:
    """Parse a compose file; anchors and merge keys are allowed, within bounds. Raises :class:`ImageError`."""
    try:
        document = parse(data, aliases=True)
    except DocumentError as error:
        raise ImageError(error.cause, error.cure, error.where) from None
    if not isinstance(document, dict) or not isinstance(document.get("services"), dict) or not document["services"]:
        raise ImageError("no services", "a compose file has `services:`", where="services")
    if "include" in document:
        raise ImageError("includes other files", "write all services into the one compose file", where="include")
    return document


def compose_images(document: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Reference | ImageError]:
    """Return the image of each service that starts, or what is wrong with it."""
    found: dict[str, Reference | ImageError] = {}
    wanted = set((env.get("COMPOSE_PROFILES") or "").split(","))
    for name, service in document["services"].items():
        if not _starts(service, wanted):
            continue
        where = f"services.{name}"
        try:
            if not isinstance(service, dict):
                raise ImageError("is not a mapping", where=where)
            if "build" in service:
                raise ImageError("builds an image", "images come from registries: remove `build:`", f"{where}.build")
            if "extends" in service:
                raise ImageError("extends a service", "write the service in full", f"{where}.extends")
            if not isinstance(service.get("image"), str):
                raise ImageError("has no image", "give `image: registry/path@sha256:…`", where)
            where = f"{where}.image"
            found[name] = parse_reference(interpolate(service["image"], env))
        except ImageError as error:
            found[name] = ImageError(error.cause, error.cure, error.where or where)
    return found


def _starts(service: Any, wanted: set[str]) -> bool:
    profiles = service.get("profiles") if isinstance(service, dict) else None
    if not profiles or not isinstance(profiles, list):  # another form is refused where the service is read
        return True
    return "*" in wanted or not wanted.isdisjoint(map(str, profiles))


def workload_images(workload: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Reference | ImageError]:
    """Return every image of a workload section, of compose or play, by its place, or what is wrong there.

        {"compose.archive, docker-compose.yaml, services.db.image": Reference(…)}
        {"play.resources[0].spec.containers[0].image": Reference(…)}

    Where an archive, a file in it or a template can't be read, that is an entry too. Raises nothing.
    """
    compose = workload.get("compose")
    if not isinstance(compose, dict):
        from casemate.contract.play import read_play

        manifests, problems = read_play(workload.get("play"), env)
        errors = {each.where: ImageError(each.cause, where=each.where) for each in problems}
        return {**errors, **play_images(manifests)}
    where = "compose.archive"
    try:
        archive = read_archive(str(compose.get("archive")))
        name, text = archive.compose()
        env = with_defaults(archive, env)
        where = f"compose.archive, {name}"
        return services_images(where, read_compose(text), env)
    except ContractError as error:
        place = ", ".join(filter(None, (where, error.where)))
        return {place: ImageError(error.cause, error.cure, place)}


def with_defaults(archive: Archive, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the contract, and beneath them those of the archive's ``.env``, as compose reads it."""
    found = dict(env)
    if ".env" in archive.files:
        from casemate.contract.composevalues import read_env_file
        from casemate.contract.workload import Problems

        found = read_env_file(archive.files[".env"], env, ".env", Problems()) | found
    return Open(found) if isinstance(env, Open) else found


def services_images(
    where: str, document: Mapping[str, Any], env: Mapping[str, str]
) -> dict[str, Reference | ImageError]:
    """Return the images of a compose file by their places in the section."""
    found: dict[str, Reference | ImageError] = {}
    for service, image in compose_images(document, env).items():
        inside = image.where if isinstance(image, ImageError) else f"services.{service}.image"
        found[printable(f"{where}, {inside}")] = image
    return found


def play_images(manifests: Iterable[Manifest]) -> dict[str, Reference | ImageError]:
    """Return the images of all Pods among the objects of a ``play`` section by their places in it."""
    return {
        f"{each.place}.{inside}": image
        for each in manifests
        if each.kind == "Pod"
        for inside, image in pod_images(each.document)
    }


def pod_images(document: Mapping[str, Any]) -> Iterator[tuple[str, Reference | ImageError]]:
    """Give place and image of every container of a Kubernetes ``Pod``, or what is wrong with it."""
    spec = _folded(document).get("spec")
    if not isinstance(spec, dict):
        yield "spec", ImageError("a Pod has no spec")
        return
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        containers = _folded(spec).get(kind.lower(), [])
        if not isinstance(containers, list):
            yield f"spec.{kind}", ImageError("is not a list")
            continue
        for number, container in enumerate(containers):
            place = f"spec.{kind}[{number}].image"
            image = _folded(container).get("image") if isinstance(container, dict) else None
            if not isinstance(image, str):
                yield place, ImageError("has no image", "give `image: registry/path@sha256:…`")
                continue
            try:
                yield place, parse_reference(image)
            except ImageError as error:
                yield place, error


def _folded(value: Mapping[str, Any]) -> dict[str, Any]:
    """Kubernetes' tools take the names of fields whatever their capitals; two that differ in these are refused later."""
    return {key.lower(): item for key, item in value.items()}
