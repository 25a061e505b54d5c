"""The root file system: Debian packages, the guest part of Casemate, and its archive (squashfs).

Two steps, each cached by the hash of what goes in: the tree of packages (``mmdebstrap``), and the archive made of it
and of ``casemate/guest``. Neither knows a key, so new keys never rebuild them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from casemate.errors import CasemateError
from casemate.image.cpio import EPOCH as EPOCH
from casemate.image.snapshot import RELEASE as RELEASE
from casemate.image.snapshot import Policy, Selection, listed, repository, select

RECIPE = "2"
"""Raised when this module makes another tree from the same list of packages."""

_EVERYWHERE = (
    *("systemd", "systemd-sysv", "udev", "kmod"),
    *("cryptsetup-bin", "dmsetup", "e2fsprogs"),
    *("python3-minimal", "python3-cryptography", "python3-yaml"),
    # Packs the archive. The layer's has it not: the build machine's own might pack otherwise.
    "squashfs-tools",
)
PACKAGES = (
    *_EVERYWHERE,
    *("xfsprogs", "btrfs-progs", "fdisk"),
    *("podman", "crun", "conmon", "catatonit", "iptables", "ca-certificates"),
    *("rsyslog", "rsyslog-gnutls"),
    "python3-jsonschema",
)
BUILDER_PACKAGES = (*_EVERYWHERE, "mmdebstrap", "apt", "dpkg")
"""No container engine, no log sender: a builder machine speaks to nobody."""
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "s390x": "ld64.so.1"}
TRIPLES = {"amd64": "x86_64-linux-gnu", "s390x": "s390x-linux-gnu"}
KERNELS: dict[str, tuple[str, ...]] = {"amd64": ("linux-image-cloud-amd64",), "s390x": ("linux-image-s390x",)}
ARCHITECTURE_PACKAGES: dict[str, tuple[str, ...]] = {
    "amd64": (*KERNELS["amd64"], "netavark", "aardvark-dns"),
    "s390x": (
        *KERNELS["s390x"],
        *("containernetworking-plugins", "golang-github-containernetworking-plugin-dnsname"),
    ),
}
NETWORKS = {"amd64": ("netavark", "netavark"), "s390x": ("cni", "../cni/bridge")}
"""What gives containers their networks: podman's name of it, and its program, seen from ``/usr/lib/podman``."""

GUEST_PARTS = ("__init__.py", "errors.py", "secret.py", "cidata.py", "strictjson.py")
GUEST_PACKAGES = ("contract", "attestation", "certificates", "luks", "secureexec", "guest")
BUILDERS = ("builder", "bootstrap")
"""How names of modules and units begin that only the root of builder machines has."""
BUILDER_PARTS = (
    *(*GUEST_PARTS, "approval.py", "image/__init__.py", "image/assemble.py", "image/cpio.py", "image/provenance.py"),
    *("build/__init__.py", "build/frame.py", "build/job.py", "build/forms.py", "build/keylog.py", "build/keyset.py"),
    "build/ceremony.py",
    "build/ceremonyplan.py",
    "build/ceremonysession.py",
)
BUILDER_PACKAGES_OF_OURS = ("contract", "attestation", "certificates", "luks", "secureexec")
BUILDER_MODULES = (
    *("__init__", "init", "bootloader", "catch", "kernel", "kinds", "report", "rootdisk", "start", "ultravisor"),
)
"""Modules of the guest that both have: how a machine starts, and how it says that it stops."""
BUILDER_FILES = ("etc/systemd/", "etc/sysctl.d/", "etc/tmpfiles.d/", "etc/casemate/seal.conf", "usr/lib/systemd/")

