"""The steps of a job, each in a sandbox of its own: source, base images, build, signatures, push, manifest.

    result = Builder(config, keys, …).run(job, identity, directory, log)

What passes from one step to the next is verified on the way:

- **source**: all branches and tags are fetched, since a hash alone may belong to somebody's fork; the revision must be a commit
  of one of them. Nothing is checked out that is a submodule, or more than may be. The Containerfile is read from the commit
  itself, as a regular file and once: what was hashed is what is built.
- **base images**: each by digest, hashed anew; an index gives the image for this machine.
- **build**: no network (or the configuration's hosts), no image but these, and nothing from an earlier job: there is no cache
  between jobs. Times in the image are the commit's, so that the same inputs give the same image, where the steps do.
- **result**: hashed anew; where another digest was expected, or the registry afterwards has another, nothing is said to be built.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.hpsb import containerfile, layout
from casemate.hpsb.config import Config, Job, Login, host_of, registry_hosts, repository_login
from casemate.hpsb.containerfile import Base
from casemate.hpsb.errors import refused
from casemate.hpsb.proxy import Proxy
from casemate.hpsb.sandbox import FORWARD, Sandbox, Watch, make_work, run
from casemate.hpsb.signing import Gpg, write_cosign
from casemate.hpsb.vault import State

SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
LARGEST_PATHS, MOST_FILES = 16 << 20, 100_000
_NO_REVISION, _NO_FETCH = 10, 11
_FETCH = f"""
git init --quiet --template= --bare /work/git && cd /work/git
git fetch --quiet --no-recurse-submodules --no-auto-gc "$1" '+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*' \\
  || exit {_NO_FETCH}
[ "$(git cat-file -t "$2" 2>/dev/null)" = commit ] || exit {_NO_REVISION}
[ -n "$(git for-each-ref --count=1 --contains "$2")" ] || exit {_NO_REVISION}
printf '%s\\0' "$(git show --no-patch --format=%ct "$2")"
git ls-tree -r -l -z --full-tree "$2"
"""
_CHECKOUT = """
mkdir /work/source
git --git-dir=/work/git --work-tree=/work/source checkout --quiet --detach --force "$1" || exit 1
git --git-dir=/work/git cat-file blob "$2"
"""
_BUILD = """
store="[vfs@/work/graph+/work/run]"
for base in /bases/*; do
  number="${base##*/}"
  [ "$number" = "*" ] || skopeo copy --quiet "oci:$base" "containers-storage:${store}localhost/base-$number:1" || exit 1
done
store="--root /work/graph --runroot /work/run --storage-driver vfs"
buildah $store build --isolation chroot --network host --pull-never --layers=false --format oci \\
  --tag localhost/built:1 --file /Containerfile "$@" /context && buildah $store push --quiet localhost/built:1 oci:/work/out:built
"""
_BASE = """
skopeo inspect --raw --authfile=/run/login/auth.json "docker://$1" && \\
  exec skopeo --insecure-policy copy --quiet --preserve-digests \\
  --src-authfile=/run/login/auth.json "docker://$1" oci:/work/image >&2
"""
_PUSH = """
copy() {
  skopeo --insecure-policy --registries.d=/registries.d copy --quiet --preserve-digests \\
    --dest-authfile=/run/login/auth.json "$@" >&2
}
copy dir:/signed "docker://$1" && copy oci:/cosign "docker://$2" && \\
  exec skopeo inspect --raw --authfile=/run/login/auth.json "docker://$1"
"""
_GIT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/run/login/gitconfig",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https",
}
_GITCONFIG = """\
[transfer]
fsckObjects = true
[core]
hooksPath = /dev/null
[http]
followRedirects = false
sslCAInfo = /run/authorities.pem
[safe]
directory = *
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What was fetched: the tree in ``directory``, the Containerfile's bytes, the commit's time (seconds since 1970)."""

    directory: Path
    containerfile: bytes
    time: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """A base image on disk: ``digest`` is what the Containerfile names, ``image`` that of the image itself."""

    base: Base
    directory: Path
    image: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a job has made: the statement of its manifest, the GPG signature as ``containers-signature(5)`` has it."""

    statement: dict[str, Any]
    signature: bytes
    digest: str


