"""The whole story, once, on this machine: what ``casemate demo`` tells. Nothing in it is played.

Each party has a directory of its own, as if on a machine of its own; what one gives to another is copied from directory
to directory. Every claim is looked at while it is told, and :class:`DemoError` ends the story where one does not hold.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from rich.markup import escape

from casemate.attestation.verify import Outcome, Verdict, verify
from casemate.contract.archive import write_archive
from casemate.contract.check import check_contract, check_env, check_workload, problems_stop
from casemate.contract.document import parse_contract, write_contract
from casemate.contract.passphrase import passphrase
from casemate.demo import images, parties
from casemate.demo.narration import Narrator
from casemate.demo.pki import Authority
from casemate.demo.search import search
from casemate.demo.services import LogServer, Registry, free_port
from casemate.errors import CasemateError
from casemate.image.build import ImageDirectory, build_image, is_current
from casemate.machine import home
from casemate.machine.machines import Data, Machine, MachineError, Port, Specification, all_machines, get, up

if TYPE_CHECKING:
    from rich.console import Console

    from casemate.contract.check import Problem

VOLUME_SIZE = 2 << 30
DATABASE_PATIENCE = 240.0
"""Seconds that a new database may take until it answers, in an emulated machine."""

COMPOSE = """\
services:
  database:
    image: {image}
    restart: always
    ports: ["5432:5432"]
    volumes: ["/mnt/data:/mnt/data"]
    environment:
      PGDATA: /mnt/data/postgres
      POSTGRES_PASSWORD: ${{DB_PASSWORD}}
      POSTGRES_TLS_CERTIFICATE: ${{DB_CERTIFICATE}}
      POSTGRES_TLS_KEY: ${{DB_KEY}}
"""
ROWS = """\
CREATE TABLE patients (id int PRIMARY KEY, name text, finding text);
INSERT INTO patients VALUES (1, 'Ada', 'healthy, {mark}'), (2, 'Grace', 'a moth, {mark}'), (3, 'Edith', 'tired, {mark}');
INSERT INTO patients SELECT n, 'patient ' || n, 'nothing to report, {mark}' FROM generate_series(4, 1000) n;
"""
COUNT = "SELECT count(*) FROM patients WHERE finding LIKE '%{mark}';"
SHOW = "SELECT id, name, split_part(finding, ',', 1) FROM patients ORDER BY id LIMIT 3;"
THIEF = """\
services:
  database:
    image: registry.example/copies-everything@sha256:{digest}
    ports: ["5432:5432"]
    volumes: ["/mnt/data:/mnt/data"]
"""


class DemoError(CasemateError):
    """Something that the story tells did not hold."""

    id = "DEMO"


@dataclass(slots=True)
class Stage:
    """What the steps hand on to each other."""

    tell: Narrator
    directory: Path
    port: int
    stack: ExitStack
    arch: str = "amd64"
    name: str = field(default_factory=lambda: f"demo-{secrets.token_hex(2)}")
    mark: str = field(default_factory=lambda: f"mark-{secrets.token_hex(8)}")
    hidden: dict[str, bytes] = field(default_factory=dict)
    """Everything that must be found on no disk of the infrastructure, by what it is."""
    ports: list[int] = field(default_factory=list)
    """Where the services listen."""

    def place(self, persona: str) -> Path:
        """Return the directory of one party."""
        directory = self.directory / persona.replace(" ", "-")
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory


def tell(console: Console, *, keep: Path | None = None, port: int | None = None, arch: str = "amd64") -> None:
    """Tell the story. Raises :class:`CasemateError` where anything in it does not hold.

    ``keep``: a new directory for contract, record and page; ``port``: where the database is reached on the loopback
    address; ``arch``: the processor of the machines. Whatever was started has ended on return, also after an exception
    and after Ctrl-C.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise DemoError("is there and not empty", "name a new directory", str(keep))
    narrator = Narrator(console)
    _need(arch)
    _introduce(narrator)
    with _signals() as ignore, ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="casemate-demo-")))
        stage = Stage(narrator, directory, port or free_port(), stack, arch)
        try:
            verdict = _steps(stage, keep)
        finally:
            ignore()
    _gone(stage)
    _conclude(narrator, verdict, keep, image_directory(arch))


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Have the first wish to end the program raise ``KeyboardInterrupt``, and be deaf to further ones: they would disturb
    the end of what runs. Yield what makes it deaf without any.
    """
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def ignore() -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)

    def end(_kind: int, _frame: object) -> None:
        ignore()
        raise KeyboardInterrupt

    before = {kind: signal.signal(kind, end) for kind in kinds}
    try:
        yield ignore
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def image_directory(arch: str = "amd64") -> Path:
    """Return where the demo's image for an architecture is kept."""
    return home.directory() / ("demo-image" if arch == "amd64" else f"demo-image-{arch}")


