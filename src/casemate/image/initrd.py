"""The initrd: the bootloader, Python, cryptsetup and the few drivers that bring up the root; and the image's keys.

Two archives, one after the other, as the kernel allows: a *base* that depends on packages and our source only (cached,
the same on every machine), and a small one with what is the image's own: keys and reference values.

Both are ``newc`` archives, made in memory (:mod:`casemate.image.cpio`): no key touches a disk.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from casemate.image import cpio as cpios
from casemate.image.cpio import Cpio
from casemate.image.root import TRIPLES, Root, cache_key, guest_files, run

PROGRAMS: tuple[str, ...] = (
    *("usr/bin/python3.11", "usr/sbin/cryptsetup", "usr/sbin/dmsetup", "usr/sbin/mkfs.ext4", "usr/bin/kmod"),
    *("usr/lib/{triple}/ossl-modules/legacy.so",),
)
LINKS = {
    **{"usr/sbin/modprobe": "../bin/kmod", "usr/bin/python3": "python3.11"},
    **{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"},
}
DRIVERS = (
    *("virtio_pci", "virtio_ccw", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console"),
    *("dm_crypt", "xts", "ecb", "aesni_intel", "aes_s390", "squashfs", "crc32c_generic", "ext4"),
)
"""Loaded by the bootloader where the architecture's kernel has them as modules: each kernel has others built in."""
LATER = ("uvdevice",)
"""There where the architecture has them, and loaded only where the machine has what they drive."""

TRACE = """
import sys
sys.path.insert(0, "/usr/lib/python3/dist-packages")
import casemate.guest.init, casemate.guest.bootloader, casemate.guest.rootdisk
import json, base64, socket, subprocess, ctypes, hashlib
import casemate.guest.ultravisor
import encodings.idna, encodings.ascii, encodings.latin_1, encodings.utf_16_be
from casemate import cidata
from casemate.contract import document, token
from casemate.attestation import machine, record
from casemate.secureexec import attestation, hostkey
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives import serialization
key = rsa.generate_private_key(65537, 2048)
pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
text = token.seal(b"x: 1", public)
assert token.open_token(text, token.load_private_key(pem)).plain == b"x: 1"
record.sign(record.build("1", [], []), pem)
assert document.parse_section(b'x: 1')
host = hostkey.from_coordinates(hostkey.coordinates(ec.generate_private_key(ec.SECP521R1()).public_key()))
attestation.create([hostkey.HostKey(host)])
document.parse_contract(b"workload: '%s'\\nenv: '%s'\\n" % (text.encode(), text.encode()))
try:
    cidata.read_volume(bytes(65536))
except Exception:
    pass
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None)
    if path:
        print(path)
"""

TRACE_BUILDER = """
import casemate.guest.builderinput, casemate.build.frame
print(casemate.guest.builderinput.__file__, casemate.build.frame.__file__, casemate.build.__file__, sep="\\n")
"""

COMPILE = """
import sys, py_compile
for name in sys.argv[1:]:
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(f"/{name}", f"/compiled/{name}c", f"/{name}", doraise=True, invalidation_mode=mode, quiet=2)
"""


def base(root: Root, arch: str, cache: Path) -> bytes:
    """Return the base initrd for a root, from the cache where it is there."""
    ours = list(guest_files(root.flavor.name))
    here = Path(__file__).read_bytes() + Path(cpios.__file__).read_bytes()
    cached = cache / f"initrd-{arch}-{cache_key(root.tree.name, str(here), [(n, d.hex()) for n, d in ours])}.cpio"
    if not cached.is_file():
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work:
            archive = _make(root, arch, ours, Path(work))
            (Path(work) / "initrd").write_bytes(archive)
            (Path(work) / "initrd").rename(cached)
    return cached.read_bytes()


