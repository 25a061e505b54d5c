"""Reads an image that came out of a sandbox, an OCI image layout, and believes nothing of it.

    image = read(directory, digest)          # all blobs hashed; image.manifest is what its digest was computed of

Files are opened through no link, each is bounded, and counts only with the digest and size that names it. After the sandbox has
ended nobody but the server writes there, so what was verified is what is signed and pushed.

Format: OCI image specification 1.0, ``image-layout.md``, ``manifest.md``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import strictjson
from casemate.hpsb.errors import refused

LARGEST_MANIFEST, LARGEST_CONFIG, MOST_LAYERS = 4 << 20, 4 << 20, 256
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Image:
    """A verified image: its manifest's bytes, digest and kind, and the bytes of all its layers."""

    manifest: bytes
    digest: str
    media: str
    size: int


def read(directory: Path, digest: str | None = None) -> Image:
    """Verify the one image of a layout; with ``digest``, it must be that one. Raises :class:`BuildError`."""
    with _beneath(directory) as here:
        index = _json(_content(here, "index.json", LARGEST_MANIFEST))
        listed = index.get("manifests")
        if not isinstance(listed, list) or len(listed) != 1:
            raise _wrong("holds not one image")
        named, media, manifest = _blob(here, listed[0], LARGEST_MANIFEST)
        if digest is not None and named != digest:
            raise _wrong("holds another image")
        document = _json(manifest)
        layers = document.get("layers")
        if media not in MANIFESTS or not isinstance(layers, list) or len(layers) > MOST_LAYERS:
            raise _wrong("has a manifest of another form")
        _blob(here, document.get("config"), LARGEST_CONFIG)
        size = sum(_hashed(here, layer) for layer in layers)
        return Image(manifest, named, media, size)


def instance(manifest: bytes, architecture: str) -> str | None:
    """Return the digest of the image for Linux and ``architecture`` that an index names; ``None`` where it is no index."""
    document = _json(manifest)
    listed = document.get("manifests")
    if not isinstance(listed, list):
        return None
    for each in listed:
        platform = each.get("platform") if isinstance(each, dict) else None
        if not isinstance(platform, dict) or (platform.get("os"), platform.get("architecture")) != (
            "linux",
            architecture,
        ):
            continue
        return _described(each)[0]
    raise refused("BASE", f"a base image has nothing for linux/{architecture}", "name another")


@contextmanager
def _beneath(directory: Path) -> Iterator[int]:
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield here
    finally:
        os.close(here)


@contextmanager
def _opened(here: int, name: str) -> Iterator[Any]:
    """Open a file step by step, through no link."""
    at = os.dup(here)
    try:
        *places, last = name.split("/")
        for place in places:
            below = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        with os.fdopen(
            os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at), "rb"
        ) as file:
            yield file
    except OSError:
        raise _wrong("misses a file, or has a link in its place") from None
    finally:
        os.close(at)


def _content(here: int, name: str, limit: int) -> bytes:
    with _opened(here, name) as file:
        data = bytes(file.read(limit + 1))
    if len(data) > limit:
        raise _wrong("has a file that is too large")
    return data


def _described(entry: Any) -> tuple[str, int]:
    digest, size = (entry.get("digest"), entry.get("size")) if isinstance(entry, dict) else (None, None)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise _wrong("names a part in a form that is not understood")
    return digest, size


def _blob(here: int, entry: Any, limit: int) -> tuple[str, str, bytes]:
    digest, size = _described(entry)
    data = _content(here, f"blobs/sha256/{digest[7:]}", limit)
    if len(data) != size or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise _wrong("has a part that is not what its digest says")
    return digest, str(entry.get("mediaType")), data


def _hashed(here: int, entry: Any) -> int:
    digest, size = _described(entry)
    with _opened(here, f"blobs/sha256/{digest[7:]}") as file:
        length = os.fstat(file.fileno()).st_size
        if length != size or f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
            raise _wrong("has a layer that is not what its digest says")
    return size


def _json(data: bytes) -> dict[str, Any]:
    try:
        document = strictjson.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _wrong("has a part that is no JSON")
    return document


def _wrong(what: str) -> Exception:
    return refused(
        "LAYOUT", f"an image that came out of a sandbox {what}", "is this an attack? look at the log of the job"
    )