def _need(arch: str) -> None:
    """Raise where a program is missing, before anything has begun."""
    from casemate import doctor

    more = (arch,) if arch in doctor.GROUPS else ()
    missing = [row for row in doctor.examine(("image", "machine", "demo", *more)) if row.ok is False]
    if missing:
        words = " ".join(("casemate doctor", *(f"--for {group}" for group in more and ("demo", *more))))
        names = ", ".join(row.name for row in missing)
        raise DemoError(f"missing on this machine: {names}", f"{words} --install; {words} tells more")
    if os.geteuid() != 0:
        raise DemoError("images are built as root", "sudo casemate demo")


def _introduce(tell: Narrator) -> None:
    tell.console.print()
    tell.console.print("[bold]Four parties and a machine that none of them trusts[/]")
    cast = (
        ("image provider", "builds the encrypted image that alone can open a contract"),
        ("workload provider", "says what runs, and keeps its registry password and seed to itself"),
        ("deployer", "says where it runs, and keeps its keys and seed to itself"),
        ("auditor", "wants proof of what runs, and gets a signed record"),
        ("infrastructure", "has the disks, the network and the power switch, and is trusted by nobody"),
    )
    for persona, text in cast:
        tell.by(persona, text)


def _steps(stage: Stage, keep: Path | None) -> Verdict:
    image, container = _build(stage)
    agreed = _agree(stage, image, container)
    machine = _start(stage, agreed)
    machine = _use(stage, agreed, machine)
    _read_logs(stage, agreed)
    verdict = _audit(stage, agreed, machine, keep)
    _attack(stage, agreed)
    return verdict


# ------------------------------------------------------------------------------------------------------ 1: the image


def _build(stage: Stage) -> tuple[ImageDirectory, Path]:
    """Build the image, and the container that will run in it; both only where something changed."""
    tell, arch, directory = stage.tell, stage.arch, image_directory(stage.arch)
    tell.step(1, "An image provider builds an image")
    tell.by("image provider", "Debian packages, our bootloader and services; two fresh keys that only the image holds.")
    with tell.working("looking whether the last image is still what a build would give") as work:
        current = is_current(directory, arch=arch, progress=work)
    if current:
        image = ImageDirectory(directory)
        tell.held("it is: nothing to build")
    else:
        with tell.working("building the image") as work:
            image = build_image(directory, arch=arch, progress=work)
    described, packages = image.describe(), (directory / "packages.txt").read_text().splitlines()
    tell.say(
        f"image {described['version']} for {arch}, kernel {described['kernel']}, {len(packages)} packages, in {directory}"
    )
    with tell.working("the workload provider's container: PostgreSQL from Debian's packages") as work:
        container = images.build(images.POSTGRES, arch=arch, progress=work)
    stage.hidden |= _image_keys(image)
    return image, container