LEFT_OUT = """
boot/* dev/* proc/* run/* sys/* tmp/* var/* root/* home/* media/* srv/* initrd.img* vmlinuz* usr/games/* usr/include/*
etc/apt etc/cron* etc/alternatives.bak etc/kernel etc/logrotate.d etc/machine-id etc/hostname etc/resolv.conf
usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/bash-completion usr/share/zsh usr/share/fish
usr/share/lintian usr/share/perl* usr/share/bug usr/share/common-licenses usr/share/gdb usr/share/menu usr/share/pixmaps
usr/share/debconf usr/share/dpkg usr/share/doc-base usr/share/initramfs-tools usr/share/keyrings usr/share/i18n
usr/share/polkit-1 usr/share/tabset usr/share/terminfo usr/share/zoneinfo usr/share/gnupg usr/share/applications
usr/lib/apt usr/lib/dpkg usr/lib/x86_64-linux-gnu/perl* usr/lib/s390x-linux-gnu/perl* usr/lib/x86_64-linux-gnu/gconv
usr/lib/s390x-linux-gnu/gconv usr/lib/udev/hwdb.d usr/lib/udev/hwdb.bin usr/lib/gnupg usr/lib/gnupg2 usr/lib/locale
usr/lib/x86_64-linux-gnu/libperl* usr/lib/s390x-linux-gnu/libperl* usr/lib/initramfs-tools usr/lib/tc
usr/lib/python3.11/lib2to3 usr/lib/python3.11/pydoc_data usr/lib/python3.11/distutils usr/lib/python3.11/idlelib
usr/lib/systemd/boot usr/lib/systemd/user usr/lib/systemd/catalog usr/lib/systemd/system-generators usr/lib/kernel
usr/lib/binfmt.d usr/lib/tmpfiles.d/*
usr/bin/perl* usr/bin/apt* usr/bin/dpkg* usr/bin/gpg[!c]* usr/bin/gpgcompose usr/bin/dirmngr* usr/bin/debconf*
usr/bin/deb-systemd*
usr/bin/login usr/bin/su usr/bin/passwd usr/bin/chsh usr/bin/chfn usr/bin/newgrp usr/bin/sg usr/bin/gpasswd
usr/bin/btrfs-* usr/bin/btrfstune usr/bin/systemd-nspawn usr/bin/systemd-run usr/bin/machinectl usr/bin/pinentry*
usr/bin/loginctl usr/bin/homectl usr/bin/wall usr/bin/write* usr/bin/mesg usr/bin/script* usr/bin/localedef
usr/sbin/agetty usr/sbin/getty usr/sbin/sulogin usr/sbin/su* usr/sbin/xfs_db usr/sbin/update-* usr/sbin/dpkg-*
usr/sbin/useradd usr/sbin/userdel usr/sbin/usermod usr/sbin/group* usr/sbin/chpasswd usr/sbin/adduser
usr/sbin/mkinitramfs usr/sbin/iconvconfig usr/bin/*squashfs usr/bin/sqfs* usr/sbin/ldconfig usr/sbin/xfs_scrub*
usr/lib/podman/rootlessport
usr/lib/*/*.a usr/lib/*/libicu* usr/lib/*/libstdc++* usr/lib/*/libmvec* usr/lib/*/libgio-2.0* usr/lib/*/libdb-5*
usr/lib/*/libldap* usr/lib/*/liblber* usr/lib/*/sasl2 usr/lib/*/krb5 usr/lib/*/glib-2.0 usr/lib/*/security
usr/lib/python3.11/lib-dynload/_dbm* usr/lib/python3.11/asyncio usr/lib/python3.11/ensurepip usr/lib/python3.11/venv
"""

BUILDER_KEEPS = """
etc/apt usr/share/perl* usr/share/dpkg usr/share/keyrings usr/lib/apt usr/lib/dpkg usr/lib/x86_64-linux-gnu/perl*
usr/lib/s390x-linux-gnu/perl* usr/lib/x86_64-linux-gnu/libperl* usr/lib/s390x-linux-gnu/libperl* usr/lib/x86_64-linux-gnu/gconv
usr/lib/s390x-linux-gnu/gconv usr/bin/perl* usr/bin/apt* usr/bin/dpkg* usr/sbin/dpkg-* usr/sbin/update-* usr/bin/deb-systemd*
usr/bin/*squashfs usr/sbin/ldconfig usr/lib/*/libstdc++* usr/lib/*/libdb-5* usr/lib/*/libicu*
"""
"""What the layer's root leaves out and a builder needs: the tools of a build."""

MODULES = """
kernel/arch/x86/crypto kernel/arch/s390 kernel/block kernel/crypto kernel/lib
kernel/drivers/block/virtio_blk.ko kernel/drivers/block/loop.ko kernel/drivers/char/hw_random
kernel/drivers/char/virtio_console.ko
kernel/drivers/crypto/virtio kernel/drivers/md/dm-mod.ko kernel/drivers/md/dm-crypt.ko kernel/drivers/md/dm-integrity.ko
kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-verity.ko kernel/drivers/net/virtio_net.ko kernel/drivers/net/net_failover.ko
kernel/drivers/net/veth.ko kernel/drivers/net/tun.ko kernel/drivers/virtio kernel/drivers/s390
kernel/fs/btrfs kernel/fs/xfs kernel/fs/squashfs kernel/fs/overlayfs kernel/fs/fuse kernel/fs/ext4 kernel/fs/nls
kernel/net/802 kernel/net/8021q kernel/net/bridge kernel/net/core kernel/net/ipv4 kernel/net/ipv6 kernel/net/llc
kernel/net/netfilter kernel/net/core
"""


