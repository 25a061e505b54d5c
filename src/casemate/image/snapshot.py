"""Which Debian packages a root is made of: name, version and SHA-256 of each, and how they are fetched.

The list of an architecture is a file of this package, ``snapshot-ARCH.txt``; ``casemate image snapshot --update`` writes it
from the archive of the day. A line is ``name version architecture sha256``; lines are sorted, each name stands once.

- What is fetched must have the hash of its line, and is kept under that hash: with all of them cached a build needs no
  network. Debian's signatures are checked by ``apt`` on the way, with Debian's keyring.
- Debian's archive drops versions. Where one of the list is neither cached nor there any more, ``PINNED`` refuses;
  ``LISTED``, the rule unless told otherwise, names what is gone, takes the newest of everything (versions of two days
  don't always fit together) and records the difference. ``NEWEST`` does so at once.

apt runs with a state of its own in the cache; of the host it takes proxies, nothing else that decides.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from casemate.errors import CasemateError

RELEASE = "bookworm"
SUITES = (("debian", RELEASE), ("debian", f"{RELEASE}-updates"), ("debian-security", f"{RELEASE}-security"))
MIRROR = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LARGEST_LIST, MOST_PACKAGES = 1 << 20, 4096
_LINE = re.compile(r"([a-z0-9][a-z0-9+.-]{1,99}) ([0-9][A-Za-z0-9.+:~-]{0,99}) ([a-z0-9]{2,20}) ([0-9a-f]{64})")


class Policy(enum.Enum):
    """What a build does where the list can't be had."""

    LISTED = "listed"
    PINNED = "pinned"
    NEWEST = "newest"


class SnapshotError(CasemateError):
    """The packages of a list can't be had, or are not what the list says."""

    id = "IMAGE-PACKAGES"


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A Debian binary package; ``sha256`` is that of the ``.deb``, in hex."""

    name: str
    version: str
    arch: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} {self.arch} {self.sha256}"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a root is made of: the packages, the hash of the list that was asked for, and how they differ from it."""

    packages: tuple[Package, ...]
    list_sha256: str
    differences: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The packages in the form of a list, the content of ``packages.txt``."""
        return format_list(self.packages)

    def record(self) -> dict[str, object]:
        """Return what ``reference-values.json`` says of it."""
        return {"list": self.list_sha256, "exact": not self.differences, "differences": list(self.differences)}


def parse_list(data: bytes) -> tuple[Package, ...]:
    """Read a list of packages: UTF-8, at most 1 MiB and 4096 lines, in the form and order that is written here.

    Raises :class:`SnapshotError`.
    """
    cure = "give the packages.txt of an image, or a list that `casemate image snapshot --update` wrote"
    try:
        text = data.decode("ascii") if len(data) <= LARGEST_LIST else ""
    except UnicodeDecodeError:
        text = ""
    lines = text.split("\n")
    if len(lines) < 2 or lines.pop() or len(lines) > MOST_PACKAGES:
        raise SnapshotError("not a list of packages: it is empty, too long, or no text", cure)
    packages = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SnapshotError(f"line {number} is not `name version architecture sha256`", cure)
        packages.append(Package(*match.groups()))
    if packages != sorted(packages) or len({package.name for package in packages}) != len(packages):
        raise SnapshotError("the list is not sorted, or names a package twice", cure)
    return tuple(packages)


def format_list(packages: Iterable[Package]) -> str:
    """Return packages in the form of a list."""
    return "".join(f"{package}\n" for package in sorted(packages))


def differences(wanted: Iterable[Package], found: Iterable[Package]) -> tuple[str, ...]:
    """Return how one list differs from another, a line for each package."""
    before, after = ({package.name: package for package in packages} for packages in (wanted, found))
    lines = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            lines.append(f"{name} {new.version} is new" if new else f"{name} is gone")
        elif old.version != new.version:
            lines.append(f"{name} {old.version} -> {new.version}")
        elif old != new:
            lines.append(f"{name} {old.version}: the same version with another hash")
    return tuple(lines)


def list_path(arch: str, root: str = "layer") -> Path:
    """Return where the list of an architecture stands in the source, for the layer's root or another."""
    name = arch if root == "layer" else f"{root}-{arch}"
    return Path(str(files("casemate.image"))) / f"snapshot-{name}.txt"