# --------------------------------------------------------------------------------------------------- 2: the contract


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the parties agreed on, and what each of them keeps."""

    image: ImageDirectory
    contract: bytes
    auditor_key: rsa.RSAPrivateKey
    logs: LogServer
    specification: Specification
    client: Mapping[str, str]
    """The environment of the deployer's database client; the password stands in a file."""


def _agree(stage: Stage, image: ImageDirectory, container: Path) -> Agreed:
    tell, stack = stage.tell, stage.stack
    tell.step(2, "Two parties seal a contract, and neither sees the other's part")
    provider, deployer, auditor, infrastructure = (
        stage.place(persona) for persona in ("workload provider", "deployer", "auditor", "infrastructure")
    )
    for party in (provider, deployer):
        shutil.copy(image.encryption_certificate, party / "encryption.crt")
    with tell.working("a registry (TLS, password) and a log backend (mutual TLS) start on the loopback address"):
        registry = stack.enter_context(Registry.running(stage.directory / "registry"))
        logs = stack.enter_context(LogServer.running(stage.directory / "log-backend"))
        stage.ports += [registry.port, logs.port]
        digest = registry.push(container, "postgres")
    with tell.working("the deployer and the auditor make their keys"), ThreadPoolExecutor(2) as pool:
        signing_key, auditor_key = pool.map(parties.new_key, (4096, 4096))

    tell.by("workload provider", f"PostgreSQL by its digest, [dim]{digest[:19]}…[/], from a registry with a password")
    compose = COMPOSE.format(image=f"{registry.host}/postgres@{digest}")
    workload = parties.workload_section(compose, registry=registry, seed=parties.new_seed())
    _write(provider / "docker-compose.yaml", compose.encode())
    _write(provider / "workload.yaml", parties.text_of(workload).encode())
    _checked(tell, "workload.yaml", check_workload(workload))
    _write(provider / "workload.token", parties.seal(workload, (provider / "encryption.crt").read_bytes()).encode())

    tell.by("deployer", "its own seed, log backend, database password and signing key; the auditor's public key")
    database = Authority.create("Deployer's database authority")
    server = database.server(("127.0.0.1", "localhost"))
    password = secrets.token_urlsafe(24)
    variables = {"DB_PASSWORD": password, "DB_CERTIFICATE": server.certificate.decode(), "DB_KEY": server.key.decode()}
    env = parties.env_section(
        logs,
        registry=registry,
        seed=parties.new_seed(),
        signing_key=parties.public_pem(signing_key),
        variables=variables,
    )
    _write(auditor / "auditor.key", _pem(auditor_key))
    _write(deployer / "auditor.pub", parties.public_pem(auditor_key))
    _write(deployer / "signing.key", _pem(signing_key))
    _write(deployer / "env.yaml", parties.text_of(env).encode())
    _checked(tell, "env.yaml", check_env(env))
    shutil.copy(provider / "workload.token", deployer / "workload.token")
    certificate = (deployer / "encryption.crt").read_bytes()
    contract = parties.contract_of(
        (deployer / "workload.token").read_text(),
        parties.seal(env, certificate),
        signing_key=signing_key,
        auditor=(deployer / "auditor.pub").read_bytes(),
    )
    _write(deployer / "contract.yaml", contract)
    _checked(tell, "contract.yaml", check_contract(contract, certificate))
    for party in (auditor, infrastructure):
        shutil.copy(deployer / "contract.yaml", party / "contract.yaml")

    seeds = (str(workload["volumes"]["data"]["seed"]), str(env["volumes"]["data"]["seed"]))
    providers = {"the provider's seed": seeds[0].encode(), "the registry password": registry.password.encode()}
    deployers = {
        **{"the deployer's seed": seeds[1].encode(), "the database password": password.encode()},
        **_key_parts("the log client's key", logs.client.key),
        **_key_parts("the database's TLS key", server.key),
        **_key_parts("the signing key", _pem(signing_key)),
    }
    tell.table(
        ("", "has, in its directory"),
        [
            (name, "  ".join(sorted(path.name for path in directory.iterdir())))
            for name, directory in (("workload provider", provider), ("deployer", deployer), ("auditor", auditor))
        ],
    )
    _unseen(tell, "the deployer's files hold neither the provider's seed nor its password", deployer, providers)
    _unseen(tell, "the provider's files hold nothing of the deployer's", provider, deployers)
    _unseen(
        tell, "the infrastructure got the contract, and reads none of it", infrastructure, {**providers, **deployers}
    )
    if not search([provider / "workload.yaml"], providers) or not search([deployer / "env.yaml"], deployers):
        raise DemoError("the search does not find what is there")

    stage.hidden |= providers | deployers | _key_parts("the auditor's key", _pem(auditor_key))
    stage.hidden |= {"the data volume's passphrase": passphrase(*seeds).encode(), "the rows": stage.mark.encode()}
    _write(deployer / "pgpass", f"127.0.0.1:{stage.port}:postgres:postgres:{password}\n".encode())
    _write(deployer / "database.crt", database.certificate)
    return Agreed(
        image=image,
        contract=contract,
        auditor_key=auditor_key,
        logs=logs,
        specification=Specification(
            name=stage.name,
            image=image.path,
            contract=contract,
            data=(Data(infrastructure / "data.img", VOLUME_SIZE),),
            ports=(Port(stage.port, 5432),),
            memory_mib=1024,
        ),
        client={
            **{"PATH": os.environ.get("PATH", os.defpath), "HOME": str(deployer), "LC_ALL": "C.UTF-8"},
            **{"PGHOST": "127.0.0.1", "PGPORT": str(stage.port), "PGUSER": "postgres", "PGCONNECT_TIMEOUT": "10"},
            **{"PGPASSFILE": str(deployer / "pgpass"), "PGSSLMODE": "verify-full"},
            "PGSSLROOTCERT": str(deployer / "database.crt"),
        },
    )


