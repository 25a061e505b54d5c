"""What scenarios in the lab begin with: a start of the storage services with given seeds and disks.

Prints a line of JSON a fact.
"""
# ruff: noqa: F401

import json
import os
import subprocess
from pathlib import Path

from casemate.guest import diskcheck, lukspassphrase, state, storage, volumes
from casemate.guest.kernel import Disk
from casemate.guest.report import Stop
from casemate.luks.header import in_order
from casemate.luks.policy import AUTHENTICATED, DATA_START

MIB = 1 << 20
SMALL, LARGE = 384 * MIB, 512 * MIB
OLD, NEW = {"workload": "w" * 15, "env": "e" * 15}, {"workload": "w" * 15, "env": "n" * 15}
CONTRACTS = {
    "first": {"seed": OLD},
    "rolled": {"seed": NEW, "previousSeed": {"env": OLD["env"]}},
    "after": {"seed": NEW},
    "third": {"seed": {**NEW, "env": "t" * 15}, "previousSeed": {"env": NEW["env"]}},
}


def fact(**values):
    print("FACT " + json.dumps(values), flush=True)


def run(*command, data=b""):
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.decode()}")
    return done.stdout.decode()


def disk(name, size, table):
    """Map a disk of this size."""
    run("dmsetup", "create", name, data=f"0 {size // 512} {table}\n".encode())
    return Disk(f"mapper/{name}", "", size)


def start(contract, wanted, disks):
    """What the services do at a start, with these seeds and disks."""
    seeds = {name: dict(CONTRACTS[contract]) for name in wanted}
    if "b" in wanted:  # two volumes with the same seeds can't be told apart
        seeds["b"]["seed"] = {"workload": "b" * 15, "env": "e" * 15}
    state.write_json(state.SEEDS, seeds)
    state.write_json(state.SECTIONS / "workload.json", {"volumes": wanted})
    lukspassphrase.service()
    volumes.wait_for_disks = lambda number: disks
    volumes.service()
    assert not state.PASSPHRASES.exists()
    plans = volumes.plans()
    return plans


def stop(*names):
    for name in names:
        if os.path.ismount(f"/var/volumes/{name}"):
            run("umount", f"/var/volumes/{name}")
        run("dmsetup", "remove", volumes.mapping(name))


def put(path, fill):
    with open(path, "wb") as file:
        file.write(fill * MIB)
        file.flush()
        os.fsync(file.fileno())


def size(name):
    found = os.statvfs(f"/var/volumes/{name}")
    return found.f_blocks * found.f_frsize
