"""A ceremony without a machine: the real service and measurements, a record made by hand, kernel and initrd of a few bytes."""

from __future__ import annotations

import datetime
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import strictjson
from casemate.attestation import record as records
from casemate.build import ceremony as rules
from casemate.build import ceremonyhost
from casemate.build import ceremonyplan as plans
from casemate.build import ceremonysession as sessions
from casemate.build.ceremonyhost import Visit
from casemate.build.ceremonyplan import Plan, Role
from casemate.build.job import Part
from casemate.guest.bootstrap import Bootstrap, serving
from casemate.guest.kinds import KINDS
from casemate.image.assemble import Parts
from casemate.secureexec import attestation, hostkey
from casemate.secureexec import header as headers
from casemate.secureexec.image import read_clear

FILES = {"kernel": b"kernel" * 500, "initrd": b"initrd" * 500, "sbom.spdx.json": b"bill", "packages.txt": b"packages"}
ARCHIVE = b"root archive"
ROOT = Part(hashlib.sha256(ARCHIVE).hexdigest(), len(ARCHIVE))
PEOPLE = {
    **{"alice": "reviewers", "bob": "reviewers", "carol": "reviewers", "heidi": "hosts", "dave": "custodians"},
    **{"erin": "custodians", "frank": "custodians", "rita": "root", "oscar": "auditor"},
}
SECRET = b"what the people of the plan have"
QUORUM = {"reviewers": 2, "hosts": 1, "custodians": 2, "root": 1, "auditor": 1}
TEE = "DEVELOPMENT (software ultravisor: no protection from whoever owns the host)"


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """The key of somebody, the same all the time."""
    return ec.generate_private_key(ec.SECP384R1())


@cache
def root_pem(*, development: bool = True) -> bytes:
    return ceremonyhost.root_certificate("Example", key("root key"), development=development)


@cache
def host_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP521R1())


def host(name: str = "host") -> bytes:
    return host_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def pem(private: Any) -> str:
    data: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data.decode()


def plan(**changed: Any) -> Plan:
    files = (io.BytesIO(FILES["kernel"]), io.BytesIO(FILES["initrd"]))
    values = Parts(
        *(
            "amd64",
            KINDS["builder"],
            "6.1",
            *files,
            ROOT.sha256,
            ROOT.size,
            FILES["sbom.spdx.json"],
            FILES["packages.txt"],
            {},
        )
    ).values()
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    made = Plan(
        *("rehearsal", "Example", "buildvm", "0" * 32, True, now - datetime.timedelta(minutes=5)),
        *(now + datetime.timedelta(minutes=30), 60, {name: pem(key(name)) for name in PEOPLE}),
        {
            role: Role(tuple(name for name, one in PEOPLE.items() if one == role), quorum)
            for role, quorum in QUORUM.items()
        },
        {"HKD.crt": host().decode()},
        *(root_pem().decode(), pem(key("pipeline")), "26.11.0", "b" * 64, "amd64", "6.1", ROOT),
        {name: Part(hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items()},
        values,
        hashlib.sha256(SECRET).hexdigest(),
    )
    if not changed.get("development", True):
        changed["root_certificate"] = root_pem(development=False).decode()
    return replace(made, **changed)


def header(made: Plan) -> bytes:
    """The header of the BootstrapVM's image, packed of a plan."""
    out = io.BytesIO()
    ceremonyhost.write_image(made, FILES, out, SECRET)
    out.seek(0)
    return read_clear(out).header.raw


def record(made: Plan, values: dict[str, str] | None = None) -> bytes:
    lines = list((values or made.values).items())
    lines += [("baked:plan.json", made.digest)]
    return records.build("26.11.0", [("TEE", TEE)], lines)


@dataclass
class Clock:
    """A clock that a test sets."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def ultravisor(raw: bytes, opened: str = "host", asked: str = "host") -> Any:
    """An ultravisor that has opened an image by one host key, and answers by another where a test wants that."""
    fingerprint = hostkey.HostKey(host_key(opened).public_key()).fingerprint
    started = attestation.Configuration(headers.parse(raw), b"c" * attestation.CUID, fingerprint)

    def attest(request: bytes, user_data: bytes) -> attestation.Answer:
        return attestation.perform(request, host_key(asked), started, user_data)

    return attest


def bootstrap(made: Plan, clock: Any = time.time, attest: Any = None) -> Bootstrap:
    return Bootstrap(made.as_bytes(), record(made), attest or ultravisor(header(made)), clock)


@dataclass
class Held:
    """A ceremony that is open: the service, a visit, the address; where its people say that the root's and next keys are."""

    service: Bootstrap
    visit: Visit
    port: int
    custody: str = "file"

    def approve(self, *names: str) -> None:
        for name in names:
            self.visit.approve(name, key(name), key(f"{name}'s next"), next_custody=self.custody)

    def to_the_request(self) -> None:
        self.approve("alice", "bob")
        self.on_to_the_request()

    def on_to_the_request(self, hosts: tuple[tuple[str, bytes], ...] = ()) -> None:
        """From where enough reviewers have approved."""
        self.visit.give_hosts("heidi", key("heidi"), hosts or [("HKD.crt", host())])
        for name in ("dave", "frank"):
            self.visit.contribute(name, key(name), f"a share that {name} keeps".encode())
        self.service.step()

    def to_the_image(self) -> None:
        self.to_the_request()
        self.on_to_the_image()

    def on_to_the_image(self) -> None:
        """From where the machine has asked the root."""
        self.visit.certify("rita", key("rita"), key("root key"), root_custody=self.custody, earlier=b"")
        for name, data in FILES.items():
            self.visit.bring(name, data)
        self.service.step()

    def to_the_end(self, directory: Path) -> None:
        self.to_the_image()
        self.visit.witness("oscar", key("oscar"), directory / "buildvm")
        self.service.step()
        self.visit.save(directory)


def visit(port: int, made: Plan) -> Visit:
    """Somebody's way to a ceremony, who has packed the image themselves."""
    return Visit(f"127.0.0.1:{port}", made, header(made))


@contextmanager
def held(made: Plan | None = None, clock: Any = time.time) -> Iterator[Held]:
    """Open a ceremony on a port of this machine. What the machine does is done when a test says so (``step``)."""
    made = made or plan()
    service = bootstrap(made, clock)
    service.open()
    with serving(service, "127.0.0.1", 0) as port:
        yield Held(service, visit(port, made), port)


@contextmanager
def running(service: Bootstrap, **more: Any) -> Iterator[threading.Thread]:
    """Run the whole of the service beside the test."""
    from casemate.demo.services import free_port

    port = free_port()
    thread = threading.Thread(target=service.hold, args=("127.0.0.1", port), kwargs=more, daemon=True)
    thread.start()
    thread.port = port  # type: ignore[attr-defined]
    yield thread
    thread.join(30)


def forge(
    made: Plan, session: sessions.Session, who: str, content: bytes, seen: str, signer: Any, **said: str
) -> bytes:
    """Return an entry that says of itself what a test wants it to say."""
    import json

    names = (hashlib.sha256(header(made)).hexdigest(), "1" * 64)
    document = json.loads(rules.statement(made, session, who, content, seen, "file", names)) | said
    payload = strictjson.dumps(document)
    return rules.entry(payload, plans.sign(signer, rules.STATEMENT_TYPE, payload), who, content)
