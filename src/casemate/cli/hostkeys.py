"""What the commands that encrypt for machines share: host key documents, and who must have signed them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from casemate.cli.ui import read_input

if TYPE_CHECKING:
    from casemate.secureexec.hostkey import HostKey

_FILE = click.Path(dir_okay=False)
_Result = TypeVar("_Result")

_OPTIONS = (
    click.option(
        "--host-key",
        "host_keys",
        required=True,
        multiple=True,
        type=_FILE,
        help="Host key document of a machine; several are possible.",
    ),
    click.option(
        "--ca",
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


def with_host_keys(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Give a command the options; it gets their values as one argument, ``documents``: :class:`Documents`."""

    @functools.wraps(command)
    def collected(**values: Any) -> _Result:
        documents = Documents(**{each.name: values.pop(each.name) for each in fields(Documents)})
        return command(documents=documents, **values)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


def load(documents: Documents) -> list[HostKey]:
    """Return the host keys, each once. They were verified unless the user said otherwise, and then was told so."""
    import datetime

    from casemate.secureexec import hostkey

    given = documents.authorities or documents.signing
    if documents.no_verify and (given or documents.lists or documents.no_revocation_check):
        raise click.UsageError("--no-verify checks nothing: leave out what it would be checked with")
    if not documents.no_verify and not given:
        raise click.UsageError("give --ca and --crl to verify who signed the host key documents, or --no-verify")
    data = [read_input(path, hostkey.LARGEST_DOCUMENT) for path in documents.host_keys]
    hosts = list({host.fingerprint: host for host in map(hostkey.load, data)}.values())
    if documents.no_verify:
        click.echo("host key documents were NOT verified (--no-verify): whoever made them reads all of it", err=True)
        return hosts

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
    return hosts
