"""What is asked of libvirt, and ``virsh`` as the one who asks.

A subprocess and not libvirt's Python module: that one must fit the library of the host to the letter, comes from the
distribution, and would be the only compiled dependency that a virtual environment can't hold. ``virsh`` is part of every
installation of libvirt, and what is done can be typed by an operator too. Domains are always named by UUID: a name of digits
would be taken for a number. Answers are in English (``LC_ALL=C``), and only those are read that are made for programs.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from casemate.deploy.errors import DeployError

PATIENCE = 120
LARGEST_ANSWER = 4 << 20


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as libvirt has it. ``xml`` is what it will be at its next start."""

    name: str
    uuid: str
    xml: str
    running: bool
    autostart: bool


class Libvirt(Protocol):
    """What :mod:`casemate.deploy.apply` needs. Each call raises :class:`DeployError` where libvirt refuses."""

    def names(self) -> dict[str, str]:
        """Return the UUIDs of all domains, by name."""

    def domain(self, uuid: str) -> Domain:
        """Return a domain."""

    def define(self, xml: str) -> None:
        """Define a domain, or change it for its next start. Its XML must fulfil libvirt's schema."""

    def autostart(self, uuid: str, on: bool) -> None:
        """Have it started with the host, or not."""

    def start(self, uuid: str) -> None:
        """Start it."""

    def stop(self, uuid: str, patience: float) -> None:
        """Ask it to power off; after ``patience`` seconds, by force."""

    def undefine(self, uuid: str) -> None:
        """Forget a domain that is stopped. Its disks stay."""

    def volume(self, pool: str, name: str) -> int | None:
        """Return the bytes of a volume of a pool; ``None`` where there is none."""

    def make_volume(self, pool: str, name: str, size: int) -> None:
        """Make a raw, sparse volume."""

    def grow_volume(self, pool: str, name: str, size: int) -> None:
        """Make a volume larger."""


@dataclass(frozen=True, slots=True)
class Virsh:
    """libvirt through ``virsh``, at a connection URI."""

    connection: str

    def names(self) -> dict[str, str]:
        """As :class:`Libvirt` says."""
        lines = (line.split(None, 1) for line in self._ask("list", "--all", "--uuid", "--name").splitlines())
        return {words[1].strip(): words[0] for words in lines if len(words) == 2}

    def domain(self, uuid: str) -> Domain:
        """As :class:`Libvirt` says."""
        facts = dict(re.findall(r"(?m)^([A-Za-z() ]+): +(.*)$", self._ask("dominfo", uuid)))
        xml = self._ask("dumpxml", "--inactive", uuid)
        running = facts.get("State") not in ("shut off", "crashed")
        return Domain(facts.get("Name", ""), uuid, xml, running, facts.get("Autostart") == "enable")

    def define(self, xml: str) -> None:
        """As :class:`Libvirt` says."""
        self._ask("define", "--validate", "/dev/stdin", text=xml)

    def autostart(self, uuid: str, on: bool) -> None:
        """As :class:`Libvirt` says."""
        self._ask("autostart", uuid, *(() if on else ("--disable",)))

    def start(self, uuid: str) -> None:
        """As :class:`Libvirt` says."""
        self._ask("start", uuid)

    def stop(self, uuid: str, patience: float) -> None:
        """As :class:`Libvirt` says. IBM Z has a signal for it that the guest takes as Ctrl-Alt-Del; a PC has the keys."""
        if patience > 0:
            arch = re.search(r"<type arch='([^']*)'", self._ask("dumpxml", uuid))
            keys = ("KEY_LEFTCTRL", "KEY_LEFTALT", "KEY_DELETE")
            order = ("shutdown", uuid) if arch and arch[1] == "s390x" else ("send-key", uuid, *keys)
            self._run(order)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not self.domain(uuid).running:
                return
            time.sleep(0.5)
        done = self._run(("destroy", uuid))
        if done.returncode and self.domain(uuid).running:
            raise self._refused(("destroy", uuid), done)

    def undefine(self, uuid: str) -> None:
        """As :class:`Libvirt` says."""
        self._ask("undefine", uuid)

    def volume(self, pool: str, name: str) -> int | None:
        """As :class:`Libvirt` says."""
        names = [line.split(None, 1)[0] for line in self._ask("vol-list", pool).splitlines() if line.strip()]
        if name not in names:
            return None
        found = re.search(r"(?m)^Capacity: +([0-9]+) bytes$", self._ask("vol-info", name, "--pool", pool, "--bytes"))
        if not found:
            raise DeployError("libvirt tells no size", "look with virsh vol-info", name, id="DEPLOY-LIBVIRT")
        return int(found[1])

    def make_volume(self, pool: str, name: str, size: int) -> None:
        """As :class:`Libvirt` says."""
        self._ask("vol-create-as", pool, name, str(size), "--allocation", "0", "--format", "raw")

    def grow_volume(self, pool: str, name: str, size: int) -> None:
        """As :class:`Libvirt` says."""
        self._ask("vol-resize", name, str(size), "--pool", pool)

    def _ask(self, *words: str, text: str = "") -> str:
        done = self._run(words, text)
        if done.returncode:
            raise self._refused(words, done)
        return done.stdout

    def _run(self, words: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        command = ["virsh", "--quiet", "--connect", self.connection, *words]
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            return subprocess.run(
                command, input=text, text=True, capture_output=True, env=environment, timeout=PATIENCE, check=False
            )
        except FileNotFoundError:
            cure = "apt-get install libvirt-clients"
            raise DeployError("virsh is not installed", cure, id="DEPLOY-LIBVIRT") from None
        except subprocess.TimeoutExpired:
            cause = f"libvirt gives no answer to {words[0]} for {PATIENCE} s"
            raise DeployError(cause, "look at its daemon", self.connection, id="DEPLOY-LIBVIRT") from None

    def _refused(self, words: Sequence[str], done: subprocess.CompletedProcess[str]) -> DeployError:
        lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
        said = "; ".join("".join(c for c in line if c.isprintable()) for line in lines[-3:])
        return DeployError(f"virsh {words[0]}: {said}", "", self.connection, id="DEPLOY-LIBVIRT")
