"""A ceremony with all its people in one program: how it goes, with a real BootstrapVM, before anybody travels to one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.build import ceremonyhost as host
from casemate.build.ceremony import AUDITOR, CUSTODIANS, FILE, HOSTS, REVIEWERS, ROOT, Plan, Role

PEOPLE = {
    REVIEWERS: ("alice", "bob"),
    HOSTS: ("heidi",),
    CUSTODIANS: ("dave", "erin"),
    ROOT: ("rita",),
    AUDITOR: ("oscar",),
}
MINUTES = 60


def hold(
    directory: Path,
    *,
    root_uri: str | None = None,
    organization: str = "Rehearsal",
    progress: Callable[[str], None] = lambda step: None,
    patience: float = 900.0,
) -> Plan:
    """Hold a ceremony; ``directory`` then has plan, session, transcript, ``root.crt``, ``buildvm`` and the reviewers' next keys.

    Raises :class:`CasemateError`. The machine has ended when this returns.
    """
    from casemate.build import forms, signers
    from casemate.demo.services import free_port
    from casemate.machine.ultravisor import SoftwareUltravisor

    host.require_empty(directory)
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for names in PEOPLE.values() for name in names}
    public = {
        name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for name, key in keys.items()
    }
    parts = host.ready_parts(progress=progress)
    with ExitStack() as stack:
        root: Any = ec.generate_private_key(ec.SECP384R1())
        custody = FILE
        if root_uri is not None:
            root, custody = stack.enter_context(signers.find(root_uri, Path.cwd()).open()), host.custody_of(root_uri)
        certificate = host.root_certificate(organization, root, development=True)
        roles = {role: Role(names, len(names)) for role, names in PEOPLE.items()}
        plan = host.make_plan("rehearsal", organization, public, roles, certificate, parts, minutes=MINUTES)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "root.crt").write_bytes(certificate)
        name = f"rehearsal-{secrets.token_hex(4)}"
        visit, machine = host.opened(
            plan, parts, directory / "bootstrap", free_port(), name, progress=progress, patience=patience
        )
        stack.callback(machine.down, 0.0)
        progress("reviewers, hosts, custodians")
        for name in PEOPLE[REVIEWERS]:
            following = ec.generate_private_key(ec.SECP384R1())
            signers.write_private(directory / f"{name}.key", forms.private_pem(following))
            visit.approve(name, keys[name], following)
        documents = [("development.crt", SoftwareUltravisor.load_or_create().document)]
        visit.give_hosts(PEOPLE[HOSTS][0], keys[PEOPLE[HOSTS][0]], documents)
        for name in PEOPLE[CUSTODIANS]:
            visit.contribute(name, keys[name], secrets.token_bytes(32))
        progress("the root")
        visit.wait("request", patience)
        visit.certify(PEOPLE[ROOT][0], keys[PEOPLE[ROOT][0]], root, custody)
        progress("the BuildVM is made inside")
        visit.wait("built", patience)
        progress("the auditor")
        visit.witness(PEOPLE[AUDITOR][0], keys[PEOPLE[AUDITOR][0]], directory / host.BUILT)
        visit.wait("end", patience)
        visit.save(directory)
    host.finish(directory / host.BUILT, parts)
    return plan