def listed(arch: str, root: str = "layer") -> tuple[tuple[Package, ...], str]:
    """Return the source's list for an architecture and its SHA-256; nothing and ``""`` where there is none."""
    try:
        data = list_path(arch, root).read_bytes()
    except FileNotFoundError:
        return (), ""
    return parse_list(data), hashlib.sha256(data).hexdigest()


def select(
    arch: str,
    names: Sequence[str],
    cache: Path,
    policy: Policy = Policy.LISTED,
    say: Callable[[str], None] = lambda warning: None,
    wanted: tuple[Package, ...] | None = None,
) -> Selection:
    """Decide what a root is made of, and have all of it in the cache.

    ``names`` are the packages asked for, ``wanted`` a list in place of the source's. Raises :class:`SnapshotError`.
    """
    if wanted is None:
        wanted, digest = listed(arch)
    else:
        digest = hashlib.sha256(format_list(wanted).encode()).hexdigest()
    archive = Archive(arch, cache)
    if policy is not Policy.NEWEST:
        missing = sorted(set(names) - {package.name for package in wanted})
        reasons = [f"{name} is not in the list" for name in missing]
        if not missing:
            gone = archive.fetch(wanted)
            reasons = [f"{package.name} {package.version} is not in the archive any more" for package in gone]
        if not reasons:
            return Selection(wanted, digest)
        if policy is Policy.PINNED:
            raise SnapshotError(
                "the packages of the list can't be had:\n  " + "\n  ".join(reasons),
                "an archive that still has them helps, a cache of an earlier build, or --newest",
                id="IMAGE-PACKAGES-GONE",
            )
        for reason in reasons:
            say(reason)
        say("taking the newest of everything instead; reference values will differ from those of the list")
    packages = archive.newest(names)
    gone = archive.fetch(packages)
    if gone:
        raise SnapshotError(f"{gone[0].name} can't be fetched", "try again: the archive may be changing")
    return Selection(packages, digest, differences(wanted, packages))


