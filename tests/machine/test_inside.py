"""What a privileged container, which is root of the guest, finds when it reads everything that it can reach."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from surroundings import PATIENCE, SHELL, World, shell

from casemate.attestation.verify import Measurement, verify
from casemate.cli.attestation import trust_of_image
from casemate.cli.ui import read_header
from casemate.contract.passphrase import passphrase
from casemate.demo.search import search
from casemate.demo.services import free_port
from casemate.demo.story import _image_keys
from casemate.image.build import ImageDirectory
from casemate.machine.machines import Machine, MachineError, Port, up
from casemate.machine.ultravisor import SoftwareUltravisor
from casemate.secureexec import attestation, hostkey

pytestmark = pytest.mark.machines
Ask = Callable[..., bytes]


@pytest.fixture(scope="module")
def machine(world: World) -> Iterator[tuple[Machine, int]]:
    port = free_port()
    compose = SHELL.format(image=world.container)
    workload = world.workload(compose)
    specification = world.specification(
        "t-inside", world.contract(workload), data=(world.data("inside"),), ports=(Port(port, 7000),)
    )
    started = up(specification, timeout=PATIENCE)
    yield started, port
    started.down()


@pytest.fixture(scope="module")
def ask(machine: tuple[Machine, int]) -> Ask:
    """Run one line of shell inside the container and return all that it printed."""

    def ask(line: str, patience: float = 300.0) -> bytes:
        return shell(machine[1], line, patience)

    return ask


def test_the_shell_is_root_of_the_guest(ask: Ask) -> None:
    assert b"uid=0" in ask("id")
    assert b"systemd" in ask("cat /proc/1/comm")


def test_the_workload_finds_the_record(ask: Ask) -> None:
    found = ask("cd /record && find . -type f").split()
    assert {b"./se-checksums.txt", b"./se-signature.bin", b"./se-version", b"./cidata/meta-data"} <= set(found)
    assert b"./user-data.decrypted" in found


def test_no_seed_no_key_no_login_is_found(ask: Ask, world: World) -> None:
    secrets = {name: value.encode() for name, value in world.secrets.items() if name != "the client's key"}
    secrets["the passphrase"] = passphrase(*world.seeds).encode()
    secrets |= _image_keys(ImageDirectory(world.image))
    places = {
        "files in memory": "find /proc/1/root/run /proc/1/root/tmp /proc/1/root/dev/shm -type f -size -9000k -exec cat {} +",
        "files of the root": "find /proc/1/root/var /proc/1/root/etc -xdev -type f -size -9000k -exec cat {} +",
        "environments and arguments": "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline",
        "keys of the kernel": "cat /proc/keys /proc/key-users",
        "mapped devices": "chroot /proc/1/root /usr/sbin/dmsetup table --showkeys",
        "the kernel's log": "dmesg",
        "the record": "find /record -type f -exec cat {} +",
    }
    for place, line in places.items():
        seen = ask(line)
        assert len(seen) > 20, place  # it did read something
        marks = {name: mark.encode() for name, mark in world.marks.items()}
        login = {"a login that nothing uses": marks["a login that nothing uses"]}
        # Workloads read variables in `user-data.decrypted`, also where it is mounted; the archive's files are theirs.
        hidden = login if "files" in place or place == "the record" else marks
        for name, secret in (secrets | hidden).items():
            assert secret not in seen, f"{name} in {place}"


def test_a_known_secret_would_be_found(ask: Ask, world: World) -> None:
    """The search above can fail: the key of the log client, which rsyslog needs for good, is where it is expected."""
    key = world.secrets["the client's key"].encode()
    assert key in ask("find /proc/1/root/run -type f -size -9000k -exec cat {} +")


def test_who_holds_a_key_and_crashes_leaves_no_core(ask: Ask) -> None:
    before = ask("pidof rsyslogd")
    ask(f"kill -SEGV {before.decode().strip()}")
    end = time.monotonic() + 60
    while not (now := ask("pidof rsyslogd").strip()) or now == before.strip():
        assert time.monotonic() < end
        time.sleep(0.5)
    found = ask(
        "find /proc/1/root/ /proc/1/root/var /proc/1/root/run -xdev -type f -name 'core*' -size +8k; echo looked"
    )
    assert [line for line in found.splitlines() if b"/usr/" not in line] == [b"looked"]


def test_keys_of_disks_stay_in_the_kernel(ask: Ask) -> None:
    tables = ask("chroot /proc/1/root /usr/sbin/dmsetup table --showkeys").decode()
    crypt = [line for line in tables.splitlines() if " crypt " in line]
    assert len(crypt) == 2  # root and data
    assert all(re.search(r" crypt \S+ :64:logon:\S+ ", line) for line in crypt), tables


def test_memory_of_the_kernel_and_of_others_is_closed(ask: Ask) -> None:
    assert b"[confidentiality]" in ask(
        "mount -t securityfs none /sys/kernel/security; cat /sys/kernel/security/lockdown"
    )
    for path in ("/proc/kcore", "/dev/mem", "/dev/port", "/dev/kmem"):
        assert b"READ" not in ask(
            f"dd if=/proc/1/root{path} bs=4096 count=1 of=/tmp/got && [ -s /tmp/got ] && echo READ"
        )
    script = """for p in /proc/[0-9]*; do
