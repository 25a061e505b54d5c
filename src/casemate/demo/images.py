"""Container images made from Debian's packages: no registry outside is needed, and the same packages give the same digest.

Each is an OCI image layout (one directory) with a single layer: the files that the programs need, found with ``ldd``
inside a tree that ``mmdebstrap`` makes, with busybox as the shell. Both the tree and the layout are cached by content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.image.root import EPOCH, RELEASE, cache_key, run
from casemate.machine import home

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

_POSTGRES_START = """\
#!/bin/sh
# Starts PostgreSQL on $PGDATA; makes the database first where there is none, whole or not at all.
# With POSTGRES_TLS_CERTIFICATE and POSTGRES_TLS_KEY (PEM), clients are served by TLS only.
set -eu
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD}"
bin=/usr/lib/postgresql/15/bin
mkdir -p "${PGDATA%/*}"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  mkdir -m 700 "$PGDATA.new"
  (umask 077; printf %s "$POSTGRES_PASSWORD" > /tmp/password)
  chown postgres:postgres "$PGDATA.new" /tmp/password
  su -s /bin/sh postgres -c "$bin/initdb -D '$PGDATA.new' -E UTF8 --locale=C --pwfile=/tmp/password \
--auth-host=scram-sha-256 --auth-local=reject --no-instructions" > /dev/null
  rm /tmp/password
  sync
  mv "$PGDATA.new" "$PGDATA"
  sync
  echo "a new database has been made"
fi
kind=host tls=off
if [ -n "${POSTGRES_TLS_KEY:-}" ]; then
  kind=hostssl tls=on
  (umask 077; printf '%s\\n' "$POSTGRES_TLS_KEY" > "$PGDATA/server.key")
  printf '%s\\n' "${POSTGRES_TLS_CERTIFICATE:?set POSTGRES_TLS_CERTIFICATE}" > "$PGDATA/server.crt"
  chown postgres:postgres "$PGDATA/server.key" "$PGDATA/server.crt"
fi
echo "$kind all all all scram-sha-256" > "$PGDATA/pg_hba.conf"
unset POSTGRES_PASSWORD POSTGRES_TLS_KEY POSTGRES_TLS_CERTIFICATE
exec su -s /bin/sh postgres -c "exec $bin/postgres -D '$PGDATA' -c listen_addresses='*' -c ssl=$tls \
-c unix_socket_directories= -c jit=off -c logging_collector=off -c log_connections=on"
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What goes into an image: Debian packages, the paths (globs) taken of them, own files, and how it starts."""

    name: str
    packages: tuple[str, ...]
    paths: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n"
_BASE = {"etc/passwd": (0o644, _ACCOUNTS), "etc/group": (0o644, "root:x:0:\npostgres:x:70:\n")}

POSTGRES = Recipe(
    name="postgres",
    packages=("postgresql-15", "busybox-static"),
    paths=(
        *("bin/busybox", "usr/lib/postgresql/15/bin/postgres", "usr/lib/postgresql/15/bin/initdb"),
        *("usr/lib/postgresql/15/lib/*.so", "usr/share/postgresql/15", "usr/share/zoneinfo/Etc"),
    ),
    left_out=(
        *("usr/lib/postgresql/15/lib/llvmjit.so", "usr/share/postgresql/15/man"),
        *("usr/share/postgresql/15/locale", "usr/share/postgresql/15/extension/[!p]*"),
    ),
    files={**_BASE, "usr/local/bin/start": (0o755, _POSTGRES_START)},
    config={
        "Entrypoint": ["/usr/local/bin/start"],
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PGDATA=/var/lib/postgresql/data", "LC_ALL=C"],
        "ExposedPorts": {"5432/tcp": {}},
        "StopSignal": "SIGINT",
    },
)
BUSYBOX = Recipe(
    name="busybox",
    packages=("busybox-static",),
    paths=("bin/busybox",),
    files=_BASE,
    config={"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]},
)


def build_server() -> Recipe:
    """Return the recipe of the server of secure builds (:mod:`casemate.hpsb`): its tools, and the parts of this source it has."""
    source = Path(__file__).parents[1]
    parts = ("hpsb", "contract", "__init__.py", "approval.py", "errors.py", "secret.py", "strictjson.py")
    modules = [
        path for part in parts for path in (source / part, *(source / part).rglob("*.py")) if path.suffix == ".py"
    ]
    place = "usr/lib/python3/dist-packages"
    return Recipe(
        name="build-server",
        packages=(
            *(
                "python3-minimal",
                "libpython3-stdlib",
                "python3-cryptography",
                "python3-yaml",
                "busybox-static",
                "ca-certificates",
            ),
            *("buildah", "skopeo", "crun", "git", "gpg", "gpg-agent", "gpgconf"),
        ),
        paths=(
            *(
                f"usr/bin/{name}"
                for name in ("python3.11", "python3", "buildah", "skopeo", "crun", "git", "gpg", "gpg-agent", "gpgconf")
            ),
            *(
                "bin/busybox",
                "usr/lib/python3.11",
                "usr/lib/*/ossl-modules/legacy.so",
                "usr/lib/git-core/git-remote-http*",
                "usr/share/containers/seccomp.json",
            ),
            *(
                f"{place}/cryptography",
                f"{place}/yaml",
                f"{place}/_cffi_backend*.so",
                "etc/ssl/certs/ca-certificates.crt",
            ),
        ),
        left_out=tuple(
            f"usr/lib/python3.11/{name}" for name in ("pydoc_data", "lib2to3", "distutils", "unittest", "wsgiref")
        ),
        files={
            **_BASE,
            **{f"{place}/casemate/{path.relative_to(source)}": (0o644, path.read_text("utf-8")) for path in modules},
        },
        config={
            "Entrypoint": ["/usr/bin/python3", "-IB", "-m", "casemate.hpsb.server"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
            "ExposedPorts": {"8443/tcp": {}},
        },
    )


def build(
    recipe: Recipe,
    *,
    arch: str = "amd64",
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Return the OCI layout of an image for an architecture, made where the cache has none."""
    cache = cache or home.directory() / "cache"
    parts = (RELEASE, recipe.packages, recipe.paths, recipe.left_out, recipe.files, recipe.config)
    layout = cache / f"oci-{recipe.name}-{arch}-{cache_key('2', *parts)}"
    if (layout / "index.json").is_file():
        return layout
    cache.mkdir(parents=True, exist_ok=True)
    progress(f"packages of {recipe.name}")
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work:
        tree = Path(work) / "tree"
        run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--architectures={arch}"),
                *("--aptopt=Apt::Install-Recommends false", "--aptopt=Acquire::Languages none"),
                *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"),
                *(f"--include={','.join(recipe.packages)}", RELEASE, str(tree)),
            ]
        )
        progress(f"image {recipe.name}")
        new = Path(work) / "layout"
        _write_layout(new, _layer(tree, recipe), recipe, arch)
        if layout.exists():
            shutil.rmtree(layout)
        new.rename(layout)
    return layout