@dataclass(frozen=True, slots=True)
class Flavor:
    """A sort of roots: its packages, what of them is left out, what of ours is in it, and what it starts by itself."""

    name: str
    packages: tuple[str, ...]
    of_arch: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    default: str
    started: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Root:
    """A built root: the tree of packages, the archive made of it, what is in it."""

    tree: Path
    archive: Path
    sha256: str
    size: int
    selection: Selection
    kernel: Path
    release: str
    flavor: Flavor


class BuildError(CasemateError):
    """A step of the build failed; the message has the last lines of what the tool said."""

    id = "IMAGE-BUILD"


def run(command: list[str], **environment: str) -> None:
    """Run a build tool; raise :class:`BuildError` with the end of its output where it fails."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(EPOCH), **environment}
    env |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except FileNotFoundError:
        raise BuildError(
            f"{command[0]} is not installed", "casemate doctor --install installs what is missing"
        ) from None
    if done.returncode:
        tail = "\n  ".join(done.stdout.decode(errors="replace").strip().splitlines()[-8:])
        raise BuildError(
            f"{command[0]} ended with {done.returncode}:\n  {tail}", "casemate doctor tells what is missing"
        )


_LAYER = Flavor(
    "layer",
    PACKAGES,
    ARCHITECTURE_PACKAGES,
    tuple(LEFT_OUT.split()),
    "hyperprotect.target",
    (("sysinit.target", "systemd-networkd.service"), ("local-fs.target", "tmp.mount")),
)
_BUILDER = Flavor(
    *("builder", BUILDER_PACKAGES, KERNELS, tuple(p for p in LEFT_OUT.split() if p not in BUILDER_KEEPS.split())),
    *("builder.target", (("local-fs.target", "tmp.mount"),)),
)
ROOTS = {flavor.name: flavor for flavor in (_LAYER, _BUILDER)}
"""The roots by name; :mod:`casemate.guest.kinds` says which kind of images has which."""


def packages_of(arch: str, flavor: str = "layer") -> tuple[str, ...]:
    """Return the Debian packages that a root is made of, sorted."""
    return tuple(sorted({*ROOTS[flavor].packages, *ROOTS[flavor].of_arch[arch]}))


def cache_key(*parts: object) -> str:
    """Return a short name for what goes into a build step."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def guest_files(flavor: str = "layer") -> Iterable[tuple[str, bytes]]:
    """Yield name and content of every file of ours that goes into a root."""
    package = Path(str(files("casemate")))
    builder = flavor == "builder"
    for part in BUILDER_PARTS if builder else GUEST_PARTS:
        yield part, (package / part).read_bytes()
    for name in (*BUILDER_PACKAGES_OF_OURS, "guest") if builder else GUEST_PACKAGES:
        for path in sorted((package / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                relative = path.relative_to(package)
                if name != "guest" or _belongs(relative, builder):
                    yield str(relative), path.read_bytes()


def _belongs(path: Path, builder: bool) -> bool:
    """Whether a file of ``guest`` is of a sort of roots: a builder has its own, and of the layer's what it names."""
    own = path.name.startswith(BUILDERS)
    if not builder:
        return not own
    if path.parts[1] == "files":
        return str(path.relative_to("guest/files")).startswith(BUILDER_FILES)
    return own or (len(path.parts) == 2 and path.stem in BUILDER_MODULES)


def tree_path(arch: str, cache: Path, packages: str, flavor: str = "layer") -> Path:
    """Return where the tree of a list of packages lies, or would lie."""
    return cache / f"tree-{arch}-{cache_key(RECIPE, arch, packages_of(arch, flavor), packages)}"


def require_programs(arch: str) -> None:
    """Raise :class:`BuildError` where programs of an architecture don't run here, which steps of a build are done by."""
    from casemate import doctor

    if arch == "s390x" and (finding := doctor.programs_of_s390x()).ok is False:
        cure = finding.cure or f"casemate doctor --install --for {arch}"
        raise BuildError(
            f"programs of {arch} don't run on this machine, and its packages bring some: {finding.found}", cure
        )


def build_tree(arch: str, cache: Path, selection: Selection, flavor: str = "layer") -> Path:
    """Return the tree of the selected packages, made where the cache has none."""
    wanted, tree = packages_of(arch, flavor), tree_path(arch, cache, selection.text, flavor)
    if tree.is_dir():
        return tree
    require_programs(arch)
    with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work:
        new, debs = Path(work) / "root", Path(work) / "debs"
        debs.mkdir()
        repository(selection.packages, cache, arch, debs)
        run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--architectures={arch}"),
                *("--aptopt=Apt::Install-Recommends false", "--aptopt=Acquire::Languages none"),
                # What would start, index or compile at the end of an installation is of no use in an image.
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                "--essential-hook=mkdir -p $1/etc/initramfs-tools/conf.d",
                f"--include={','.join(wanted)}",
                # Every package there was compared with its hash in the list; apt compares once more.
                *("", str(new), f"deb [trusted=yes] copy:{debs} ./"),
            ],
            INITRD="No",  # the kernel's package would have Debian's initrd made: minutes where another processor is emulated
        )
        new.rename(tree)
    return tree


