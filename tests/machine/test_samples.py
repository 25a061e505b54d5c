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
from pathlib import Path

import names
import pytest
from surroundings import PATIENCE, World

from casemate.contract.archive import write_archive
from casemate.demo import images, parties
from casemate.demo.logservers import CloudLogs, SyslogServer
from casemate.demo.pki import Authority
from casemate.machine.machines import start, up

pytestmark = pytest.mark.machines
MEZMO = "syslog-a.eu-gb.logging.cloud.ibm.com"
CLOUD_LOGS = "5c2d6b69-c7f0-41bd-b69b-240695369d6e.ingress.us-south.logs.cloud.ibm.com"
IAM = "iam.cloud.ibm.com"
API_KEY = "ab00e3c09p1d4ff7fff9f04c12183413"
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


def test_the_sample_with_a_dynamic_registry_says_its_word_at_mezmo_and_ends(world: World, tmp_path: Path) -> None:
    authority, key = Authority.create("Log authority"), "0123456789abcdef" * 2
    digest = world.registry.push(images.build(images.BUSYBOX), "hpse-docker-hello-world-s390x")
    compose = f"services:\n  helloworld:\n    image: ${{REGISTRY}}/hpse-docker-hello-world-s390x@{digest}\n    \n"
    env = {
        "type": "env",
        "logging": {"logDNA": {"ingestionKey": key, "hostname": MEZMO}},
        "auths": login(world),
        "env": {"REGISTRY": world.registry.host},
        "cacerts": authorities(world, authority),
    }
    workload = {
        "type": "workload",
        "compose": {"archive": write_archive({"docker-compose.yml": compose.encode()})},
    }
    with (
        names.server(MEZMO),
        SyslogServer.running(tmp_path / "logs", authority, names=(MEZMO,), port=6514) as logs,
    ):
        machine = start(world.specification("t-sample-a", sealed(world, workload, env), network_config=names.CONFIG))
        try:
            frame = logs.wait_for("HPL08010I: service helloworld is complete", PATIENCE).decode()
            assert f'[logdna@48950 key="{key}"]' in frame
            logs.wait_for("HPL10002I", 60)
            assert key not in machine.console() and "HPL10000E" not in machine.console()
        finally:
            machine.down()


def test_the_sample_of_a_pod_with_a_database_sends_its_lines_to_cloud_logs(world: World, tmp_path: Path) -> None:
    authority = Authority.create("Log authority")
    digest = world.registry.push(images.build(images.POSTGRES), "postgres", "12")
    name = f"{world.registry.host}/postgres:12@{digest}"
    files = {"pod_postgres.yaml": POD.replace("IMAGE", name), "configmaps_postgres.yaml": CONFIG_MAP}
    workload = {
        "type": "workload",
        "auths": login(world),
        "play": {"archive": write_archive({path: text.encode() for path, text in files.items()})},
    }
    env = {
        "type": "env",
        "logging": {"logRouter": {"hostname": CLOUD_LOGS, "iamApiKey": API_KEY}},
        "cacerts": authorities(world, authority),
    }
    with (
        names.server(CLOUD_LOGS, IAM),
        CloudLogs.running(tmp_path / "logs", authority, API_KEY, names=(IAM, CLOUD_LOGS), port=443) as logs,
    ):
        contract = sealed(world, workload, env)
        machine = up(world.specification("t-sample-b", contract, network_config=names.CONFIG), timeout=PATIENCE)
        try:
            entry = logs.wait_for("database system is ready to accept connections", 180)
            assert entry["applicationName"] == "container" and "postgres" in entry["subsystemName"]
            assert entry["category"].startswith(name.partition("@")[0].rpartition(":")[0])
            assert re.fullmatch("[0-9a-f]{12}", entry["threadId"])
            assert logs.wait_for("HPL10001I", 60)["applicationName"] == "casemate"
            logs.wait_for("HPL01010I", 10)
            assert any(each["subsystemName"] == "kernel" for each in logs.entries)
            assert API_KEY not in machine.console() + str(logs.entries)
        finally:
            machine.down()
