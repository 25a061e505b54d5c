"""Contracts of public Hyper Protect samples run as they are: what stands in a place that is not ours is put beside the machine.

Their forms are those of ``ibm-hyper-protect/linuxone-vsi-automation-samples`` (``terraform-hpvs/dynamic-registry`` and
``multi-container``) and of ``ibm-hyper-protect/contract-go`` (``samples/simple_contract.yaml``), field by field as their tools
write them. Log hosts keep their public names, which a name server of the test leads to stand-ins. Three things differ: the
registry's address; the images, which are of Debian's packages, and so have other digests; and ``env.cacerts``, since no public
authority signs the stand-ins' certificates.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import names
import pytest
from surroundings import PATIENCE, World

from casemate.contract.archive import write_archive
from casemate.demo import images, parties
from casemate.demo.logservers import CloudLogs, SyslogServer
from casemate.demo.pki import Authority
from casemate.machine.machines import Machine, start, wait

pytestmark = [pytest.mark.machines, pytest.mark.long]
MEZMO = "syslog-a.eu-gb.logging.cloud.ibm.com"
CLOUD_LOGS = "5c2d6b69-c7f0-41bd-b69b-240695369d6e.ingress.us-south.logs.cloud.ibm.com"
IAM = "iam.cloud.ibm.com"
API_KEY = "ab00e3c09p1d4ff7fff9f04c12183413"
INGESTION_KEY = "0123456789abcdef" * 2
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: postgresdb
spec:
  containers:
  - name: postgres
    image: IMAGE
    env:
      - name: POSTGRES_HOST_AUTH_METHOD
        valueFrom: {configMapKeyRef: {name: env-user, key: POSTGRES_HOST_AUTH_METHOD}}
      - name: POSTGRES_PASSWORD
        valueFrom: {configMapKeyRef: {name: env-user, key: POSTGRES_PASSWORD}}
    ports:
      - containerPort: 5432
        hostPort: 5432
    restartpolicy: Always
"""
CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: env-user}
data: {POSTGRES_HOST_AUTH_METHOD: trust, POSTGRES_PASSWORD: passw0rd}
"""


def authorities(world: World, logs: Authority) -> list[dict[str, str]]:
    return [{"standins": base64.b64encode(world.registry.authority + logs.certificate).decode()}]


def login(world: World) -> dict[str, dict[str, str]]:
    return {world.registry.host: {"username": world.registry.user, "password": world.registry.password}}


def sealed(world: World, workload: parties.Section, env: parties.Section) -> bytes:
    """As the samples' provider does: both sections sealed and signed with a key made for it, which ``env`` names."""
    key = parties.new_key(2048)
    env = env | {"signingKey": parties.public_pem(key).decode()}
    texts = [parties.seal(section, world.certificate) for section in (workload, env)]
    return parties.contract_of(texts[0], texts[1], signing_key=key)


@dataclass(frozen=True)
class Samples:
    """Both machines, each with its log backend."""

    hello: Machine
    mezmo: SyslogServer
    pod: Machine
    cloud: CloudLogs


@pytest.fixture(scope="module")
def samples(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """Start both at once; nothing is waited for."""
    directory, authority = tmp_path_factory.mktemp("samples"), Authority.create("Log authority")
    with ExitStack() as stack:
        stack.enter_context(names.server(MEZMO, CLOUD_LOGS, IAM))
        mezmo = SyslogServer.running(directory / "mezmo", authority, names=(MEZMO,), port=6514)
        cloud = CloudLogs.running(directory / "cloud", authority, API_KEY, names=(IAM, CLOUD_LOGS), port=443)
        backends = stack.enter_context(mezmo), stack.enter_context(cloud)
        machines = []
        for name, contract in (("a", hello(world, authority)), ("b", pod(world, authority))):
            machines.append(start(world.specification(f"t-sample-{name}", contract, network_config=names.CONFIG)))
            stack.callback(machines[-1].down)
        yield Samples(machines[0], backends[0], machines[1], backends[1])


def hello(world: World, authority: Authority) -> bytes:
    """``terraform-hpvs/dynamic-registry``."""
    digest = world.registry.push(images.build(images.BUSYBOX), "hpse-docker-hello-world-s390x")
    compose = f"services:\n  helloworld:\n    image: ${{REGISTRY}}/hpse-docker-hello-world-s390x@{digest}\n    \n"
    env = {
        "type": "env",
        "logging": {"logDNA": {"ingestionKey": INGESTION_KEY, "hostname": MEZMO}},
        "auths": login(world),
        "env": {"REGISTRY": world.registry.host},
        "cacerts": authorities(world, authority),
    }
    archive = write_archive({"docker-compose.yml": compose.encode()})
    return sealed(world, {"type": "workload", "compose": {"archive": archive}}, env)


def pod(world: World, authority: Authority) -> bytes:
    """The pod of ``terraform-hpvs/multi-container`` under the ``env`` of ``samples/simple_contract.yaml``."""
    digest = world.registry.push(images.build(images.POSTGRES), "postgres", "12")
    name = f"{world.registry.host}/postgres:12@{digest}"
    files = {"pod_postgres.yaml": POD.replace("IMAGE", name), "configmaps_postgres.yaml": CONFIG_MAP}
    archive = write_archive({path: text.encode() for path, text in files.items()})
    workload = {"type": "workload", "auths": login(world), "play": {"archive": archive}}
    env = {
        "type": "env",
        "logging": {"logRouter": {"hostname": CLOUD_LOGS, "iamApiKey": API_KEY}},
        "cacerts": authorities(world, authority),
    }
    return sealed(world, workload, env)


def test_the_sample_with_a_dynamic_registry_is_told_of_at_mezmo_and_ends(samples: Samples) -> None:
    frame = samples.mezmo.wait_for("HPL08010I: service helloworld is complete", PATIENCE).decode()
    assert f'[logdna@48950 key="{INGESTION_KEY}"]' in frame
    samples.mezmo.wait_for("HPL10002I", 60)
    console = samples.hello.console()
    assert INGESTION_KEY not in console and "HPL10000E" not in console


def test_the_sample_of_a_pod_with_a_database_sends_its_lines_to_cloud_logs(samples: Samples, world: World) -> None:
    wait(samples.pod, timeout=PATIENCE)
    entry = samples.cloud.wait_for("database system is ready to accept connections", 180)
    assert entry["applicationName"] == "container" and "postgres" in entry["subsystemName"]
    assert entry["category"].startswith(f"{world.registry.host}/postgres")
    assert re.fullmatch("[0-9a-f]{12}", entry["threadId"])
    assert samples.cloud.wait_for("HPL10001I", 60)["applicationName"] == "casemate"
    samples.cloud.wait_for("HPL01010I", 10)
    assert any(each["subsystemName"] == "kernel" for each in samples.cloud.entries)
    assert API_KEY not in samples.pod.console() + str(samples.cloud.entries)