def _make(root: Root, arch: str, ours: list[tuple[str, bytes]], work: Path) -> bytes:
    tree = work / "root"
    run(["cp", "-al", str(root.tree), str(tree)])
    package = tree / "usr/lib/python3/dist-packages/casemate"
    for name, data in ours:
        if name.endswith(".py") or name.startswith("contract/"):
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_bytes(data)
    triple = TRIPLES[arch]
    programs = [name.format(triple=triple) for name in PROGRAMS]
    modules = _python_modules(tree, TRACE + (TRACE_BUILDER if root.flavor.name == "builder" else ""))
    binaries = [*programs, *(name for name in modules if name.endswith(".so"))]
    cpio = Cpio()
    for name in ("dev", "proc", "sys", "run", "sysroot", "tmp", "etc", "usr/lib64"):
        cpio.directory(name)
    for name, target in LINKS.items():
        cpio.link(name, target)
    for name in sorted({*binaries, *_libraries(tree, binaries)}):
        source = tree / name
        cpio.file(name, source.read_bytes(), 0o755)
    # Compiled files without their source, where Python looks for them: no checks, no compiling at boot. The tree's own
    # Python makes them: that of the build machine may be another.
    sources = [name for name in modules if name.endswith(".py")]
    run(["chroot", str(tree), "/usr/bin/python3", "-IBc", COMPILE, *sources])
    for name in sources:
        cpio.file(f"{name}c", (tree / "compiled" / f"{name}c").read_bytes())
    for name in ("mke2fs.conf",):
        cpio.file(f"etc/{name}", (tree / "etc" / name).read_bytes())
    present = _drivers(cpio, tree, root.release)
    cpio.file("casemate/drivers", "\n".join(present).encode())
    cpio.file("init", b"#!/usr/bin/python3 -IB\nfrom casemate.guest.init import main\nmain()\n", 0o755)
    return cpio.finish()


def _python_modules(tree: Path, trace: str) -> list[str]:
    """Return the files of every module that the bootloader uses, found by using it once inside the tree."""
    done = subprocess.run(
        ["chroot", str(tree), "/usr/bin/python3", "-IB", "-c", trace], capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the bootloader's modules can't be traced: {done.stderr.decode()[-2000:]}")
    names = {line.lstrip("/") for line in done.stdout.decode().splitlines()}
    always = ("encodings/__init__.py", "encodings/aliases.py", "encodings/utf_8.py", "site.py", "os.py", "codecs.py")
    names |= {f"usr/lib/python3.11/{name}" for name in (*always, "io.py", "abc.py", "stat.py", "posixpath.py")}
    names |= {f"usr/lib/python3.11/{name}" for name in ("genericpath.py", "_collections_abc.py", "_sitebuiltins.py")}
    # A link (sitecustomize.py) leads to a place of the tree, which must not be looked for on the build machine.
    return sorted(name for name in names if (tree / name).is_symlink() or (tree / name).is_file())


def _libraries(tree: Path, binaries: Iterable[str]) -> set[str]:
    """Return the shared libraries that the binaries need, as ``ldd`` of the tree itself says."""
    done = subprocess.run(
        ["chroot", str(tree), "ldd", *(f"/{name}" for name in binaries)], capture_output=True, check=False
    )
    found = set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout.decode(), re.MULTILINE))
    names = set()
    for path in found:
        name = path.lstrip("/")
        names.add(name if name.startswith("usr/") else f"usr/{name}")
    return names


def _drivers(cpio: Cpio, tree: Path, release: str) -> list[str]:
    """Add the kernel modules with all that they depend on, and an index of just these; return the names to load."""
    modules = tree / "usr/lib/modules" / release
    paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    dependencies = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, needs = line.partition(":")
        dependencies[name] = needs.split()
    present = [name for name in DRIVERS if name in paths]
    wanted: set[str] = set()
    for driver in (*present, *(name for name in LATER if name in paths)):
        name = str(paths[driver].relative_to(modules))
        wanted |= {name, *dependencies[name]}
    small = tree / "small/lib/modules" / release
    for name in sorted(wanted):
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(modules / name, small / name)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(modules / name, small / name)
    run(["chroot", str(tree), "/usr/sbin/depmod", "-b", "/small", release])
    for path in sorted(small.rglob("*")):
        if path.suffix in (".ko", ".xz", ".zst", ".bin") or path.name == "modules.softdep":
            cpio.file(f"usr/lib/modules/{release}/{path.relative_to(small)}", path.read_bytes())
    return present