def _checked(tell: Narrator, name: str, problems: list[Problem]) -> None:
    """Show what ``contract check`` says."""
    for problem in problems:
        if problem.severity != "note":
            tell.quote([f"{problem.severity}: {problem}"])
    if problems_stop(problems):
        raise DemoError(f"the check finds errors in {name}")
    notes = sum(problem.severity == "note" for problem in problems)
    told = f"{notes} part{'s are' if notes > 1 else ' is'} sealed, or left to others" if notes else ""
    tell.held(f"contract check {name}: no errors  [dim]{told}[/]")


def _unseen(tell: Narrator, claim: str, directory: Path, others: Mapping[str, bytes]) -> None:
    """Look for one party's secrets in another's files."""
    if found := search([path for path in directory.iterdir() if path.is_file()], others):
        raise DemoError(f"{found[0].name} stands in {found[0].path.name} of another party")
    tell.held(claim)


# -------------------------------------------------------------------------------------------------- 3, 4: the machine


def _start(stage: Stage, agreed: Agreed) -> Machine:
    tell = stage.tell
    tell.step(3, "The machine starts")
    tell.by("infrastructure", "attaches the encrypted image, the contract and an empty disk, and switches on")
    machine = _up(stage, agreed.specification, "start: bootloader, contract, disks, containers")
    steps = [line for line in machine.console().splitlines() if line.startswith("# ") or "HPL" in line]
    tell.quote(map(_message, steps))
    return machine


def _message(line: str) -> str:
    """Return a line of the console from its identifier on, or as it is where it has none."""
    return re.sub(r"^.*?(?=HPL[0-9]{5})", "", line)


def _up(stage: Stage, specification: Specification, title: str) -> Machine:
    stage.stack.callback(_forget, specification.name)
    with stage.tell.working(title) as work:
        return up(specification, progress=work, timeout=600.0)


def _forget(name: str) -> None:
    try:
        get(name).down(5.0)
    except MachineError:
        return  # it never came to be