@dataclass(slots=True)
class Builder:
    """Runs jobs. ``state`` gives the server's state now; ``scratch`` is short-lived and may be in memory."""

    config: Config
    state: Callable[[], State]
    gpg: Gpg
    public: Mapping[str, str]
    scratch: Path
    version: str
    architecture: str = "amd64"
    watch: Watch | None = field(default=None)

    def run(
        self, job: Job, name: str, directory: Path, log: Callable[[bytes], None], phase: Callable[[str], None]
    ) -> Result:
        """Do a job in a new directory, which is removed. Raises :class:`BuildError`."""
        limits = self.config.limits
        self.watch = Watch(directory, limits.job, time.monotonic() + limits.seconds)
        directory.mkdir(parents=True)
        directory.chmod(0o711)  # what a sandbox is shown lies below
        try:
            steps = _Steps(self, job, name, directory, log, phase, self.watch)
            return steps.all()
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@dataclass(slots=True)
class _Steps:
    builder: Builder
    job: Job
    name: str
    directory: Path
    log: Callable[[bytes], None]
    phase: Callable[[str], None]
    watch: Watch

    def all(self) -> Result:
        state, job = self.builder.state(), self.job
        self.phase("source")
        source = self.source()
        found = containerfile.bases(source.containerfile, job.arguments)
        fetched = []
        for number, base in enumerate(found):
            self.phase(f"base image {number + 1} of {len(found)}")
            fetched.append(self.base(number, base))
        self.phase("build")
        built, image = self.build(source, fetched)
        before = state.digests(job.inputs())
        if job.expect and job.expect != image.digest:
            raise refused(
                "EXPECTED",
                f"the build gave {image.digest}, not what was expected",
                "compare both images: what did it fetch?",
            )
        self.phase("signature")
        signed = self.directory / "signed"
        signature = self.builder.gpg.sign(built, job.image, signed)
        beside = self.directory / "cosign"
        tags = [job.tag, *(tag for tag in reversed(state.tags(job.name, image.digest)) if tag != job.tag)][:32]
        write_cosign(beside, job.name, tags, image.digest, state.cosign)
        self.phase("push")
        self.push(signed, beside, image)
        return Result(self.statement(state, source, fetched, image, before), signature, image.digest)

    # ------------------------------------------------------------------------------------------------- steps

    def source(self) -> Source:
        """Fetch the repository, find the revision, check its tree, and take it out."""
        job, work = self.job, make_work(self.directory / "source")
        login = repository_login(self.builder.config, job.repository) or Login()
        host = host_of(job.repository)
        settings = _GITCONFIG
        if login.username:
            basic = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
            settings += f'[http "https://{host}/"]\nextraHeader = Authorization: Basic {basic}\n'
        code, said = self.reach(
            "source",
            ("/bin/sh", "-c", _FETCH, "sh", job.repository, job.revision),
            work,
            [host],
            _GIT,
            {"gitconfig": settings},
        )
        if code == _NO_REVISION:
            raise refused(
                "REVISION",
                "no branch or tag of the repository has this commit",
                "push it, or correct the hash",
                job.revision,
            )
        if code:
            raise refused(
                "SOURCE", "the repository can't be fetched", "look at the log of the job; is the login right?"
            )
        time_, tree = _tree(said)
        self.check(tree)
        entry = tree.get(job.containerfile.encode())
        if entry is None or entry[0] not in (b"100644", b"100755"):
            raise refused(
                "CONTAINERFILE",
                "the revision has no regular file of this name",
                "no link, no directory",
                job.containerfile,
            )
        code, content = self.step(
            "checkout", ("/bin/sh", "-c", _CHECKOUT, "sh", job.revision, entry[1].decode()), work, _GIT
        )
        if code or len(content) > containerfile.LARGEST:
            raise refused("SOURCE", "the revision can't be checked out", "look at the log of the job")
        return Source(work / "source", content, time_)

    def check(self, tree: Mapping[bytes, tuple[bytes, bytes, int]]) -> None:
        """Refuse a tree that has submodules, or is larger than it may be."""
        if any(mode == b"160000" for mode, _, _ in tree.values()):
            raise refused(
                "SUBMODULE",
                "the revision has submodules",
                "what is built is one revision of one repository: merge them",
            )
        size = sum(each for _, _, each in tree.values())
        if size > self.builder.config.limits.source or len(tree) > MOST_FILES:
            raise refused(
                "SIZE",
                "the revision is larger than the server's configuration allows",
                "make it smaller, or raise limits.source_mib",
            )

    def base(self, number: int, base: Base) -> Fetched:
        """Fetch one base image, and hash it."""
        config, reference = self.builder.config, base.reference
        login = config.registries.get(reference.registry)
        if login is None:
            raise refused(
                "BASE",
                f"the server's configuration does not name the registry {reference.registry}",
                "ask who wrote the contract",
            )
        work = make_work(self.directory / f"base-{number}")
        hosts, files = registry_hosts(reference.registry, login), {"auth.json": _auth({reference.registry: login})}
        command = ("/bin/sh", "-c", _BASE, "sh", reference.canonical)
        code, manifest = self.reach(f"base-{number}", command, work, hosts, {}, files)
        if code or f"sha256:{hashlib.sha256(manifest).hexdigest()}" != reference.digest:
            raise refused(
                "BASE",
                f"the base image {reference.canonical} can't be fetched",
                "is it in its registry, and the login right? look at the log of the job",
            )
        image = layout.instance(manifest, self.builder.architecture) or str(reference.digest)
        layout.read(work / "image", image)
        return Fetched(base, work / "image", image)

    def build(self, source: Source, fetched: Iterable[Fetched]) -> tuple[Path, layout.Image]:
        """Build, and verify what came out."""
        job, work = self.job, make_work(self.directory / "build")
        for name in ("graph", "run"):
            (work / name).mkdir()
            os.chown(work / name, *(2 * [work.stat().st_uid]))
        file, bases = self.directory / "Containerfile", self.directory / "bases"
        file.write_bytes(source.containerfile)
        file.chmod(0o444)
        bases.mkdir()
        options = [f"--timestamp={source.time}"]
        shown = {"/context": source.directory, "/Containerfile": file, "/bases": bases}
        for number, each in enumerate(fetched):
            each.directory.rename(bases / str(number))
            options.append(f"--build-context={each.base.written}=docker-image://localhost/base-{number}:1")
        options += [f"--build-arg={name}={value}" for name, value in job.arguments.items()]
        hosts = self.builder.config.hosts
        if hosts:  # for RUN alone: with these in its own environment buildah would fetch, too
            options += [f"--build-arg={name}={FORWARD}" for name in ("https_proxy", "HTTPS_PROXY")]
        command = ("/bin/sh", "-c", _BUILD, "sh", *options)
        if hosts:
            code, _ = self.reach(
                "build",
                ("/usr/bin/env", "-u", "https_proxy", "-u", "HTTPS_PROXY", *command),
                work,
                hosts,
                {},
                {},
                shown,
                log=True,
            )
        else:
            code, _ = self.step("build", command, work, {}, shown, answer=False)
        if code:
            raise refused("FAILED", f"the build ended with {code}", f"casemate build log {self.name} shows why")
        return work / "out", layout.read(work / "out")

    def push(self, signed: Path, beside: Path, image: layout.Image) -> None:
        """Push the image and its signatures, and look at what the registry has afterwards."""
        job, config = self.job, self.builder.config
        work = make_work(self.directory / "push")
        registry = job.name.partition("/")[0]
        login = config.images[job.name]
        hosts, files = registry_hosts(registry, login), {"auth.json": _auth({registry: login})}
        settings = self.directory / "registries.d"
        settings.mkdir()
        (settings / "default.yaml").write_text("default-docker: {lookaside-staging: 'file:///work/signatures'}\n")
        shown = {"/signed": signed, "/cosign": beside, "/registries.d": settings}
        sign = f"{job.name}:{image.digest.replace(':', '-')}.sig"
        command = ("/bin/sh", "-c", _PUSH, "sh", job.image, sign)
        code, found = self.reach("push", command, work, hosts, {}, files, shown)
        if code:
            raise refused(
                "PUSH", f"{job.image} can't be pushed", "look at the log of the job; may this login write there?"
            )
        if found != image.manifest:
            raise refused(
                "SWAPPED",
                f"the registry has another image as {job.image} than was pushed",
                "trust its digest, not this registry",
            )

    # ------------------------------------------------------------------------------------------------- how they run

    def reach(
        self, name: str, command: Iterable[str], work: Path, hosts: Iterable[str], environment: Mapping[str, str],
        login: Mapping[str, str], shown: Mapping[str, Path] | None = None, *, log: bool = False,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Run a step that may reach hosts. What it logs in with lies in a file that is gone afterwards."""
        builder = self.builder
        place = builder.scratch / f"{self.name}-{name}"
        (place / "login").mkdir(parents=True)
        try:
            place.chmod(0o711)
            for file, text in login.items():
                (place / "login" / file).write_text(text)
            (place / "authorities.pem").write_text(_authorities(builder.config))
            seen = {"/run/login": place / "login", "/run/authorities.pem": place / "authorities.pem", **(shown or {})}
            told = {"SSL_CERT_FILE": "/run/authorities.pem", **environment}
            config = builder.config
            with Proxy(place / "proxy", hosts, config.addresses, config.limits.fetch) as proxy:
                try:
                    done = self.step(name, command, work, told, seen, proxy=proxy.path, answer=not log)
                finally:
                    for denied in dict.fromkeys(proxy.denied):
                        self.log(
                            f"refused by the server: {_plain(denied)} is not among the hosts of this step\n".encode()
                        )
            if proxy.full:
                raise refused(
                    "SIZE", "a step receives more than the server's configuration allows", "raise limits.fetch_mib"
                )
            return done
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def step(
        self, name: str, command: Iterable[str], work: Path, environment: Mapping[str, str],
        shown: Mapping[str, Path] | None = None, *, proxy: Path | None = None, answer: bool = True,
    ) -> tuple[int, bytes]:  # fmt: skip
        """Run a step without network, or with ``proxy`` as the way out."""
        box = Sandbox(
            f"{self.name}-{name}", self.builder.scratch, tuple(command), work, shown or {}, environment, proxy
        )
        return run(box, self.watch, self.log, answer=answer)

    def statement(
        self, state: State, source: Source, fetched: Iterable[Fetched], image: layout.Image, before: list[str]
    ) -> dict[str, Any]:
        """Return what the manifest says."""
        job, config = self.job, self.builder.config
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return {
            "server": {"id": state.server, "version": self.builder.version},
            "job": self.name,
            "time": now.isoformat().replace("+00:00", "Z"),
            "source": {
                "repository": job.repository,
                "revision": job.revision,
                "time": source.time,
                "containerfile": job.containerfile,
                "containerfile_sha256": hashlib.sha256(source.containerfile).hexdigest(),
            },
            "arguments": sorted(job.arguments),
            "bases": [{"name": each.base.reference.canonical, "image": each.image} for each in fetched],
            "network": list(config.hosts),
            "inputs": job.inputs(),
            "before": [digest for digest in before if digest != image.digest],
            "image": {"name": job.name, "tag": job.tag, "digest": image.digest, "media": image.media},
            "keys": dict(self.builder.public),
        }


def _tree(said: bytes) -> tuple[int, dict[bytes, tuple[bytes, bytes, int]]]:
    """Return the commit's time, and mode, object and size by path, of what the fetch printed."""
    first, *rows = said.split(b"\0")
    if len(said) > LARGEST_PATHS or not re.fullmatch(rb"[0-9]{1,10}", first):
        raise refused("SOURCE", "the repository has more names than can be listed, or a commit of another form")
    tree = {}
    for row in filter(None, rows):
        head, _, path = row.partition(b"\t")
        mode, _, name, size = head.split()
        tree[path] = (mode, name, int(size) if size.isdigit() else 0)
    return int(first), tree


def _auth(logins: Mapping[str, Login]) -> str:
    auths = {}
    for registry, login in logins.items():
        if login.username:
            auth = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
            auths[registry] = {"auth": auth}
    return json.dumps({"auths": auths})


def _authorities(config: Config) -> str:
    public = SYSTEM_AUTHORITIES.read_text() if SYSTEM_AUTHORITIES.is_file() else ""
    return f"{public}\n{config.authorities}\n"


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
