"""Volumes of a pod: which there are, where the guest has them, how its containers mount them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from casemate.contract.errors import WorkloadError
from casemate.contract.workload import (
    NAME,
    Places,
    Problems,
    Service,
    Workload,
    fields,
    flag,
    listed,
    mount,
    plain,
    volume,
    whole,
)

LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_DEVICES = ("CharDevice", "BlockDevice")
_DEVICE = re.compile(r"/dev(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
_PLAIN_MODES = {0o644, 644, 0o444, 444, 0o400, 400, 0o600, 600, 0o640, 640}
_PROGRAM_MODES = {0o755, 755, 0o555, 555, 0o777, 777, 0o500, 500, 0o700, 700}
"""Modes of files, in octal as people write them (``0755``), and as the decimal number that JSON needs."""


def label(value: Any, place: str, problems: Problems) -> str:
    """Return a name as Kubernetes has them, or another in its place where it is none."""
    with problems.caught():
        if not isinstance(value, str) or not LABEL.fullmatch(value):
            raise WorkloadError(place, "small letters, digits, . and - only, at most 63")
        return value
    return "pod"


@dataclass(slots=True)
class Volumes:
    """The volumes of one pod by name: their kind and where they come from. ``table`` finds a ConfigMap."""

    pod: str
    places: Places
    workload: Workload
    table: Callable[[Any, str, tuple[str, ...]], Mapping[str, bytes]]
    sources: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def declare(self, value: Any, where: str, problems: Problems) -> None:
        """Read ``volumes`` of a pod."""
        known = ("name", "hostPath", "emptyDir", "configMap")
        for number, item in enumerate(listed(value, where)):
            place = f"{where}[{number}]"
            with problems.caught():
                if isinstance(item, dict) and "persistentVolumeClaim" in item:
                    raise WorkloadError(place, "a volume of the contract is mounted by hostPath at its mount point")
                entry = fields(item, place, known)
                name = entry.pop("name", None)
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    raise WorkloadError(f"{place}.name", "letters, digits, _ . and - only, at most 64")
                if name in self.sources:
                    raise WorkloadError(f"{place}.name", "stands twice")
                if len(entry) > 1 or not isinstance(item, dict) or len(item) < 2:
                    raise WorkloadError(place, f"must be one of {', '.join(known[1:])}")
                kind = next(iter(entry), "emptyDir")  # `emptyDir:` with nothing behind it
                self.sources[name] = self._source(kind, name, entry.get(kind), f"{place}.{kind}")

    def _source(self, kind: str, name: str, value: Any, place: str) -> tuple[str, Any]:
        """Return the kind of a volume, and a path for its mounts, or the name of one of the engine's."""
        if kind == "emptyDir":
            medium = fields(value, place, ("medium", "sizeLimit")).get("medium", "")
            if medium not in ("", "Memory"):
                raise WorkloadError(place, "medium is Memory, or not given")
            return kind, f"{self.pod}-{name}"
        if kind == "hostPath":
            entry = fields(value, place, ("path", "type"))
            path, must = plain(entry.get("path"), f"{place}.path"), entry.get("type", "")
            if must not in ("", "Directory", "DirectoryOrCreate", "File", *_DEVICES):
                raise WorkloadError(f"{place}.type", "must be Directory, DirectoryOrCreate, File or a device")
            if must in _DEVICES and not _DEVICE.fullmatch(path):
                raise WorkloadError(f"{place}.path", "a device lies below /dev")
            inside = posixpath.normpath(path)
            if must in ("Directory", "File") and not path.startswith("/") and inside != ".":
                is_file = inside in self.places.files
                is_directory = any(one.startswith(f"{inside}/") for one in self.places.files)
                if not (is_file if must == "File" else is_directory):
                    raise WorkloadError(f"{place}.path", f"the archive has no such {must.lower()}")
            return ("device" if must in _DEVICES else kind), path
        entry = fields(value, place, ("name", "items", "defaultMode", "optional"))
        reference = {key: item for key, item in entry.items() if key in ("name", "optional")}
        table = self.table(reference, place, ("name", "optional"))
        return kind, self._config_files(name, entry, table, place)

    def _config_files(self, name: str, entry: Mapping[str, Any], table: Mapping[str, bytes], place: str) -> str:
        """Have the keys of a ConfigMap written as files; return their directory."""
        directory = f"{self.places.scratch}/.configmaps/{self.pod}/{name}"
        mode = _mode(entry.get("defaultMode", 0o644), f"{place}.defaultMode")
        chosen = {key: (key, mode) for key in table}
        if "items" in entry:
            chosen = {}
            for item in listed(entry["items"], f"{place}.items"):
                one = fields(item, f"{place}.items", ("key", "path", "mode"))
                key, path = plain(one.get("key"), place), posixpath.normpath(plain(one.get("path"), place))
                if key not in table or path.startswith(("/", "..")) or path == ".":
                    raise WorkloadError(
                        f"{place}.items", "the ConfigMap has no such key, or the path leaves the volume"
                    )
                chosen[key] = (path, _mode(one["mode"], f"{place}.items") if "mode" in one else mode)
        for key, (path, bits) in chosen.items():
            self.workload.files[f"{directory}/{path}"] = (bits, table[key])
        self.workload.directories.append(directory)
        return directory

    def mount(self, made: Service, value: Any, place: str, problems: Problems) -> None:
        """Mount one of them in a container. As with podman, options may stand behind the path and a colon."""
        entry = fields(value, place, ("name", "mountPath", "readOnly", "subPath", "mountPropagation"))
        name = plain(entry.get("name"), place)
        target, _, text = plain(entry.get("mountPath"), place).partition(":")
        words = {word for word in text.split(",") if word}
        if words - {"z", "Z", "rw", "ro", "U"}:
            raise WorkloadError(f"{place}.mountPath", "options behind the path are ro, rw, z, Z and U")
        if "U" in words:
            problems.note(f"{place}.mountPath", "U is passed over: the owners of what is mounted stay")
        read_only = flag(entry.get("readOnly", False), f"{place}.readOnly") or "ro" in words
        below = posixpath.normpath(plain(entry.get("subPath") or ".", f"{place}.subPath"))
        if below.startswith(("/", "..")) or entry.get("mountPropagation", "None") != "None":
            raise WorkloadError(place, "a subPath stays below its volume, mountPropagation is None")
        if name not in self.sources:
            raise WorkloadError(f"{place}.name", "the Pod has no volume of this name")
        kind, source = self.sources[name]
        if kind == "device":
            if below != "." or not _DEVICE.fullmatch(target):
                raise WorkloadError(place, "a device is given below /dev, and has no subPath")
            made.options.append(f"--device={source}:{target}{':r' * read_only}")
        elif kind == "emptyDir":
            if below != ".":
                raise WorkloadError(f"{place}.subPath", "not supported for emptyDir")
            if made.group is None:
                made.options.append(volume(source, target, read_only, place))
            else:  # a directory of ours, since the engine gives its volumes to users of its own choice
                path = f"{self.places.scratch}/.empty/{source}"
                made.directories.append(path)
                made.mounts.append(path)
                made.grouped.append(path)
                made.options.append(volume(path, target, read_only, place))
        elif kind == "configMap":
            path = posixpath.normpath(f"{source}/{below}")
            made.mounts.append(path)
            made.options.append(volume(path, target, True, place))
        else:
            path = source if below == "." else f"{source.rstrip('/')}/{below}"
            mount(made, path, target, read_only, place, self.places)
            if made.group is not None and any(
                made.mounts[-1] == top or made.mounts[-1].startswith(f"{top}/") for top in self.places.volumes.values()
            ):
                made.grouped.append(made.mounts[-1])


def _mode(value: Any, place: str) -> int:
    mode = whole(value, place)
    if mode not in _PLAIN_MODES | _PROGRAM_MODES:
        raise WorkloadError(place, "must be 0644, 0755 or one of their like")
    return 0o755 if mode in _PROGRAM_MODES else 0o644