@dataclass(frozen=True, slots=True)
class Archive:
    """Debian's archive for an architecture, seen through an ``apt`` with its state in the cache."""

    arch: str
    cache: Path

    def deb(self, package: Package) -> Path:
        """Where a package lies in the cache."""
        return self.cache / "debs" / f"{package.sha256}.deb"

    def newest(self, names: Sequence[str]) -> tuple[Package, ...]:
        """Return the newest of all essential packages, of those named, and of what they depend on."""
        with self._alone():
            return self._newest(names)

    def _newest(self, names: Sequence[str]) -> tuple[Package, ...]:
        self._update()
        said = self._apt("apt-get", "install", "--print-uris", "-qq", "-y", "?essential", *names)
        found = re.findall(r"(?m)^'\S+' (\S+?)_(\S+?)_([a-z0-9]+)\.deb \d+ SHA256:([0-9a-f]{64})$", said)
        packages = tuple(sorted(Package(n, urllib.parse.unquote(v), a, s) for n, v, a, s in found))
        return parse_list(format_list(packages).encode())

    def fetch(self, packages: Iterable[Package]) -> list[Package]:
        """Bring packages into the cache, each with the hash of its line; return those that the archive has not."""
        missing = [package for package in packages if not self._cached(package)]
        if not missing:
            return []
        with self._alone():
            return self._fetch(missing)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One build at a time asks the archive: apt's state is one."""
        self._state.mkdir(parents=True, exist_ok=True)
        with (self._state / "alone").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, missing: list[Package]) -> list[Package]:
        self._update()
        there = self._there(package.name for package in missing)
        get = [package for package in missing if package in there]
        if get:
            (self.cache / "debs").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="new-", dir=self.cache) as work:
                self._apt("apt-get", "download", "-qq", *(f"{p.name}={p.version}" for p in get), cwd=work)
                hashed = {_sha256(path): path for path in Path(work).glob("*.deb")}
                for package in get:
                    if package.sha256 not in hashed:
                        raise SnapshotError(f"what the archive gave as {package.name} is not what its index says")
                    hashed[package.sha256].rename(self.deb(package))
        return [package for package in missing if package not in there]

    def _cached(self, package: Package) -> bool:
        path = self.deb(package)
        if path.is_file() and _sha256(path) != package.sha256:
            path.unlink()
        return path.is_file()

    def _there(self, names: Iterable[str]) -> set[Package]:
        """Return all versions that the archive has of some packages."""
        found = set()
        for stanza in self._apt("apt-cache", "show", "--all-versions", *names, check=False).split("\n\n"):
            fields = dict(re.findall(r"(?m)^(Package|Version|Architecture|SHA256): (\S+)$", stanza))
            if len(fields) == 4:
                found.add(Package(*(fields[name] for name in ("Package", "Version", "Architecture", "SHA256"))))
        return found

    @property
    def _state(self) -> Path:
        return self.cache / f"apt-{self.arch}"

    def _update(self) -> None:
        for name in ("lists/partial", "archives/partial"):
            (self._state / name).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        (self._state / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {MIRROR}/{archive} {suite} main\n" for archive, suite in SUITES)
        )
        self._apt("apt-get", "update", "-qq")

    def _apt(self, program: str, *arguments: str, check: bool = True, cwd: str | None = None) -> str:
        state = self._state
        options = {
            **{"APT::Architecture": self.arch, "APT::Architectures::": self.arch, "APT::Sandbox::User": "root"},
            **{"APT::Install-Recommends": "false", "APT::Install-Suggests": "false", "APT::Default-Release": ""},
            # apt counts itself as essential, an image doesn't need it.
            **{"pkgCacheGen::ForceEssential": ",", "Acquire::Languages": "none", "Acquire::ForceHash": "SHA256"},
            **{"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false", "Acquire::Retries": "3"},
            **{
                "Dir::State": str(state),
                "Dir::State::lists": f"{state}/lists",
                "Dir::State::status": f"{state}/status",
            },
            **{"Dir::Cache": str(state), "Dir::Etc::sourcelist": f"{state}/sources.list"},
            **{"Dir::Etc::sourceparts": "/dev/null", "Dir::Etc::preferences": "/dev/null"},
            **{"Dir::Etc::preferencesparts": "/dev/null", "APT::Update::Error-Mode": "any"},
        }
        command = [program, *(f"-o{name}={value}" for name, value in options.items()), *arguments]
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=cwd, env=env)
        except FileNotFoundError:
            raise SnapshotError(f"{program} is not installed", "images are built on Debian and its relatives") from None
        if check and done.returncode:
            tail = "\n  ".join(done.stderr.decode(errors="replace").strip().splitlines()[-5:])
            raise SnapshotError(
                f"{program} {arguments[0]} failed:\n  {tail}", "is Debian's archive within reach? a proxy set?"
            )
        return done.stdout.decode(errors="replace")


def repository(packages: Iterable[Package], cache: Path, arch: str, directory: Path) -> None:
    """Make a flat repository of just these packages: ``mmdebstrap`` then has no choice, today or another day."""
    archive, stanzas = Archive(arch, cache), []
    for package in packages:
        source, target = archive.deb(package), directory / f"{package.name}.deb"
        target.hardlink_to(source)
        done = subprocess.run(["dpkg-deb", "--field", str(source)], capture_output=True, check=True)
        size = source.stat().st_size
        stanzas.append(
            f"{done.stdout.decode().rstrip()}\nFilename: ./{target.name}\nSize: {size}\nSHA256: {package.sha256}\n"
        )
    (directory / "Packages").write_text("\n".join(stanzas))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