def _use(stage: Stage, agreed: Agreed, machine: Machine) -> Machine:
    tell = stage.tell
    tell.step(4, "Rows are written, the machine restarts, its disks are searched")
    with tell.working(f"psql connects to 127.0.0.1:{stage.port}, by TLS that ends inside") as work:
        _wait_for_database(agreed, machine, work)
    _sql(agreed, ROWS.format(mark=stage.mark))
    tell.by("deployer", "1000 rows written:")
    tell.quote(_sql(agreed, SHOW))
    with tell.working("stop, as by the power button"):
        machine.stop()
    machine = _up(stage, agreed.specification, "start again, with the same disk")
    with tell.working("psql connects again") as work:
        _wait_for_database(agreed, machine, work)
    count = _sql(agreed, COUNT.format(mark=stage.mark))
    if count != ["1000"]:
        raise DemoError(f"of 1000 rows {count} are there after the restart")
    tell.held("all 1000 rows are there")
    with tell.working("stop"):
        machine.stop()
    _search_disks(stage, agreed, machine)
    return machine


def _wait_for_database(agreed: Agreed, machine: Machine, work: Callable[[str], None]) -> None:
    end = time.monotonic() + DATABASE_PATIENCE
    while True:
        try:
            _sql(agreed, "SELECT 1;")
            return
        except DemoError as error:
            if not machine.running or time.monotonic() > end:
                raise DemoError(f"the database does not answer: {error.cause}", machine.last_lines()) from None
            work(error.cause)
            time.sleep(0.5)


