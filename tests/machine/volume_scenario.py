"""What runs in the lab: the storage services on disks that are recorded write by write, and on such that grow.

Disks: vdb the volume's, vdc and vdd the records of its writes (dm-log-writes), vde to vdg for xfs, btrfs, and an older volume.
Follows volume_steps.py in one script.
"""
# ruff: noqa: F821


def recorded():

    def mark(text):
        run("dmsetup", "message", "logged", "0", f"mark {text}")

    wanted = {"data": {}}
    logged = disk("logged", SMALL, "log-writes /dev/vdb /dev/vdc")
    plans = start("first", wanted, [logged])
    mark("prepared")
    fact(what="new", make=plans[0].make, grow=plans[0].grow)
    storage.service()
    mark("made")
    put("/var/volumes/data/one", b"1")
    mark("one")
    stop("data")
    plans = start("rolled", wanted, [logged])
    mark("rolling")
    fact(what="rolled", rolled=plans[0].rolled, steps=len(plans[0].steps), grow=plans[0].grow)
    storage.service()
    mark("rolled")
    put("/var/volumes/data/two", b"2")
    mark("two")
    stop("data")
    plans = start("rolled", wanted, [logged])
    fact(what="again", rolled=plans[0].rolled, steps=len(plans[0].steps), grow=plans[0].grow)
    stop("data")
    try:
        start("first", wanted, [logged])
        fact(what="the old contract", opens=True)
    except Stop as refused:
        fact(what="the old contract", opens=False, id=refused.id)
        for file in state.PASSPHRASES.iterdir():
            file.unlink()
        state.PASSPHRASES.rmdir()
    run("dmsetup", "remove", "logged")
    logged = disk("logged", LARGE, "log-writes /dev/vdb /dev/vdd")
    plans = start("after", wanted, [logged])
    fact(what="larger", grow=plans[0].grow)
    mark("growing")
    storage.service()
    mark("grown")
    fact(what="grown", size=size("data"), table=storage.has_partition_table(plans[0]))
    copy = volumes.read(logged.path, LARGE - 512, 8)  # the second partition table is there, and nothing else
    fact(what="the end", copy=copy.decode(errors="replace"))
    put("/var/volumes/data/three", b"3")
    mark("three")
    stop("data")
    run("dmsetup", "remove", "logged")


def grown():
    """Two volumes at once, xfs and btrfs, on disks that become larger."""
    wanted = {"x": {"filesystem": "xfs", "mount": "/mnt/x"}, "b": {"filesystem": "btrfs", "mount": "/mnt/b"}}
    before = {}
    for larger in (False, True, True):
        disks = [disk(f"d-{name}", (704 if larger else 512) * MIB, f"linear /dev/{device} 0")
                 for name, device in (("b", "vdf"), ("x", "vde"))]  # fmt: skip
        plans = start("first", wanted, disks if not larger else disks[::-1])
        storage.service()
        for plan in plans:
            path = Path(f"/var/volumes/{plan.name}/file")
            kept = not path.exists() or path.read_bytes() == b"k" * MIB
            fact(what=f"grown {plan.filesystem}", make=plan.make, grow=plan.grow, kept=kept,
                 more=size(plan.name) - before.get(plan.name, 0))  # fmt: skip
            before[plan.name] = size(plan.name)
            put(path, b"k")
        stop(*wanted)
        for name in wanted:
            run("dmsetup", "remove", f"d-{name}")


def older():
    """A volume without partitions, as cryptsetup makes it, is opened, rolled and grown."""
    from casemate.contract.passphrase import passphrase

    old = disk("old", 300 * MIB, "linear /dev/vdg 0")
    key = passphrase(OLD["workload"], OLD["env"]).encode()
    run("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--key-size", "512", "--pbkdf-memory", "65536",
        "--pbkdf-force-iterations", "4", "--key-file=-", old.path, data=key)  # fmt: skip
    run("cryptsetup", "open", "--key-file=-", old.path, "made", data=key)
    run("mkfs.ext4", "-q", "/dev/mapper/made")
    run("dmsetup", "remove", "made")
    run("dmsetup", "remove", "old")
    for contract, size_mib in (("first", 300), ("rolled", 400), ("after", 400)):
        old = disk("old", size_mib * MIB, "linear /dev/vdg 0")
        (plan,) = start(contract, {"data": {}}, [old])
        storage.service()
        fact(
            what="older", start=plan.start, rolled=plan.rolled, grow=plan.grow, steps=len(plan.steps), size=size("data")
        )
        stop("data")
        run("dmsetup", "remove", "old")


def checked():
    """The check of the disks, on a volume as it should be, and on such that were tampered with."""
    whole = Disk("vdg", "", 1 << 30)
    with open("/dev/vdg", "r+b") as file:
        file.write(bytes(64 * MIB))
        file.seek(128 * MIB)
        file.write(bytes(64 * MIB))
    storage.write(whole.path, volumes.METADATA_START, volumes.BEING_MADE)  # what is left there counts as empty
    (plan,) = start("first", {"data": {}}, [whole])
    storage.service()
    kept = (volumes.HEADERS / "data").read_bytes()
    volume = diskcheck.expected(plan, kept)

    def look(what):
        tables = diskcheck.split_tables(run("dmsetup", "table"))
        try:
            slots = diskcheck.check_volume(volume, kept, tables)
            diskcheck.check_headers(plan.disk, plan.start, kept, plan.mount)
            fact(what=f"check: {what}", slots=slots)
        except Stop as refused:
            fact(what=f"check: {what}", id=refused.id, detail=refused.detail)

    def reload(table):
        run("dmsetup", "suspend", "data-data")
        run("dmsetup", "reload", "data-data", data=f"{table}\n".encode())
        run("dmsetup", "resume", "data-data")

    look("as it was")
    for name, at in (("a key slot", plan.start + (40 << 10)), ("the second copy", plan.start + (17 << 10))):
        byte = volumes.read(plan.path, at, 1)
        storage.write(plan.path, at, bytes([byte[0] ^ 1]))
        look(name)
        storage.write(plan.path, at, byte)
    look("as it was again")
    stop("data")
    # A cut between the two steps of rolling to the second contract; then comes the third.
    state.write(state.RUN / "second", lukspassphrase.passphrases({"d": CONTRACTS["after"]}, ["d"])["d"][0])
    first = lukspassphrase.passphrases({"d": CONTRACTS["first"]}, ["d"])["d"][0].encode()
    both = volumes.with_another("data", volumes.examine(whole), kept, first, state.RUN / "second")
    for offset, part in in_order(both):
        storage.write(whole.path, plan.start + offset, part)
    (plan,) = start("third", {"data": {}}, [whole])
    storage.service()
    kept = (volumes.HEADERS / "data").read_bytes()
    fact(what="third", rolled=plan.rolled, steps=len(plan.steps))
    look("rolled")
    run("mount", "-t", "tmpfs", "over", "/var/volumes/data")
    look("something mounted over it")
    run("umount", "/var/volumes/data")
    reload(f"0 {volume.length // 512} linear {plan.path} {volume.start // 512}")
    look("plain")
    reload(f"0 {volume.length // 512} linear /dev/vdf {volume.start // 512}")
    look("another disk, plain")
    stop("data")
    look("closed")


recorded()
grown()
older()
checked()
fact(what="all")
