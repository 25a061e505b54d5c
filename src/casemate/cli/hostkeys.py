"""What the commands that encrypt for machines share: host key documents, and who must have signed them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from casemate.cli.ui import read_input

if TYPE_CHECKING:
    from casemate.secureexec.hostkey import HostKey

_FILE = click.Path(dir_okay=False)
_Result = TypeVar("_Result")


def _options(required: bool, ca: str) -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option(
            "--host-key",
            "host_keys",
            required=required,
            multiple=True,
            type=_FILE,
            help="Host key document of a machine; several are possible."
            + ("" if required else " Without any it is for this user's software ultravisor."),
        ),
        click.option(
            ca,
            "authorities",
            multiple=True,
            type=_FILE,
            help="Certificates above the documents: the signing key's, and those up to the root.",
        ),
        click.option("--crl", "lists", multiple=True, type=_FILE, help="Revocation list of an issuer."),
        click.option(
            "--signing-key",
            "signing",
            multiple=True,
            type=_FILE,
            help="Certificate of a signing key of your own authority, which has another name than IBM's.",
        ),
        click.option(
            "--no-revocation-check", is_flag=True, help="Take documents of which nobody says that they are still good."
        ),
        click.option(
            "--no-verify",
            is_flag=True,
            help="Take documents, and bare keys, from ANYBODY: for tests on machines of one's own.",
        ),
    )


@dataclass(frozen=True, slots=True)
class Documents:
    """Names of files and what was asked for, as the command line has them."""

    host_keys: tuple[str, ...]
    authorities: tuple[str, ...]
    lists: tuple[str, ...]
    signing: tuple[str, ...]
    no_revocation_check: bool
    no_verify: bool
    ca: str = "--ca"

    @property
    def needless(self) -> bool:
        """Whether something was given to verify documents with, but no document."""
        return not self.host_keys and any(getattr(self, name) for name in _VALUES)


_VALUES = tuple(each.name for each in fields(Documents) if each.name != "ca")


def host_key_options(
    *, required: bool = True, ca: str = "--ca"
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Give a command the options; it gets their values as one argument, ``documents``: :class:`Documents`.

    ``ca``: what the option for certificates above the documents is called, where ``--ca`` means something else.
    """

    def decorate(command: Callable[..., _Result]) -> Callable[..., _Result]:
        @functools.wraps(command)
        def collected(**values: Any) -> _Result:
            documents = Documents(ca=ca, **{name: values.pop(name) for name in _VALUES})
            return command(documents=documents, **values)

        for option in reversed(_options(required, ca)):
            collected = option(collected)
        return collected

    return decorate


with_host_keys = host_key_options()


def load(documents: Documents) -> list[HostKey]:
    """Return the host keys, each once. They were verified unless the user said otherwise, and then was told so."""
    from casemate.secureexec import hostkey

    hosts = (hostkey.load(data) for _, data in read(documents))
    return list({host.fingerprint: host for host in hosts}.values())


def read(documents: Documents) -> list[tuple[str, bytes]]:
    """Return names and contents of the documents, read once. They were verified unless the user said otherwise, and was told."""
    import datetime

    from casemate.secureexec import hostkey

    given = documents.authorities or documents.signing
    if documents.no_verify and (given or documents.lists or documents.no_revocation_check):
        raise click.UsageError("--no-verify checks nothing: leave out what it would be checked with")
    if not documents.no_verify and not given:
        cause = f"give {documents.ca} and --crl to verify who signed the host key documents, or --no-verify"
        raise click.UsageError(cause)
    data = [read_input(path, hostkey.LARGEST_DOCUMENT) for path in documents.host_keys]
    for document in data:
        hostkey.load(document)
    found = [(Path(path).name, document) for path, document in zip(documents.host_keys, data, strict=True)]
    if documents.no_verify:
        click.echo("host key documents were NOT verified (--no-verify): whoever made them reads all of it", err=True)
        return found

    from casemate.certificates.chain import LARGEST_BUNDLE, LARGEST_CRL
    from casemate.secureexec.documents import verify

    authorities, signing = (
        [read_input(path, LARGEST_BUNDLE) for path in paths] for paths in (documents.authorities, documents.signing)
    )
    crls = [read_input(path, LARGEST_CRL) for path in documents.lists]
    now, revocation = datetime.datetime.now(datetime.UTC), not documents.no_revocation_check
    verify(data, authorities, crls, time=now, signing=signing, revocation=revocation)
    if not revocation:
        click.echo("revocation of host key documents was NOT checked (--no-revocation-check)", err=True)
    return found