def _sql(agreed: Agreed, text: str) -> list[str]:
    """Give the deployer's client some SQL; return its answer, a line a row."""
    done = subprocess.run(
        ["psql", "--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        input=text.encode(),
        capture_output=True,
        env=dict(agreed.client),
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DemoError(f"psql: {said[-1] if said else done.returncode}")
    return done.stdout.decode().splitlines()


def _search_disks(stage: Stage, agreed: Agreed, machine: Machine) -> None:
    """Read all that the infrastructure has, byte by byte."""
    tell = stage.tell
    disk = agreed.specification.data[0].path
    files = [disk, *sorted(path for path in machine.directory.iterdir() if path.is_file())]
    size = sum(min(path.stat().st_size, path.stat().st_blocks * 512) for path in files)
    tell.by("infrastructure", f"reads its disks and all it has of the machine: {len(files)} files, {size / 1e6:.0f} MB")
    # What may be seen is looked for too: a search that finds nothing at all would prove nothing.
    seen = {
        "a LUKS header": b"LUKS\xba\xbe",
        "the sealed section": parse_contract(agreed.contract).workload[:80].encode(),
    }
    with tell.working(f"searching for {len(stage.hidden)} secrets, as they are, in hexadecimal, in base64") as work:
        found = search(files, {**stage.hidden, **seen}, work.part)
    secret = [each for each in found if each.name in stage.hidden]
    if secret:
        raise DemoError(f"{secret[0].name} stands in {secret[0].path.name} at byte {secret[0].offset}")
    places = {(each.name, each.path.name) for each in found}
    expected = {("a LUKS header", disk.name), ("a LUKS header", "root.img"), ("the sealed section", "cidata.img")}
    if not expected <= places:
        raise DemoError(f"the search should have found {sorted(expected - places)}")
    names = dict.fromkeys(name.split(":")[0] for name in stage.hidden)
    tell.held(f"found nowhere: {', '.join(names)}")
    tell.held("found, as it should be: LUKS headers on both encrypted disks, and the sealed contract")


# ------------------------------------------------------------------------------------------------------ 5: the logs


def _read_logs(stage: Stage, agreed: Agreed) -> None:
    tell = stage.tell
    tell.step(5, "The logs have arrived at the deployer's backend")
    wanted = ("HPL01010I", "HPL02001I", "HPL10001I", "a new database has been made", "ready to accept connections")
    lines = [agreed.logs.wait_for(text) for text in wanted]
    tell.quote(line.partition(" ")[2] for line in lines)
    if not all(f" {stage.name} " in line for line in lines) or "database" not in lines[-1].split(": ")[0]:
        raise DemoError("the lines do not say which machine and which container they come from")
    tell.held(f"{len(agreed.logs.lines())} lines of the services and of the container, by mutual TLS")
    if found := search([agreed.logs.file], stage.hidden):
        raise DemoError(f"{found[0].name} stands in the logs")
    tell.held("no secret in any of them")


# ----------------------------------------------------------------------------------------------------- 6: the record


def _audit(stage: Stage, agreed: Agreed, machine: Machine, keep: Path | None) -> Verdict:
    tell, image = stage.tell, agreed.image.path
    tell.step(6, "The auditor opens the record and verifies it")
    record = stage.place("auditor") / "record"
    record.mkdir()
    for name, content in machine.record().items():
        _write(record / name, content)
    sealed = (record / "se-checksums.txt.enc").read_bytes()
    if search([record / "se-checksums.txt.enc"], {"a name in it": b"contract:workload"}):
        raise DemoError("the record is not sealed")
    tell.by(
        "auditor", f"the record came sealed, [dim]{sealed[:40].decode()}…[/], and opens with the auditor's key alone"
    )
    volume = (machine.directory / "cidata.img").read_bytes()
    verdict = verify(
        sealed,
        (record / "se-signature.bin").read_bytes(),
        (image / "attestation.crt").read_bytes(),
        time=datetime.datetime.now(datetime.UTC),
        issuers=[(image / name).read_bytes() for name in ("intermediate.crt", "root.crt")],
        crls=[(image / "crl.pem").read_bytes()],
        reference=(image / "reference-values.json").read_bytes(),
        contract=(stage.place("auditor") / "contract.yaml").read_bytes(),
        volume=volume,
        key=agreed.auditor_key,
    )
    if not verdict.holds:
        raise DemoError(verdict.summary())
    if not verdict.development:
        raise DemoError("a record of the software ultravisor must say that it is one")
    tell.held(
        f"{verdict.count(Outcome.PROVED)} lines proved: chain, signature, image, contract, volume; the table stands below"
    )
    if keep is not None:
        _keep(keep, agreed, record, volume, machine, verdict)
    return verdict


def _keep(keep: Path, agreed: Agreed, record: Path, volume: bytes, machine: Machine, verdict: Verdict) -> None:
    from casemate.attestation.html import page

    try:
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(record, keep / "record")
        _write(keep / "auditor.key", _pem(agreed.auditor_key))
        _write(keep / "contract.yaml", agreed.contract)
        _write(keep / "cidata.img", volume)
        _write(keep / "console.txt", machine.console().encode())
        _write(keep / "logs.txt", agreed.logs.file.read_bytes())
        _write(keep / "record.html", page(verdict).encode())
    except OSError as error:
        raise DemoError(f"can't be written: {error.strerror}", "name another directory", str(keep)) from None


# ----------------------------------------------------------------------------------------------------- 7: the attack


def _attack(stage: Stage, agreed: Agreed) -> None:
    """Swap the provider's section for another that is sealed just as well. The machine must refuse, the disk stay as it is."""
    tell = stage.tell
    tell.step(7, "An attack: the provider's section is swapped for another")
    disk = agreed.specification.data[0].path
    theirs: parties.Section = {
        "type": "workload",
        "compose": {
            "archive": write_archive({"docker-compose.yaml": THIEF.format(digest="5" * 64).encode()}),
        },
        "volumes": {"data": {"mount": "/mnt/data", "seed": parties.new_seed()}},
    }
    certificate = agreed.image.encryption_certificate.read_bytes()
    swapped = replace(parse_contract(agreed.contract), workload=parties.seal(theirs, certificate))
    contract = write_contract(swapped)
    if problems_stop([*check_workload(theirs), *check_contract(contract, certificate)]):
        raise DemoError("the attack is no good: the swapped section has errors")
    tell.by("infrastructure", "seals a section of its own: anyone may, with the public certificate; it mounts the disk")
    before = _digest(disk)
    specification = replace(agreed.specification, name=f"{stage.name}-attack", contract=contract, ports=())
    stage.stack.callback(_forget, specification.name)
    refused: MachineError | None = None
    with tell.working("start with the swapped section") as work:
        try:
            up(specification, progress=work, timeout=600.0)
        except MachineError as error:
            refused = error
    if refused is None:
        raise DemoError("the machine started with a swapped section")
    machine = get(specification.name)
    reason = next((line for line in machine.console().splitlines() if "HPL12001E" in line), "")
    if machine.running or not reason or "HPL10001I" in machine.console():
        raise DemoError("the machine did not refuse the swapped section as it should", refused.diagnostics())
    for line in (reason, next((line for line in machine.console().splitlines() if "HPL10000E" in line), "")):
        tell.say(f"[red]{escape(_message(line))}[/]")
    tell.held("the machine refused, said why, and stopped")
    if _digest(disk) != before:
        raise DemoError("the data disk was written to")
    tell.held("not a byte of the data disk has changed")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------- the end


def _gone(stage: Stage) -> None:
    """Look whether really nothing is left: no directory, no machine, nobody at a port."""
    left = [stage.directory] if stage.directory.exists() else []
    left += [each.directory for each in all_machines() if each.name in (stage.name, f"{stage.name}-attack")]
    if left:
        raise DemoError("is still there", "remove it", str(left[0]))
    for port in (stage.port, *stage.ports):
        with socket.socket() as probe:
            probe.settimeout(2.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise DemoError(f"something still listens on port {port} of the loopback address")
    stage.tell.held("everything that was started has been stopped, and nothing of it is left")


def _conclude(tell: Narrator, verdict: Verdict, keep: Path | None, image: Path) -> None:
    from casemate.cli.attestation import show_verdict

    tell.console.print()
    tell.console.rule("[bold]What the auditor reads[/]", align="left", style="dim")
    show_verdict(verdict)
    tell.console.print(f"\n[bold]All of it held.[/] [dim]{time.monotonic() - tell.began:.0f} s[/]")
    if keep is not None:
        tell.console.print(f"Contract, record and page are in {keep}. To verify the record again:")
        words = f"--record {keep}/record --image {image} --contract {keep}/contract.yaml --key {keep}/auditor.key"
        tell.console.print(f"  casemate attestation verify {words}", soft_wrap=True, highlight=False)


def _write(path: Path, content: bytes) -> None:
    """Write a file for its owner alone."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_parts(name: str, pem: bytes) -> dict[str, bytes]:
    """Return what of a private key to search for: a line of its text, and the number that is the secret."""
    key = serialization.load_pem_private_key(pem, None)
    if isinstance(key, rsa.RSAPrivateKey):
        number = key.private_numbers().p
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        number = key.private_numbers().private_value
    else:
        raise TypeError("RSA or elliptic curve")
    binary = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return {f"{name}: text": pem.splitlines()[2], f"{name}: number": binary}


def _image_keys(image: ImageDirectory) -> dict[str, bytes]:
    """Return what to search for of the image's own keys. Only the ultravisor can open the image; here it is software."""
    from casemate.machine.ultravisor import SoftwareUltravisor

    with SoftwareUltravisor.load_or_create().open(image.image) as opened:
        initrd = os.pread(opened.initrd, os.fstat(opened.initrd).st_size, 0)
    pems = re.findall(rb"-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n", initrd)
    if len(pems) != 2:
        raise DemoError("the image does not hold two keys")
    names = ("one of the image's keys", "the other of the image's keys")
    return {part: value for name, pem in zip(names, pems, strict=True) for part, value in _key_parts(name, pem).items()}
