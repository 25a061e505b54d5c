"""A machine under load for some minutes: bursts of log lines, containers that fail and start again, a volume that grows.

    python bench/bench_soak.py [MINUTES]     # 4 by default; the exit code is 1 where a line is lost or memory grows on

Two starts: half of the time each; in between the data disk is made larger. Each burst is 10,000 numbered lines; at the end every
number must have arrived at the log backend, once and in order. Memory is what the services' control groups hold.
"""

from __future__ import annotations

import functools
import re
import sys
import time

from machines import Around, around, wait_for

from casemate.machine.machines import Data, Machine, up

BURST, REST, SAMPLE = 10_000, 15, 15.0
GROWTH_MIB = 16
SERVICES = f"""\
  burst:
    image: IMAGE
    volumes: ["/mnt/data:/data"]
    command:
      - sh
      - -c
      - |
        n=$$(cat /data/n 2>/dev/null || echo 0); rm -f /data/stop /data/stopped
        while [ ! -e /data/stop ]; do
          awk -v n=$$n 'BEGIN {{ for (i = n + 1; i <= n + {BURST}; i++) print "burst-" i "-" }}'
          n=$$((n + {BURST})); echo $$n > /data/n; sync; sleep {REST}
        done
        touch /data/stopped; exec sleep 1000000
  flaky:
    image: IMAGE
    restart: always
    command: [sh, -c, 'sleep 12; exit 3']
  writer:
    image: IMAGE
    volumes: ["/mnt/data:/data"]
    command: [sh, -c, 'while :; do dd if=/dev/urandom of=/data/w bs=65536 count=800 2>/dev/null; sync; rm /data/w; sleep 5; done']
"""


def memory(here: Around) -> dict[str, float]:
    """Return what services hold, in MiB: without the page cache, which the kernel takes back."""
    line = "grep -H '^anon ' /sys/fs/cgroup/system.slice/*.service/memory.stat"
    found = {}
    for name, size in re.findall(r"/([^/]+)\.service/memory.stat:anon (\d+)", here.ask(line)):
        found[name] = int(size) / 2**20
    free = re.search(r"MemAvailable:\s+(\d+)", here.ask("cat /proc/meminfo"))
    found["available"] = int(free[1]) / 1024 if free else 0.0
    return found


def arrived(here: Around, number: int) -> bool:
    """Whether a numbered line is among the last that the backend has."""
    return f"burst-{number}-" in here.logs.file.read_text(errors="replace")[-4_000_000:]


def half(here: Around, spec: object, seconds: float, samples: list[dict[str, float]]) -> Machine:
    """Start, watch for some time; return the machine, still running."""
    machine = up(spec, timeout=400)  # type: ignore[arg-type]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(SAMPLE)
        samples.append(memory(here))
        assert machine.running, machine.last_lines()
    return machine


def main() -> int:
    """Run, print, return the exit code."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    with around() as here:
        disk = here.directory / "data.img"
        spec = here.specification("bench-soak", SERVICES, Data(disk, 512 << 20))
        runs: list[list[dict[str, float]]] = [[], []]
        restarts, sizes, said = 0, [], 0
        for number in range(2):
            machine = half(here, spec, minutes * 30, runs[number])
            sizes.append(int(here.ask("df -m /var/volumes/data | tail -1").split()[1]))
            here.ask("touch /var/volumes/data/stop")  # what has been said must have arrived before the machine goes
            wait_for(lambda: "stopped" in here.ask("ls /var/volumes/data"), 120)
            said = int(here.ask("cat /var/volumes/data/n"))
            wait_for(functools.partial(arrived, here, said), 120)
            restarts += machine.console().count("service flaky has ended")
            console = machine.console()
            machine.down()
            if number == 0:
                with disk.open("r+b") as file:
                    file.truncate((512 << 20) + (GROWTH_MIB << 22))
                spec = here.specification("bench-soak", SERVICES, Data(disk))
        numbers = [int(found[1]) for line in here.logs.lines() if (found := re.search(r"burst-(\d+)-", line))]
    lost, twice = said - len(set(numbers)), len(numbers) - len(set(numbers))
    order = numbers == sorted(numbers)
    print(
        f"# {minutes:.0f} minutes in two starts, {said // BURST} bursts of {BURST} lines, {restarts} restarts of a container"
    )
    names = sorted({name for run in runs for sample in run for name in sample})
    growth = 0.0
    for name in names:
        figures = [[sample.get(name, 0.0) for sample in run] for run in runs if run]
        if max(map(max, figures)) < 1:
            continue
        print(
            f"memory of {name}: "
            + "; ".join(f"{run[0]:.0f} → {run[-1]:.0f} MiB (at most {max(run):.0f})" for run in figures)
        )
        if name.startswith("hpl-"):
            growth += sum(run[-1] - run[len(run) // 2] for run in figures)
    print(f"lines: {said} said, {lost} lost, {twice} twice, {'in order' if order else 'not in order'}")
    print(f"volume: {sizes[0]} → {sizes[1]} MiB; HPL10000E: {'yes' if 'HPL10000E' in console else 'no'}")
    return int(lost > 0 or not order or growth > 24 or sizes[1] <= sizes[0])


if __name__ == "__main__":
    sys.exit(main())
