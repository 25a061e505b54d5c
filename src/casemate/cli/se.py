"""``casemate se``: Secure Execution images, packed, opened and shown."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from casemate.cli.hostkeys import Documents, load, with_host_keys
from casemate.cli.se_attest import attest
from casemate.cli.ui import read_input

_FILE = click.Path(dir_okay=False)
_LARGEST_LOADER = 1 << 20
_FLAGS = (
    *("confidential-dump", "pckmo-dea-tdea", "pckmo-aes", "pckmo-ecc", "pckmo-hmac", "backup-target-keys"),
    *("cck-extension-secret-enforcement", "cck-update"),
)


@click.group()
def se() -> None:
    """Pack, open and show Secure Execution images; attest machines that run one."""


se.add_command(attest)


@se.command()
@click.option("--kernel", required=True, type=_FILE, help="The kernel.")
@click.option("--cmdline", required=True, help="The kernel's command line; @FILE reads it from a file.")
@click.option("--initrd", required=True, type=_FILE, help="The initrd; - is standard input.")
@with_host_keys
@click.option("--stage3a", type=_FILE, help="Another loader in the clear than ours, machine code for IBM Z.")
@click.option("--stage3b", type=_FILE, help="Loader behind the encryption; goes together with --stage3a.")
@click.option("--cck", type=_FILE, help="Customer communication key, 32 bytes that you keep; a random one otherwise.")
@click.option(
    "--enable", multiple=True, type=click.Choice(_FLAGS), help="What the image allows its machine beyond; several."
)
@click.option("--disable", multiple=True, type=click.Choice(_FLAGS), help="What it does not allow; several.")
@click.option("-o", "--output", required=True, type=_FILE, help="Where the image goes.")
@click.option("--json", "as_json", is_flag=True, help="Print what was packed as JSON.")
def pack(
    kernel: str,
    cmdline: str,
    initrd: str,
    documents: Documents,
    stage3a: str | None,
    stage3b: str | None,
    cck: str | None,
    enable: tuple[str, ...],
    disable: tuple[str, ...],
    output: str,
    as_json: bool,
) -> None:
    """Encrypt kernel, command line and initrd into one image that only the named hosts can open.

    Host key documents are verified as the tools for IBM Z do: a host-key signing key signed them, its certificate chains
    to a root that you give, and revocation lists say that nothing of it was withdrawn.
    A kernel for IBM Z gets the loaders that a machine starts with; any other is for the software ultravisor only.
    Flags have the names that pvimg gives them. The usual ones are the three pckmo groups dea-tdea, aes, ecc. A dump
    (confidential-dump) needs the key that it is encrypted with: --cck.

    \b
    casemate se pack --kernel vmlinuz --cmdline @cmdline --initrd initrd.img \\
        --host-key first.crt --host-key second.crt \\
        --ca host-key-signing.crt --ca DigiCertCA.crt --crl signing.crl --crl DigiCertCA.crl -o image.img
    casemate se pack --kernel vmlinuz --cmdline "console=ttyS0" --initrd initrd.img \\
        --host-key host.crt --no-verify -o image.img
    """
    if (stage3a is None) != (stage3b is None):
        raise click.UsageError("--stage3a and --stage3b go together")
    from casemate.secureexec import header as headers
    from casemate.secureexec import image

    own_key = read_input(cck, headers.COMMUNICATION_KEY) if cck else None
    if own_key is not None and len(own_key) != headers.COMMUNICATION_KEY:
        raise click.UsageError(f"--cck: the key has {headers.COMMUNICATION_KEY} bytes, this one has {len(own_key)}")
    flags, secret_flags = headers.flags_of(enable, disable, has_key=own_key is not None)
    hosts = load(documents)
    for source in (kernel, initrd):
        if Path(source).exists() and Path(output).exists() and Path(source).samefile(output):
            raise click.UsageError(f"the image would take the place of {source}")
    line = cmdline.encode()
    if cmdline.startswith("@"):
        line = read_input(cmdline[1:], image.LARGEST_CMDLINE).rstrip(b"\n")
    loaders = [read_input(path, _LARGEST_LOADER) if path else None for path in (stage3a, stage3b)]
    with ExitStack() as files:
        sources = [files.enter_context(_reading(path)) for path in (kernel, initrd)]
        out = files.enter_context(_replacing(Path(output)))
        progress = files.enter_context(_progress("Packing", sources, as_json))
        packed = image.pack(
            out,
            kernel=sources[0],
            cmdline=line,
            initrd=sources[1],
            hosts=hosts,
            stage3a=loaders[0],
            stage3b=loaders[1],
            flags=flags,
            secret_flags=secret_flags,
            communication_key=own_key,
            progress=progress,
        )
    fingerprints = [host.fingerprint.hex() for host in hosts]
    facts = {"path": output, "size": packed.size, "tag": packed.tag.hex(), "hosts": fingerprints}
    if as_json:
        _print_json({**facts, "host_keys_verified": not documents.no_verify, "loaders": packed.loaders})
        return
    click.echo(f"{output}: {packed.size / 1e6:.1f} MB, tag {packed.tag.hex()}")
    for fingerprint in fingerprints:
        click.echo(f"  opens on {fingerprint}")
    if not packed.loaders:
        click.echo("  no loaders: this kernel is none for IBM Z, and the image is for the software ultravisor only")


@se.command("open")
@click.argument("image", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="The host's private key, PEM.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="Directory for the parts.")
@click.option("--json", "as_json", is_flag=True, help="Print what was in it as JSON.")
def open_(image: str, key: str, output: str, as_json: bool) -> None:
    """Verify and decrypt IMAGE with a host's key: kernel, cmdline and initrd go to a directory, for its owner only.

    Where anything of the image does not hold, nothing is left in the directory.

    \b
    casemate se open image.img --key host.key -o parts
    """
    import tempfile

    from casemate.secureexec import hostkey
    from casemate.secureexec import image as images

    host = hostkey.load_private(read_input(key, hostkey.LARGEST_DOCUMENT))
    directory = Path(output)
    beside = directory if directory.is_dir() else directory.parent
    with ExitStack() as files:
        file = files.enter_context(_reading(image))
        files.enter_context(_failing(output, "written"))
        work = Path(files.enter_context(tempfile.TemporaryDirectory(prefix=".open-", dir=beside)))

        def sink(name: str, _: int) -> BinaryIO:
            descriptor = os.open(work / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            return files.enter_context(os.fdopen(descriptor, "w+b"))

        progress = files.enter_context(_progress("Opening", [file], as_json))
        contents = images.open_image(file, host, sink, progress)
        directory.mkdir(mode=0o700, exist_ok=True)
        for name in contents.sizes.keys() - {"stage3b"}:
            (work / name).replace(directory / name)
    sizes = {name: size for name, size in contents.sizes.items() if name != "stage3b"}
    if as_json:
        _print_json({"path": output, "tag": contents.header.tag.hex(), "sizes": sizes})
        return
    click.echo(f"{image}: every digest and tag holds; tag {contents.header.tag.hex()}")
    for name, size in sizes.items():
        click.echo(f"  {directory / name}  {size} bytes")


@se.command()
@click.argument("image", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(image: str, as_json: bool) -> None:
    """Show what anyone can read of IMAGE: hosts, sizes, digests, tag. Nothing of it is proved without a host's key.

    \b
    casemate se show image.img
    casemate se show image.img --json
    """
    from casemate.secureexec import header as headers
    from casemate.secureexec import image as images

    with _reading(image) as file:
        clear = images.read_clear(file)
        size = os.fstat(file.fileno()).st_size
    header, placed = clear.header, list(zip(clear.names, clear.components, strict=True))
    parts = [{"name": name, "address": part.address, "size": part.size} for name, part in placed]
    allows = [name for name, bit in headers.FLAGS.items() if header.flags & bit]
    facts = {
        "path": image,
        "size": size,
        "tag": header.tag.hex(),
        "hosts": [slot[:32].hex() for slot in header.slots],
        "pages": header.pages,
        "flags": f"{header.flags:#x}",
        "allows": allows,
        "header_size": len(header.raw),
        "clear_size": len(clear.data),
        "pld": header.pld.hex(),
        "ald": header.ald.hex(),
        "tld": header.tld.hex(),
        "components": parts,
    }
    if as_json:
        _print_json(facts)
        return
    for name in ("size", "clear_size", "header_size", "pages", "flags", "tag", "pld", "ald", "tld"):
        click.echo(f"{name.replace('_', ' '):<12} {facts[name]}")
    click.echo(f"{'allows':<12} {', '.join(allows)}")
    for slot in header.slots:
        click.echo(f"{'opens on':<12} {slot[:32].hex()}")
    how = "NOT encrypted" if "no-component-encryption" in allows else "encrypted"
    for name, part in placed:
        click.echo(f"{name:<12} {part.size} bytes at {part.address:#x}, {how}")


@se.command("host-key")
@with_host_keys
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def host_key(
    documents: Documents,
    as_json: bool,
) -> None:
    """Verify host key documents as the tools for IBM Z do, and tell whose keys they are.

    More than a chain that holds (`casemate certificate verify`): a host-key signing key signed them, nobody else.

    \b
    casemate se host-key --host-key HKD-9175-02C25B8.crt \\
        --ca host-key-signing.crt --ca DigiCertCA.crt --crl signing.crl --crl DigiCertCA.crl
    """
    hosts = load(documents)
    if as_json:
        rows = [{"fingerprint": host.fingerprint.hex(), "valid_until": host.valid_until} for host in hosts]
        _print_json({"verified": not documents.no_verify, "hosts": rows})
        return
    for host in hosts:
        click.echo(f"{host.fingerprint.hex()}  {f'until {host.valid_until}' if host.valid_until else 'a bare key'}")


@se.command()
@click.argument("image", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="Where the disk goes.")
def disk(image: str, output: str) -> None:
    """Write a disk that starts IMAGE on IBM Z: a SCSI or virtio disk, for KVM or a logical partition.

    It does what zipl would, without a running system for it. KVM starts an image as a kernel too: then no disk is needed.

    \b
    casemate se disk image.img -o boot.disk
    """
    from casemate.secureexec import disk as disks

    with _reading(image) as file, _replacing(Path(output)) as out:
        size = disks.write(file, out, os.fstat(file.fileno()).st_size)
    click.echo(f"{output}: {size / 1e6:.1f} MB")


def _print_json(facts: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(facts))


@contextmanager
def _failing(where: str, verb: str) -> Iterator[None]:
    """Turn the system's errors into ours."""
    from casemate.errors import CasemateError

    try:
        yield
    except OSError as error:
        cause = f"can't be {verb}: {error.strerror}"
        raise CasemateError(cause, "check the name, the rights and the space", where, id="CLI-FILE") from None


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    """Give a file to read, standard input for ``-``."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with _failing(path, "read"):
        file = Path(path).open("rb")  # noqa: SIM115  (what fails later is not about this file)
    with file:
        yield file


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Give a new file that takes the name ``target`` when all of it is there, and vanishes otherwise."""
    import tempfile

    from casemate.errors import CasemateError

    target = target.resolve()
    if target.exists() and not target.is_file():
        cause, cure = "is not a regular file, and an image is written in several places", "name a file"
        raise CasemateError(cause, cure, str(target), id="CLI-FILE")
    with _failing(str(target), "written"), tempfile.TemporaryDirectory(prefix=".pack-", dir=target.parent) as work:
        new = Path(work) / "image"
        with new.open("xb") as file:
            yield file
        new.replace(target)


@contextmanager
def _progress(title: str, files: list[BinaryIO], quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Show how far it is, on a terminal, once it has taken two seconds."""
    import time

    if quiet or not sys.stderr.isatty():
        yield None
        return
    states = [os.fstat(file.fileno()) for file in files]
    total = sum(state.st_size for state in states) if all(stat.S_ISREG(state.st_mode) for state in states) else 0
    began = time.monotonic()
    shown = began + 1.8

    def progress(done: int) -> None:
        nonlocal shown
        if (now := time.monotonic()) < shown + 0.2:
            return
        shown = now
        share = f"{min(100, 100 * done // total)} %" if total else f"{done / 1e6:.0f} MB"
        print(f"\r{title}: {share} ", end="", file=sys.stderr, flush=True)

    yield progress
    if time.monotonic() - began > 2:
        print(f"\r{title}: done in {time.monotonic() - began:.1f} s", file=sys.stderr)
