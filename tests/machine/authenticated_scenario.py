"""What runs in the lab: authenticated volumes. Follows volume_steps.py in one script.

Disks: vdb, vdc and vdd for ext4, xfs and btrfs, and for tampering; vde is recorded write by write in vdf, and made again, as it
was after some of them, in vdg.
"""
# ruff: noqa: F821

import struct
import time
from dataclasses import replace

from casemate.guest import anchor, authenticated, integritywatch
from casemate.luks import integrity

TAGGED = {"integrity": "hmac-sha256"}
DATA = DATA_START + AUTHENTICATED.offset


def said_by_kernel():
    """The kernel's log, as far as it goes now."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield from integritywatch.records(descriptor)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def watched():
    """What ``hpl-integrity`` would stop the machine for; nothing where it goes on."""
    try:
        integritywatch.look(said_by_kernel(), state.read_json(state.INTEGRITY))
    except Stop as stop:
        return [stop.id, stop.detail]
    return []


def begin(contract, wanted, disks):
    state.INTEGRITY.unlink(missing_ok=True)
    plans = start(contract, wanted, disks)
    storage.service()
    assert not state.VOLUME_KEYS.exists()
    return plans


def end(*names):
    for name in names:
        run("umount", f"/var/volumes/{name}")
        run("dmsetup", "remove", volumes.mapping(name))
        run("dmsetup", "remove", volumes.lower_mapping(name))


def forget():
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def place(at):
    """Where, on the disk, a sector of 4096 bytes of the volume is, and its tag."""
    run_size = (integrity._RUN + (1 << 15)) * 512
    area, inside = divmod(at, (1 << 15) * 512)
    tags = DATA + integrity._INITIAL * 512 + area * run_size
    return tags + integrity._RUN * 512 + inside, tags + inside // 4096 * 32


def sector(path, at):
    """A sector of the volume and its tag, as they stand on the disk."""
    data, tag = place(at)
    page = diskcheck.direct(path, tag // 4096 * 4096, 4096)
    return diskcheck.direct(path, data, 4096), page[tag % 4096 :][:32]


def put_sector(path, at, content):
    """In whole pages: the kernel's cache of the disk does not know what dm-integrity has written."""
    data, tag = place(at)
    page = bytearray(diskcheck.direct(path, tag // 4096 * 4096, 4096))
    page[tag % 4096 : tag % 4096 + 32] = content[1]
    storage.write(path, tag // 4096 * 4096, bytes(page))
    storage.write(path, data, content[0])


def fiemap(path):
    """Where a file begins in its volume (one extent). Format: Linux Documentation/filesystems/fiemap.rst."""
    import fcntl

    request = bytearray(struct.pack("=QQIIII", 0, 1 << 40, 1, 0, 1, 0) + bytes(56))
    with open(path, "rb") as file:
        fcntl.ioctl(file, 0xC020660B, request)
    return struct.unpack_from("=Q", request, 40)[0]


def readable(path):
    try:
        return open(path, "rb").read()[:16].decode()
    except OSError as error:
        return error.strerror


def three():
    """Three file systems at once: made, used, rolled and grown, with nothing read that was not written."""
    wanted = {"e": TAGGED, "x": {"filesystem": "xfs", "mount": "/mnt/x", **TAGGED},
              "b": {"filesystem": "btrfs", "mount": "/mnt/b", **TAGGED}}  # fmt: skip
    for number, contract in enumerate(("first", "rolled")):
        size_mib = 512 if not number else 900
        disks = [disk(f"d{letter}", size_mib * MIB, f"linear /dev/vd{letter} 0") for letter in "bcd"]
        begun = time.monotonic()
        plans = begin_each(contract, wanted, disks)
        fact(what="start", contract=contract, seconds=round(time.monotonic() - begun, 1))
        for plan in plans:
            directory = Path(f"/var/volumes/{plan.name}")
            kept = not number or all((directory / f"{n}/f").read_text() == str(n) for n in range(120))
            kept = kept and (not number or (directory / "big").read_bytes() == bytes(range(256)) * (4096 * 20))
            for n in range(120):
                (directory / str(n)).mkdir(exist_ok=True)
                (directory / f"{n}/f").write_text(str(n))
            begun = time.monotonic()
            with open(directory / "big", "wb") as file:
                file.write(bytes(range(256)) * (4096 * 20))
                file.flush()
                os.fsync(file.fileno())
            fact(what=f"{contract} {plan.filesystem}", make=plan.make, rolled=plan.rolled, kept=kept, size=size(plan.name),
                 seconds=round(time.monotonic() - begun, 2))  # fmt: skip
        before = anchor.committed(plan), anchor.on_disk(plan)
        (directory / "more").write_text(contract)
        fact(what=f"{contract} generations", before=before, after=(anchor.committed(plan), anchor.on_disk(plan)))
        table = diskcheck.split_tables(run("dmsetup", "table"))
        fact(what="tables", tables={name: text.split()[2] for name, text in table.items()}, upper=table["data-e"])
        end(*wanted)
        fact(what=f"{contract} watched", watched=watched())
        for letter in "bcd":
            run("dmsetup", "remove", f"d{letter}")


def begin_each(contract, wanted, disks):
    """With seeds of its own for each volume: two with the same can't be told apart."""
    state.INTEGRITY.unlink(missing_ok=True)
    seeds = {}
    for name in wanted:
        given = json.loads(json.dumps(CONTRACTS[contract if name == "e" else "first"]))
        given["seed"]["workload"] = name * 15
        seeds[name] = given
    state.write_json(state.SEEDS, seeds)
    state.write_json(state.SECTIONS / "workload.json", {"volumes": wanted})
    lukspassphrase.service()
    volumes.wait_for_disks = lambda number: disks
    volumes.service()
    storage.service()
    plans = volumes.plans()
    assert not state.PASSPHRASES.exists() and not state.VOLUME_KEYS.exists()
    return plans


def speed(kind):
    """Write and read 64 MiB; in the emulation of a machine, so only the ratio says something."""
    path, content = "/var/volumes/data/speed", os.urandom(MIB) * 64
    begun = time.monotonic()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    written = time.monotonic()
    forget()
    between = time.monotonic()
    assert Path(path).read_bytes() == content
    fact(what="speed", kind=kind, write=round(64 / (written - begun)), read=round(64 / (time.monotonic() - between)))
    os.unlink(path)


def refused(what, wanted, each, contract="first"):
    try:
        start(contract, wanted, [each])
        storage.service()
        fact(what=what, id="none")
    except Stop as stop:
        fact(what=what, id=stop.id, detail=stop.detail)
    for directory in (state.PASSPHRASES, state.VOLUME_KEYS):
        for file in directory.iterdir() if directory.exists() else ():
            file.unlink()
        if directory.exists():
            directory.rmdir()


def tampered():
    """Sectors changed, swapped and put back; the check of the disks; another kind of volume than the contract's."""
    run("blkdiscard", "--zeroout", "/dev/vdb")
    whole = Disk("vdb", "", 1 << 30)
    (plan,) = start("first", {"data": TAGGED}, [whole])
    kept = (volumes.HEADERS / "data").read_bytes()
    key = (state.VOLUME_KEYS / "data").read_bytes()
    storage.service()
    for name in ("one", "two"):
        Path(f"/var/volumes/data/{name}").write_bytes(name.encode() * 4096)
    run("sync", "-f", "/var/volumes/data")
    one, two = (fiemap(f"/var/volumes/data/{name}") for name in ("one", "two"))

    def closed():
        end("data")
        state.INTEGRITY.unlink()

    def reopened():
        state.write(state.VOLUME_KEYS / "data", key)
        opened = authenticated.open_volume(replace(plan, make=False))
        authenticated.watch(opened)
        storage.mount(opened)

    def look(what, **more):
        forget()
        fact(what=what, one=readable("/var/volumes/data/one"), watched=watched(), **more)

    def check(what):
        tables = diskcheck.split_tables(run("dmsetup", "table"))
        try:
            slots = diskcheck.check_volume(diskcheck.expected(plan, kept), kept, tables)
            diskcheck.check_headers(plan.disk, plan.start, kept, plan.mount)
            fact(what=f"check: {what}", slots=slots)
        except Stop as stop:
            fact(what=f"check: {what}", id=stop.id, detail=stop.detail)

    closed()
    before = {at: sector(plan.path, at) for at in (one, two)}
    reopened()
    look("as it was")
    check("as it was")
    closed()
    data, tag = before[one]
    put_sector(plan.path, one, (bytes([data[0] ^ 1]) + data[1:], tag))
    reopened()
    look("a bit turned")
    closed()
    put_sector(plan.path, one, (data, bytes([tag[0] ^ 1]) + tag[1:]))
    reopened()
    look("a bit of the tag turned")
    closed()
    put_sector(plan.path, one, before[two])
    put_sector(plan.path, two, before[one])
    reopened()
    look("swapped with their tags")
    closed()
    put_sector(plan.path, one, before[one])
    put_sector(plan.path, two, before[two])
    reopened()
    Path("/var/volumes/data/one").open("r+b").write(b"new" * 4096)
    run("sync", "-f", "/var/volumes/data")
    closed()
    reopened()
    look("written anew", same=fiemap("/var/volumes/data/one") == one)
    closed()
    put_sector(plan.path, one, before[one])
    reopened()
    look("an older state of the sector")
    closed()
    # Before the tables are replaced: what a mounted file system writes through those lands on the superblock.
    (again,) = begin("first", {"data": TAGGED}, [whole])
    fact(what="as before", make=again.make)
    speed("authenticated")
    end("data")
    superblock = diskcheck.direct(plan.path, DATA, 4096)
    storage.write(plan.path, DATA, superblock[:12] + b"\1" + superblock[13:])
    refused("another superblock", {"data": TAGGED}, whole)
    storage.write(plan.path, DATA, superblock)
    reopened()
    lower = run("dmsetup", "table", volumes.lower_mapping("data")).strip()
    length = lower.split()[1]
    for what, table in {
        "plain": f"0 {length} linear /dev/mapper/{volumes.lower_mapping('data')} 0",
        "straight on the disk": f"0 {length} linear /dev/vdb {DATA // 512}",
    }.items():
        run("dmsetup", "suspend", "data-data")
        run("dmsetup", "reload", "data-data", data=f"{table}\n".encode())
        run("dmsetup", "resume", "data-data")
        check(what)
    run("umount", "-l", "/var/volumes/data")
    run("dmsetup", "remove", "--force", "data-data")
    run("dmsetup", "remove", "--force", volumes.lower_mapping("data"))
    refused("the contract asks for none", {"data": {}}, whole)
    run("blkdiscard", "--zeroout", "/dev/vdc")
    other = disk("other", 300 * MIB, "linear /dev/vdc 0")
    start("first", {"data": {}}, [other])
    storage.service()
    speed("plain")
    stop("data")
    refused("the contract asks for it", {"data": TAGGED}, other)
    run("dmsetup", "remove", "other")


def cut():
    """A volume that is made and written to while it is recorded; then the power goes after some of the writes."""
    logged = disk("logged", SMALL, "log-writes /dev/vde /dev/vdf")

    def mark(text):
        run("dmsetup", "message", "logged", "0", f"mark {text}")

    (plan,) = start("first", {"data": TAGGED}, [logged])
    mark("prepared")
    kept = (volumes.HEADERS / "data").read_bytes()
    key = (state.VOLUME_KEYS / "data").read_bytes()
    storage.service()
    mark("made")
    for number in range(4):
        put(f"/var/volumes/data/{number}", b"%d" % (number % 10))
        mark(f"{number}")
        put("/var/volumes/data/again", b"%d" % (number % 10))
        mark(f"again-{number}")
    end("data")
    run("dmsetup", "remove", "logged")
    writes = list(entries())
    passed, states = [], 0
    every = max(1, len([1 for _, data, _ in writes if data]) // 12)
    target = os.open("/dev/vdg", os.O_RDWR)
    count = 0
    for offset, data, text in writes:
        if text:
            passed.append(text)
        else:
            os.pwrite(target, data, offset)
            count += 1
        if text or count % every == 0:
            os.fsync(target)
            states += 1
            problem = after_cut(plan, kept, key, passed)
            if problem:
                fact(what="cut", writes=count, passed=passed[-1:], problem=problem)
    os.close(target)
    fact(what="cuts", states=states, writes=count, passed=passed, first=writes[0][2])


def entries():
    """The records of dm-log-writes. Format: Linux ``drivers/md/dm-log-writes.c``."""
    with open("/dev/vdf", "rb") as file:
        _, _, number, size = struct.unpack("<QQQI", file.read(28))
        for _ in range(number):
            file.seek(-(-file.tell() // size) * size)
            at, sectors, flags, length = struct.unpack("<QQQQ", file.read(32))
            if flags & 8:
                yield 0, b"", file.read(length).rstrip(b"\0").decode()
                continue
            file.seek(-(-file.tell() // size) * size)
            assert not flags & 4
            yield at * 512, file.read(sectors * 512), ""


def after_cut(plan, kept, key, passed):
    """What is lost when the power goes here. Works on a snapshot, so that the record can go on."""
    loop = run("losetup", "--find", "--show", "/run/cow").strip()
    run("dmsetup", "create", "cut", data=f"0 {SMALL // 512} snapshot /dev/vdg {loop} N 8\n".encode())
    try:
        found = volumes.examine(Disk("mapper/cut", "", SMALL))
        if found.headers is None:
            return "it counts as empty" if "made" in passed else ""
        if found.headers != kept:
            return "its headers are others"
        state.write(state.VOLUME_KEYS / "data", key)
        opened = authenticated.open_volume(replace(plan, disk="mapper/cut", make=False))
        storage.mount(opened)
        lost = []
        for text in passed:
            if text.isdigit() and Path(f"/var/volumes/data/{text}").read_bytes() != (b"%d" % (int(text) % 10)) * MIB:
                lost.append(text)
        if any(text.startswith("again") for text in passed):
            Path("/var/volumes/data/again").read_bytes()
        return f"lost: {lost}" if lost else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for command in (["umount", "/var/volumes/data"], ["dmsetup", "remove", "data-data"],
                        ["dmsetup", "remove", volumes.lower_mapping("data")], ["dmsetup", "remove", "cut"]):  # fmt: skip
            subprocess.run(command, capture_output=True)
        run("losetup", "-d", loop)
        with open("/run/cow", "r+b") as file:
            file.truncate(0)
            file.truncate(64 * MIB)


CONTAINER = """
set -e
tools=/var/hyperprotect/tools
se=$tools/usr/sbin/se-workload
if ! mountpoint -q $tools; then mount --bind / $tools; fi
$se prepare
mkdir $tools/run/one $tools/run/two
key=$(printf '%s\\n' wwwwwwwwwwwwwww eeeeeeeeeeeeeee | $se se-lukspassphrase-gen)
printf %s "$key" | $se se-disk-encryption ONE /run/one & one=$!
printf %s "$key" | $se se-disk-encryption TWO /run/two xfs & two=$!
wait $one
wait $two
df -k $tools/run/one $tools/run/two
cat $tools/run/one/file || true
echo kept > $tools/run/one/file
mkdir $tools/run/three
printf %s "$key" | $se se-disk-encryption ONE /run/three && echo TWICE || true
umount $tools/run/one $tools/run/two
dmsetup ls | cut -f 1 | grep own- | xargs -n 1 dmsetup remove
printf %s wrongwrongwrongwrong | $se se-disk-encryption ONE /run/one && echo WRONG || true
"""


def tools():
    """The tools of the paper, as a container runs them: in a mount namespace, by the root that it is shown."""
    os.makedirs("/var/hyperprotect/tools")
    loops = []
    for name in ("one", "two"):
        with open(f"/run/{name}.img", "wb") as file:
            file.truncate(400 * MIB)
        loops.append(run("losetup", "--find", "--show", f"/run/{name}.img").strip())
    script = CONTAINER.replace("ONE", loops[0]).replace("TWO", loops[1])
    for number in range(2):
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
        sizes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("/dev/mapper/data-own")]
        fact(what=f"tools {number}", code=done.returncode, sizes=sizes, out=done.stdout[-200:], err=done.stderr[-900:])
        os.truncate("/run/one.img", 480 * MIB)
        run("losetup", "-c", loops[0])
    with open("/run/one.img", "rb") as file:
        own = volumes.workloads_own(file.read(64 << 10))
    fact(what="tools own", own=own, passphrase_left=Path("/run/casemate/passphrases").exists())
    for loop in loops:
        run("losetup", "-d", loop)


run("mount", "-o", "remount,size=800m", "/run")
run("modprobe", "loop")
tools()
Path("/run/cow").write_bytes(b"")
os.truncate("/run/cow", 64 * MIB)
three()
tampered()
cut()
fact(what="all")