def build_root(
    arch: str,
    cache: Path,
    progress: Callable[[str], None] = lambda step: None,
    selection: Selection | None = None,
    flavor: str = "layer",
) -> Root:
    """Build, or take from the cache, the root for ``arch`` of the selected packages (of the source's list)."""
    progress("packages")
    cache.mkdir(parents=True, exist_ok=True)
    selection = selection or select_packages(arch, cache, flavor=flavor)
    tree = build_tree(arch, cache, selection, flavor)
    release = next((tree / "usr/lib/modules").iterdir()).name
    ours = list(guest_files(flavor))
    here = Path(__file__).read_text("utf-8")  # what it removes, keeps and writes
    key = cache_key(tree.name, here, [(name, hashlib.sha256(data).hexdigest()) for name, data in ours])
    named = arch if flavor == "layer" else f"{flavor}-{arch}"
    archive = cache / f"root-{named}-{key}.squashfs"
    if not archive.is_file():
        progress("root archive")
        require_programs(arch)
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work, _umask(0o022):
            _make_archive(arch, tree, release, ours, Path(work), archive, ROOTS[flavor])
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kernel = tree / f"boot/vmlinuz-{release}"
    return Root(tree, archive, digest, archive.stat().st_size, selection, kernel, release, ROOTS[flavor])


def select_packages(
    arch: str,
    cache: Path,
    policy: Policy = Policy.LISTED,
    say: Callable[[str], None] = lambda warning: None,
    flavor: str = "layer",
) -> Selection:
    """Decide which packages a root for ``arch`` has, and fetch them."""
    cache.mkdir(parents=True, exist_ok=True)
    return select(arch, packages_of(arch, flavor), cache, policy, say, listed(arch, flavor)[0])


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """The user's umask must not decide what an archive's modes are."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _make_archive(
    arch: str, tree: Path, release: str, ours: list[tuple[str, bytes]], work: Path, archive: Path, flavor: Flavor
) -> None:
    root = work / "root"
    run(["cp", "-al", str(tree), str(root)])
    for pattern in flavor.left_out:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    keep_modules(root / "usr/lib/modules" / release)
    package = root / "usr/lib/python3/dist-packages/casemate"
    install_guest(root, package, ours)
    _install_files(package / "guest/files", root)
    shutil.rmtree(package / "guest/files")
    units = root / "usr/lib/systemd/system"
    own = set()
    for unit in sorted((package / "guest/units").glob("*.*")):
        if unit.suffix in (".service", ".target", ".socket", ".timer"):
            shutil.copyfile(unit, units / unit.name)
            own.add(unit.name)
    shutil.rmtree(package / "guest/units", ignore_errors=True)
    configure(root, own, flavor)
    if flavor is _LAYER:
        set_network(root, *NETWORKS[arch])
    run(["chroot", str(root), "/usr/sbin/depmod", release])
    new, libraries = work / "root.squashfs", tree / "usr/lib" / TRIPLES[arch]
    run(
        [
            *(str(libraries / LOADERS[arch]), "--library-path", str(libraries), str(tree / "usr/bin/mksquashfs")),
            *(str(root), str(new), "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-no-exports"),
            *("-comp", "zstd", "-Xcompression-level", "9", "-b", "131072"),
            # Time stamps come from SOURCE_DATE_EPOCH, see run().
        ]
    )
    new.rename(archive)


def keep_modules(modules: Path) -> None:
    """Remove the kernel modules that no guest uses."""
    keep = MODULES.split()
    for path in sorted(modules.rglob("*.ko*")):
        relative = str(path.relative_to(modules))
        if not any(relative == entry or relative.startswith(f"{entry}/") for entry in keep):
            path.unlink()


def install_guest(root: Path, package: Path, ours: list[tuple[str, bytes]]) -> None:
    """Write the guest part of the package, byte-compiled: emulated processors compile slowly, the root is read-only.

    By the tree's own Python: the build machine's may write other byte code.
    """
    for name, data in ours:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    run(["chroot", str(root), "/usr/bin/python3", "-IBc", COMPILE, f"/{package.relative_to(root)}"])


COMPILE = """
import compileall, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, invalidation_mode=mode))
"""


def _install_files(source: Path, root: Path) -> None:
    for path in sorted(source.rglob("*")):
        target = root / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            write(target, path.read_bytes(), 0o755 if "sbin" in target.parts else 0o644)


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file of the tree (never in place: the tree shares its files with the cache)."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def set_network(root: Path, backend: str, program: str) -> None:
    """Tell the container engine by what containers get their networks: not every architecture has the same."""
    configuration = root / "etc/containers/containers.conf"
    write(configuration, configuration.read_bytes().replace(b"@network@", backend.encode()))
    (root / "usr/lib/podman/network").symlink_to(program)


WANTED = (
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket"),
    *("systemd-udev-trigger.service", "systemd-networkd.service", "systemd-networkd.socket"),
    *("systemd-sysctl.service", "systemd-tmpfiles-setup.service", "tmp.mount"),
    *("systemd-poweroff.service", "systemd-reboot.service", "systemd-halt.service", "systemd-exit.service"),
)
"""The units of Debian's packages that may run. All other services, timers and sockets are masked."""


