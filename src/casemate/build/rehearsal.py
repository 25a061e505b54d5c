"""A ceremony with all its people in one program: how it goes, with a real BootstrapVM, before anybody travels to one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build import ceremonyhost as host
from casemate.build.ceremonyplan import AUDITOR, CUSTODIANS, FILE, HOSTS, REVIEWERS, ROOT, Plan, Role

PEOPLE = {
    REVIEWERS: ("alice", "bob"),
    HOSTS: ("heidi",),
    CUSTODIANS: ("dave", "erin"),
    ROOT: ("rita",),
    AUDITOR: ("oscar",),
}
MINUTES = 60
Opened = tuple[Any, str]
"""A private key, and where it is."""


class Ring:
    """The keys of all people, by whose they are, made at first use: in this program's memory, or where ``template`` says.

    ``template``: a URI with ``{}`` for the name; ``existing``: URIs of keys that are there, by name.
    """

    def __init__(self, template: str | None, existing: dict[str, str]) -> None:
        self._template, self._uris, self._keys = template, existing, dict[str, Any]()

    @contextmanager
    def open(self, name: str) -> Iterator[Opened]:
        """Give a key."""
        from casemate.build import signers

        if self._template is None and name not in self._uris:
            if name not in self._keys:
                self._keys[name] = ec.generate_private_key(ec.SECP384R1())
            yield self._keys[name], FILE
            return
        if self._template is not None and name not in self._uris:
            self._uris[name] = self._template.replace("{}", name)
            try:
                signers.find(self._uris[name], Path.cwd()).generate("p-384")
            except signers.SignerError as error:
                if error.id != "SIGNER-EXISTS":  # of a rehearsal before this one
                    raise
        with signers.find(self._uris[name], Path.cwd()).open() as key:
            yield key, host.custody_of(self._uris[name])

    def public(self, name: str) -> str:
        """Return the public half, PEM."""
        with self.open(name) as (key, _):
            data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return data.decode()


def hold(
    directory: Path,
    *,
    root_uri: str | None = None,
    keys: str | None = None,
    organization: str = "Rehearsal",
    progress: Callable[[str], None] = lambda step: None,
    patience: float = 900.0,
) -> Plan:
    """Hold a ceremony; ``directory`` then has plan, session, transcript, ``root.crt``, ``buildvm`` and the reviewers' next keys.

    ``root_uri``: the root's key; ``keys``: the URI of all others, with ``{}`` for the name, and of the root's too where it has
    none (``root``); a reviewer's next key is ``NAME-next``. Raises :class:`CasemateError`. The machine has ended when this
    returns.
    """
    from casemate.build import forms, signers
    from casemate.demo.services import free_port
    from casemate.machine.ultravisor import SoftwareUltravisor

    host.require_empty(directory)
    ring = Ring(keys, {"root": root_uri} if root_uri else {})
    public = {name: ring.public(name) for names in PEOPLE.values() for name in names}
    parts = host.ready_parts(progress=progress)
    with ExitStack() as stack:
        with ring.open("root") as (key, _):
            certificate = host.root_certificate(organization, key, development=True)
        roles = {role: Role(names, len(names)) for role, names in PEOPLE.items()}
        secret = secrets.token_bytes(host.SECRET)
        plan = host.make_plan(
            *("rehearsal", organization, public, roles, certificate, parts), secret=secret, minutes=MINUTES
        )
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "root.crt").write_bytes(certificate)
        signers.write_private(directory / "plan.secret", secret)
        machine_name = f"rehearsal-{secrets.token_hex(4)}"
        visit, machine = host.opened(
            plan,
            parts,
            directory / "bootstrap",
            secret,
            free_port(),
            machine_name,
            progress=progress,
            patience=patience,
        )
        stack.callback(machine.down, 0.0)
        progress("reviewers, hosts, custodians")
        for name in PEOPLE[REVIEWERS]:
            with ring.open(name) as (key, custody), ring.open(f"{name}-next") as (following, kept):
                if keys is None:
                    signers.write_private(directory / f"{name}.key", forms.private_pem(following))
                visit.approve(name, key, following, custody, kept)
        documents = [("development.crt", SoftwareUltravisor.load_or_create().document)]
        with ring.open(PEOPLE[HOSTS][0]) as (key, custody):
            visit.give_hosts(PEOPLE[HOSTS][0], key, documents, custody)
        for name in PEOPLE[CUSTODIANS]:
            with ring.open(name) as (key, custody):
                visit.contribute(name, key, secrets.token_bytes(32), custody)
        progress("the root")
        visit.wait("request", patience)
        with ring.open(PEOPLE[ROOT][0]) as (key, custody), ring.open("root") as (above, kept):
            visit.certify(PEOPLE[ROOT][0], key, above, custody, kept)
        progress("the BuildVM is made inside")
        visit.wait("built", patience)
        progress("the auditor")
        with ring.open(PEOPLE[AUDITOR][0]) as (key, custody):
            visit.witness(PEOPLE[AUDITOR][0], key, directory / host.BUILT, custody)
        visit.wait("end", patience)
        visit.save(directory)
    host.finish(directory / host.BUILT, parts.archive, plan)
    return plan