s=$(grep -m1 ' rw' $p/maps | cut -d- -f1)
[ -n "$s" ] && dd if=$p/mem bs=4096 count=1 skip=$((0x$s / 4096)) of=/tmp/got 2>/dev/null && [ -s /tmp/got ] && echo READ $p
done; echo tried"""
    read = ask(script)
    assert b"tried" in read
    others = [line for line in read.splitlines() if line.startswith(b"READ")]
    assert others == []


def test_no_code_enters_the_kernel(ask: Ask) -> None:
    assert ask("cat /proc/sys/kernel/modules_disabled").split() == [b"1"]
    assert ask("cat /proc/sys/kernel/kexec_load_disabled").split() == [b"1"]
    assert ask("cat /proc/sys/kernel/yama/ptrace_scope").split() == [b"3"]


def test_nothing_listens_but_what_the_workload_publishes(ask: Ask) -> None:
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in ask(f"cat /proc/1/net/{table}").decode().splitlines():
            fields = line.split()
            if len(fields) > 3 and fields[3] == "0A":
                listening.add(int(fields[1].rpartition(":")[2], 16))
    assert listening <= {7000}
    assert b"getty" not in ask("cat /proc/[0-9]*/cmdline")


def test_the_machine_is_attested_by_its_ultravisor(machine: tuple[Machine, int], world: World) -> None:
    """Both levels: the ultravisor measures the image, and with it the hash of the record that is signed inside."""
    host = [hostkey.load(SoftwareUltravisor.load_or_create().document)]
    files = machine[0].record()
    header = read_header(str(ImageDirectory(world.image).image))
    text, trust = files["se-checksums.txt"], trust_of_image(world.image)

    def judged(answer: bytes, key: bytes, record: bytes = text) -> dict[str, str]:
        verdict = verify(
            record,
            files["se-signature.bin"],
            trust.certificate,
            time=datetime.datetime.now(datetime.UTC),
            issuers=trust.issuers,
            crls=trust.crls,
            reference=trust.reference,
            measurement=Measurement(answer, key, header),
        )
        assert verdict.development
        return {"holds": str(verdict.holds), **{row.name: row.outcome.value for row in verdict.rows}}

    request, key = attestation.create(host, attestation.FIRMWARE | attestation.IMAGE_HOST_KEY)
    answer = machine[0].attest(attestation.pack_request(request, b"say this instead"))
    found = judged(answer, key)
    assert found["holds"] == "True", found
    assert found["measurement"] == found["Ultravisor CUID"] == found["uv_firmware.state"] == "proved"
    # A later request has its own answer: the first one, replayed, is none.
    later, later_key = attestation.create(host, attestation.FIRMWARE)
    assert judged(answer, later_key)["measurement"] == "refuted"
    assert judged(machine[0].attest(attestation.pack_request(later)), later_key)["measurement"] == "proved"
    stranger = hostkey.HostKey(ec.generate_private_key(ec.SECP521R1()).public_key())
    with pytest.raises(MachineError) as refused:
        machine[0].attest(attestation.pack_request(attestation.create([stranger])[0]))
    assert refused.value.id == "MACHINE-NO-ANSWER"


def test_the_machine_stops_in_order(machine: tuple[Machine, int], world: World) -> None:
    machine[0].stop()
    assert "reboot: Power down" in machine[0].console()
    assert any("HPL10001I" in line for line in world.logs.lines())
    assert any("container/" in line or "systemd" in line for line in world.logs.lines())


def test_nothing_of_a_contract_stands_on_a_disk_a_console_a_record_or_at_the_backend(
    machine: tuple[Machine, int], world: World
) -> None:
    hidden = {name: value.encode() for name, value in (world.secrets | world.marks).items()}
    hidden |= {"the passphrase": passphrase(*world.seeds).encode(), **_image_keys(ImageDirectory(world.image))}
    files = [path for path in machine[0].directory.iterdir() if path.is_file() and path.stat().st_size]
    assert {"root.img", "cidata.img", "console.log", "record.json"} <= {path.name for path in files}
    seen = {"what may be seen": b"HPL11099I"}  # a search that finds nothing at all would prove nothing
    found = search([*files, world.directory / "inside.img", world.logs.file], hidden | seen)
    assert {each.name for each in found} == set(seen), found