UDEV_RULES = ("50-udev-default.rules", "75-net-description.rules", "80-net-setup-link.rules", "99-systemd.rules")
"""What is left of udev: no program looks at what the infrastructure plugs in, no driver is loaded for it."""


def configure(root: Path, ours: set[str], flavor: Flavor) -> None:
    """Turn a Debian tree into one that starts our units (by name) and nothing else."""
    units = root / "usr/lib/systemd/system"
    etc = root / "etc/systemd/system"
    shutil.rmtree(etc)
    etc.mkdir()
    kinds = (".service", ".timer", ".socket", ".path", ".mount", ".automount", ".swap")
    for unit in sorted(units.iterdir()):
        if unit.suffix in kinds and unit.name not in ours and unit.name not in WANTED:
            (etc / unit.name).symlink_to("/dev/null")
    for directory in sorted(units.glob("*.wants")):
        for link in sorted(directory.iterdir()):
            if link.suffix in (".service", ".socket", ".mount", ".timer", ".path") and link.name not in WANTED:
                link.unlink()
    (etc / "default.target").symlink_to(f"/usr/lib/systemd/system/{flavor.default}")
    (etc / "ctrl-alt-del.target").symlink_to("/usr/lib/systemd/system/poweroff.target")
    for target, wanted in flavor.started:
        wants = etc / f"{target}.wants"
        wants.mkdir()
        (wants / wanted).symlink_to(f"/usr/lib/systemd/system/{wanted}")
    shutil.copyfile(root / "usr/share/systemd/tmp.mount", units / "tmp.mount")
    trigger = units / "systemd-udev-trigger.service"
    # Only what the network needs: the disks and the console were found by the bootloader.
    command = b"ExecStart=udevadm trigger --subsystem-match=net --action=add"
    write(trigger, re.sub(rb"(?m)^ExecStart=.*$", command, trigger.read_bytes()))
    for name in ("systemd-tmpfiles-setup.service", "systemd-sysctl.service"):
        write(units / name, re.sub(rb"(?m)^LoadCredential=.*\n", b"", (units / name).read_bytes()))
    for rule in sorted((root / "usr/lib/udev/rules.d").iterdir()):
        if rule.name not in UDEV_RULES:
            rule.unlink()
    (root / "etc/python3.11/sitecustomize.py").unlink(missing_ok=True)  # looks for a crash reporter at each start
    write(root / "etc/machine-id", b"")
    write(root / "etc/fstab", b"")
    write(root / "etc/shadow", b"", 0o600)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("/run/casemate-public/resolv.conf")
    (root / "etc/mtab").unlink(missing_ok=True)
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    write(root / "etc/hosts", b"127.0.0.1 localhost\n")
    containers = root / "etc/containers"
    if containers.is_dir():
        shutil.rmtree(containers / "registries.conf.d", ignore_errors=True)
        (containers / "policy.json").unlink(missing_ok=True)
        (containers / "policy.json").symlink_to("/run/casemate-public/policy.json")  # none: the engine starts nothing
        (containers / "registries.d").symlink_to("/run/casemate-public/registries.d")
    mounts = root / "mnt"
    shutil.rmtree(mounts)
    mounts.symlink_to("var/mnt")
    for name in ("dev", "proc", "run", "sys", "tmp", "var"):
        (root / name).mkdir(exist_ok=True)
