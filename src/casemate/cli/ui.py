"""What the commands share: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.secureexec.header import Header


@contextmanager
def steps(title: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show the steps of something that takes a while, each with its time; yield what names the next step.

    On a terminal the running step turns; elsewhere each finished step is one line. Nothing where ``quiet``.
    """
    if quiet:
        yield lambda step: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    began = started = time.monotonic()
    current = ""
    status = console.status(f"{title} …")

    def finish() -> None:
        if current:
            console.print(f"  [green]✓[/] {current} [dim]{time.monotonic() - started:.1f} s[/]")

    def next_step(step: str) -> None:
        nonlocal current, started
        finish()
        current, started = step, time.monotonic()
        status.update(f"{title}: {step} …")

    with status:
        yield next_step
        finish()
    console.print(f"[bold]{title}[/]: done in {time.monotonic() - began:.1f} s")


def read_input(path: str, limit: int) -> bytes:
    """Return the bytes of a file, or of standard input for ``-``; at most ``limit`` of them."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with open(path, "rb") as file:  # noqa: PTH123  (every command pays for the import of pathlib)
                data = file.read(limit + 1)
    except OSError as error:
        raise CasemateError(f"can't be read: {error.strerror}", "check the name", path, id="CLI-FILE") from None
    if len(data) > limit:
        raise CasemateError(f"has more than {limit} bytes", "is it the right file?", path, id="CLI-FILE")
    return data


def read_certificates(path: str) -> bytes:
    """Return the bytes of a file with certificates, PEM or DER; an error that they are none names the file."""
    from casemate.certificates.chain import LARGEST_BUNDLE, require_readable

    data = read_input(path, LARGEST_BUNDLE)
    try:
        require_readable(data)
    except CasemateError as error:
        raise CasemateError(error.cause, error.cure, path, id=error.id) from None
    return data


def read_header(path: str) -> Header:
    """Return the header of an encrypted image, not verified by a key. Raises :class:`CasemateError`."""
    from pathlib import Path

    from casemate.secureexec import image

    try:
        with Path(path).open("rb") as file:
            return image.read_clear(file).header
    except OSError as error:
        raise CasemateError(f"can't be read: {error.strerror}", "check the name", path, id="CLI-FILE") from None


def tell(output: str, text: str) -> None:
    """Say what was written to ``output``: on standard error where that is ``-``, so that the document stands alone."""
    import click

    click.echo(text, err=output == "-")


def require_file_name(path: str) -> str:
    """Return the path. Raises :class:`CasemateError`: it is empty, or ``.``, or ends in a directory."""
    import os

    if os.path.basename(path) in ("", ".", ".."):  # noqa: PTH119  (every command pays for the import of pathlib)
        raise CasemateError("is not the name of a file", "name a file", path or "''", id="CLI-FILE")
    return path


def write_output(path: str | None, data: bytes, mode: int = 0o644) -> None:
    """Write to a file, whole or not at all; to standard output where ``path`` is ``None`` or ``-``.

    A new file takes the place of an old one; a link stays and what it leads to is replaced. What is no regular file, a
    device or a pipe, is written to. ``mode`` is what the user's umask leaves of it.
    """
    if path is None or path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    import os
    import stat

    target = os.path.realpath(require_file_name(path))
    try:
        try:
            regular = stat.S_ISREG(os.stat(target).st_mode)  # noqa: PTH116  (every command pays for pathlib)
        except FileNotFoundError:
            regular = True
        if not regular:
            with open(target, "wb") as file:  # noqa: PTH123
                file.write(data)
            return
        directory, name = os.path.split(target)
        new = os.path.join(directory, f".{name}-{os.urandom(8).hex()}")  # noqa: PTH118
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.replace(new, target)  # noqa: PTH105
        except BaseException:
            os.unlink(new)  # noqa: PTH108
            raise
    except OSError as error:
        raise CasemateError(f"can't be written: {error.strerror}", "check the directory", path, id="CLI-FILE") from None