def digest(layout: Path) -> str:
    """Return the digest of a layout's image, ``sha256:…``: what a contract names it by."""
    return str(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"])


def _chosen(tree: Path, recipe: Recipe) -> list[str]:
    """Return the paths of all files of an image, below the tree."""
    left_out = {path for pattern in recipe.left_out for path in tree.glob(pattern)}
    found: set[str] = set()
    for pattern in recipe.paths:
        for start in tree.glob(pattern):
            for path in [start, *(start.rglob("*") if start.is_dir() and not start.is_symlink() else [])]:
                if left_out.isdisjoint([path, *path.parents]) and not path.is_dir():
                    found.add(str(path.relative_to(tree)))
    return sorted(found | _libraries(tree, [name for name in found if _is_program(tree / name)]))


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(tree: Path, programs: Iterable[str]) -> set[str]:
    import re

    command = ["chroot", str(tree), "ldd", *(f"/{name}" for name in programs)]
    said = subprocess.run(command, capture_output=True, check=False).stdout.decode()
    return {path.lstrip("/") for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}


def _layer(tree: Path, recipe: Recipe) -> bytes:
    """Return the tar of an image's files: sorted, root's, all of one time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        made: set[str] = set()

        def add(name: str, mode: int, content: bytes | None = None, link: str = "", kind: bytes = b"") -> None:
            for parent in [str(each) for each in reversed(Path(name).parents)][1:]:
                if parent not in made:
                    made.add(parent)
                    add(parent, 0o755, kind=tarfile.DIRTYPE)
            member = tarfile.TarInfo(name)
            member.mode, member.mtime, member.linkname = mode, EPOCH, link
            member.type = kind or (tarfile.SYMTYPE if link else tarfile.REGTYPE)
            member.size = len(content or b"")
            made.add(name)
            tar.addfile(member, io.BytesIO(content or b""))

        for name in ("bin", "lib", "lib64", "sbin"):  # Debian's merged layout
            add(f"usr/{name}", 0o755, kind=tarfile.DIRTYPE)
            add(name, 0o777, link=f"usr/{name}")
        add("tmp", 0o1777, kind=tarfile.DIRTYPE)
        for name in _chosen(tree, recipe):
            path = tree / name
            place = name if name.split("/")[0] not in ("bin", "lib", "lib64", "sbin") else f"usr/{name}"
            if path.is_symlink() and not path.resolve().is_relative_to(tree.resolve()):
                path = tree / str(path.readlink()).lstrip("/")
            if place not in made and path.exists():
                add(place, 0o755 if path.stat().st_mode & 0o111 else 0o644, path.read_bytes())
        applets = subprocess.run(
            ["chroot", str(tree), "/bin/busybox", "--list"], capture_output=True, check=True
        ).stdout.decode()
        for applet in sorted(applets.split()):
            if f"usr/bin/{applet}" not in made:
                add(f"usr/bin/{applet}", 0o777, link="busybox")
        for name, (mode, text) in sorted(recipe.files.items()):
            add(name, mode, text.encode())
    return out.getvalue()


def _write_layout(directory: Path, layer: bytes, recipe: Recipe, arch: str = "amd64") -> None:
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(media: str, content: bytes) -> dict[str, Any]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": media, "digest": f"sha256:{name}", "size": len(content)}

    packed = blob(_LAYER, gzip.compress(layer, 6, mtime=0))
    config = {
        **{"architecture": arch, "os": "linux", "created": "2023-01-01T00:00:00Z", "config": recipe.config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    described = blob(_CONFIG, json.dumps(config, sort_keys=True).encode())
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": [packed]}
    listed = {**blob(_MANIFEST, json.dumps(manifest).encode()), "platform": {"architecture": arch, "os": "linux"}}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
