"""What each service of the layer costs in a start, and on which of them the whole waits: the critical path.

    python bench/bench_layer.py          # one machine; the table of docs/layer.md

systemd's own times, asked inside: when a unit began, when it was up, after whom it comes. The critical path leads from the
end back to whoever was up last among those that a unit waits for, as ``systemd-analyze critical-chain`` has it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from machines import around

from casemate.machine.machines import Data, up

LAST = "hpl-catch-success"
PROPERTIES = "Id,After,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's name, when it began and was up, in seconds after the kernel's start, and after whom it comes."""

    name: str
    begun: float
    up: float
    after: tuple[str, ...]


def units(shown: str) -> dict[str, Unit]:
    """Read what ``systemctl show`` says of several units; those that did not start are left out."""
    found = {}
    for block in shown.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        begun, done = (int(values.get(f"{key}TimestampMonotonic", 0)) / 1e6 for key in ("InactiveExit", "ActiveEnter"))
        if values.get("Id", "").endswith(".service") and begun and done:
            name = values["Id"].removesuffix(".service")
            after = tuple(each.removesuffix(".service") for each in values.get("After", "").split())
            found[name] = Unit(name, begun, done, after)
    return found


def critical(found: dict[str, Unit], last: str = LAST) -> list[Unit]:
    """Return the units on which the end waited, the first one first."""
    path = [found[last]]
    while before := [found[name] for name in path[0].after if name in found and found[name].up < path[0].up]:
        path.insert(0, max(before, key=lambda unit: unit.up))
    return path


def main() -> int:
    """Start a machine, ask it, print."""
    with around() as here:
        spec = here.specification("bench-layer", "", Data(here.directory / "data.img", 1 << 30))
        machine = up(spec, timeout=300)
        try:
            names = here.ask("ls /etc/systemd/system /usr/lib/systemd/system").split()
            ours = {name for name in names if name.startswith(("hpl-", "systemd-")) and name.endswith(".service")}
            wanted = sorted(name for name in ours if "@." not in name)
            found = units(here.ask(f"systemctl show --property={PROPERTIES} {' '.join(wanted)}"))
            manager = here.ask("systemctl show --property=UserspaceTimestampMonotonic")
        finally:
            machine.down()
    zero = int(manager.strip().partition("=")[2]) / 1e6
    path = critical(found)
    names_on_path = {unit.name for unit in path}
    print(f"# the layer's systemd starts {zero:.1f} s after the kernel")
    print("| service | begins | up | takes | on the critical path |\n| --- | --: | --: | --: | --- |")
    for unit in sorted((unit for unit in found.values() if unit.name.startswith("hpl-")), key=lambda unit: unit.begun):
        on = "yes" if unit.name in names_on_path else ""
        print(f"| `{unit.name}` | {unit.begun - zero:.1f} | {unit.up - zero:.1f} | {unit.up - unit.begun:.1f} | {on} |")
    print("critical path: " + ", ".join(f"{unit.name} {unit.up - unit.begun:.1f} s" for unit in path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
