"""The forms of public Hyper Protect contracts, written after them field by field: each is taken without an error.

A sample's name is its path in the repository that the comment above it names. Images have a digest here, seeds the length that
Hyper Protect asks for; keys, hosts and texts are ours.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from contract_kit import Pair

from casemate.contract.archive import write_archive
from casemate.contract.check import Problem, check_contract
from casemate.contract.document import Contract, write_contract
from casemate.contract.signature import sign

IMAGE = "r.example.com/a/app@sha256:" + "0123456789abcdef" * 4
SEED = "seed_of_15_or_more"
LOG_DNA = {"logDNA": {"ingestionKey": "0" * 32, "hostname": "syslog.example.com", "port": 6514}}
LOG_ROUTER = {"logRouter": {"hostname": "1.ingress.example.com", "iamApiKey": "0" * 32, "port": 443}}


@dataclass(frozen=True)
class Sample:
    """``files`` are the archive, of ``compose`` where one is a compose file, else of ``play``.

    ``auditor`` is the ``attestationPublicKey``.
    """

    files: dict[str, str] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    auditor: str = ""

    def contract(self, pair: Pair) -> bytes:
        """Return it with keys and certificates where it has words for them, signed where it has a ``signingKey``."""
        files = {name: text.replace("IMAGE", IMAGE).encode() for name, text in self.files.items()}
        kind = "compose" if any(name.startswith("docker-compose") for name in files) else "play"
        section = {kind: {"archive": write_archive(files)}} if files else {}
        workload = filled({"type": "workload", **section, **self.workload}, pair)
        env = filled({"type": "env", "logging": LOG_DNA, **self.env}, pair)
        signature = sign(workload, env, pair.key) if "signingKey" in self.env else None
        auditor = json.loads(filled(self.auditor, pair)) or None
        return write_contract(Contract(workload, env, auditor, signature))


def filled(value: Any, pair: Pair) -> str:
    certificate, private, public = (text.decode() for text in (pair.certificate, pair.private, pair.public))
    words = {
        "CERTIFICATE": certificate,
        "CERTIFICATE ON ONE LINE": certificate.replace("\n", "\\n"),
        "PRIVATE ON ONE LINE": private.replace("\n", "\\n"),
        "PUBLIC": public,
        "PUBLIC INDENTED": public.replace("\n", "\n  "),
        "PUBLIC ENCODED": base64.b64encode(pair.public).decode(),
        "CERTIFICATE ENCODED": base64.b64encode(pair.certificate).decode(),
    }
    text = json.dumps(value)
    for word, given in words.items():
        text = text.replace(json.dumps(word), json.dumps(given))
    return text


def compose(text: str, **files: str) -> dict[str, str]:
    return {"docker-compose.yml": text, **files}


BUSYBOX = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "busybox"},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": IMAGE,
                "command": ["/bin/sh", "-c"],
                "args": [
                    "while true ; do echo ${name:-World} $(date) | tee -a /data/out ; sleep ${interval:-60} ; done"
                ],
                "envFrom": [{"configMapRef": {"name": "contract.config.map", "optional": False}}],
                "volumeMounts": [{"mountPath": "/data", "name": "data", "readOnly": False}],
            }
        ],
        "restartPolicy": "Never",
        "volumes": [{"name": "data", "hostPath": {"path": "/mnt/data", "type": "Directory"}}],
    },
}

SAMPLES = {
    # ibm-hyper-protect/linuxone-vsi-automation-samples
    "terraform-hpvs/mongodb": Sample(
        compose("""
services:
  mongo:
    image: IMAGE
    ports: ["27017:27017"]
    command: mongod --replSet ${SET_NAME} --bind_ip_all
    environment:
    - SET_NAME=${SET_NAME:-set01}
"""),
        env={"env": {"SET_NAME": "set01", "MONGO_INITDB_ROOT_PASSWORD": "p"}},
    ),
    "terraform-hpvs/postgresql-cluster": Sample(
        compose(r"""
services:
  postgresql:
    image: IMAGE
    ports: ["5432:5432"]
    restart: always
    environment: [POSTGRES_HOST_AUTH_METHOD=trust]
    command:
      - /bin/bash
      - -c
      - |
        entrypoint.sh postgres &
        su postgres -c "psql -c \"CREATE ROLE replica PASSWORD 'pass';\"" -c '\c demo;'
        sed -i '$$a host replication replica all trust' /var/lib/pg_hba.conf
        kill %1
        wait
""")
    ),
    "terraform-hpvs/attestation": Sample(
        compose("""
version: '3.0'
services:
  busybox:
    image: IMAGE
    command: |
      curl -X "PUT" "${S3_URL}" -H "Authorization: ${AUTHORIZATION}" -d @/var/hyperprotect/se-checksums.txt.enc
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
    environment: [AUTHORIZATION, S3_URL]
"""),
        env={"env": {"AUTHORIZATION": "Bearer x", "S3_URL": "https://s3.example.com/b"}},
        auditor="PUBLIC",
    ),
    "terraform-hpvs/dynamic-registry": Sample(
        compose("services: {app: {image: '${REGISTRY}/app@sha256:" + "0" * 64 + "'}}"),
        env={"auths": {"docker.io": {"username": "u", "password": "p"}}, "env": {"REGISTRY": "docker.io/sample"}},
    ),
    "terraform-hpvs/log-encryption": Sample(
        compose(
            """
services:
  logging:
    image: IMAGE
    volumes: ["./key.pub:/var/logging/logging.pub:ro", "./bin/:/var/logging/bin/:ro"]
    command: bash /var/logging/bin/example.sh
""",
            **{"key.pub": "k", "bin/example.sh": "#!/bin/bash\n"},
        ),
        env={"logging": LOG_ROUTER},
    ),
    "terraform-hpvs/outbound-example": Sample(
        compose("services: {app: {image: IMAGE, privileged: true}}"),
        {"auths": {"r.example.com": {"password": "k", "username": "iamapikey"}}},
    ),
    "terraform-hpvs/sample-paynow": Sample(
        {
            "pod.yml": """
apiVersion: v1
kind: Pod
metadata: {name: paynow}
spec:
  containers:
  - name: paynow
    image: IMAGE
    ports: [{containerPort: 8080, hostPort: 8080, protocol: tcp}]
    volumeMounts: [{name: hyperprotect, mountPath: /var/hyperprotect/}]
  volumes: [{name: hyperprotect, hostPath: {path: /var/hyperprotect/}}]
"""
        },
        env={"env": {"CERT": "a\nb\n", "KEY": "c"}},
    ),
    "terraform-hpvs/multi-container": Sample(
        {
            "pod_postgres.yaml": """
apiVersion: v1
kind: Pod
metadata: {name: postgresdb}
spec:
  containers:
  - name: postgres
    image: IMAGE
    env:
      - name: METHOD
        valueFrom: {configMapKeyRef: {name: env-user, key: METHOD}}
    ports: [{containerPort: 5432, hostPort: 5432}]
    restartpolicy: Always
""",
            "configmaps.yaml": "{apiVersion: v1, kind: ConfigMap, metadata: {name: env-user}, data: {METHOD: trust}}",
        }
    ),
    # ibm-hyper-protect/k8s-operator-hpcr
    "samples/contracts/busybox": Sample(
        compose(
            """
---
version: '3.0'
services:
  busybox:
    image: IMAGE
    command: |
      sh /var/lib/busybox/run.sh
    volumes: ["./run.sh:/var/lib/busybox/run.sh:ro", "/etc/machine-id:/var/lib/busybox/machine-id:ro"]
""",
            **{"run.sh": "#!/bin/sh\n"},
        )
    ),
    "samples/contracts/busybox-with-data-disk": Sample(
        compose("""
services:
  busybox:
    image: IMAGE
    volumes: ["/mnt/busybox:/srv/busybox"]
    command: |
      echo "Hello at $(date)" >> /srv/busybox/log.txt && cat /srv/busybox/log.txt
"""),
        {"volumes": {"busybox": {"seed": SEED, "mount": "/mnt/busybox"}}},
        {"volumes": {"busybox": {"seed": SEED}}},
    ),
    # ibm-hyper-protect/samples
    "confidential-ai/terraform/compose": Sample(
        compose(
            """
services:
  server:
    image: IMAGE
    user: "0"
    privileged: true
    shm_size: 1g
    command: bash install.sh
    ulimits: {memlock: -1, stack: 67108864}
    environment: ["B64_USER=${B64_USER}"]
    volumes: ["${PWD}/install.sh:/home/user/install.sh"]
  attestation-sidecar:
    image: IMAGE
    container_name: attestation-sidecar
    ports: ['80:80']
    volumes: ["/var/hyperprotect/se-checksums.txt:/var/hyperprotect/se-checksums.txt"]
""",
            **{"install.sh": "#!/bin/sh\n"},
        ),
        env={"env": {"B64_USER": "x"}, "logging": LOG_ROUTER},
    ),
    "log-encryption/pods": Sample(
        {
            "pods.yaml": """
apiVersion: v1
kind: Pod
metadata: {name: logging-pod-1}
spec:
  containers:
    - name: logging
      image: IMAGE
      command: ["bash ", /var/logging/bin/example.sh]
      volumeMounts:
        - {name: logging-pub, mountPath: /var/logging/logging.pub, readOnly: true}
        - {name: logging-bin, mountPath: /var/logging/bin, readOnly: true}
  restartpolicy: Always
  volumes:
    - {name: logging-pub, hostPath: {path: ./logging.pub, type: File}}
    - {name: logging-bin, hostPath: {path: ./bin/, type: Directory}}
""",
            "logging.pub": "k",
            "bin/example.sh": "#!/bin/bash\n",
        }
    ),
    # ibm-hyper-protect/paynow-website
    "docker-compose.yml": Sample(
        compose(
            """
version: '0'
services:
  frontend:
    image: IMAGE
    ports: ["3000:3000"]
    volumes: ["files:/app/files"]
    env_file: [./app.env]
    networks: {front: {ipv4_address: 172.16.238.2}}
volumes: {files: {driver: local}}
networks:
  front: {driver: bridge, ipam: {driver: default, config: [{subnet: 172.16.238.0/24, gateway: 172.16.238.1}]}}
""",
            **{"app.env": "A=1\n"},
        )
    ),
    # ibm-cloud-docs/vpc
    "about-contract.md, simple contract": Sample(
        {**compose("services: {app: {image: IMAGE}}"), "docker-compose.yaml": "services: {app: {image: IMAGE}}"}
    ),
    "about-contract.md, templates": Sample(
        workload={
            "play": {
                "templates": [
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": "busybox"},
                        "spec": {
                            "initContainers": [{"name": "init", "image": IMAGE}],
                            "containers": [
                                {
                                    "name": "main",
                                    "image": "{{ .Env.REGISTRY }}/b@sha256:" + "0" * 64,
                                    "command": ["env"],
                                }
                            ],
                            "restartPolicy": "Never",
                        },
                    }
                ]
            }
        },
        env={"env": {"REGISTRY": "r.example.com"}},
    ),
    "about-contract.md, volumes": Sample(
        compose("""
version: '3'
services:
  nginx: {image: IMAGE, privileged: true, user: 0:0, restart: always, ports: [80:80], environment: {KEY1: "${value1}"}}
"""),
        {
            "volumes": {
                "test1": {"filesystem": "ext4", "mount": "/mnt/data", "seed": SEED},
                "test2": {"filesystem": "ext4", "mount": "/var/hyperprotect", "seed": SEED},
                "test3": {"filesystem": "btrfs", "mount": "/mnt/test3", "seed": SEED},
            }
        },
        {
            "env": {"value1": "abc"},
            "volumes": {
                "test1": {"apiKey": "k", "volumeID": "r006-f7b44467-01af", "seed": SEED},
                "test2": {"apiKey": "k", "volumeName": "volume2", "seed": SEED},
                "test3": {
                    "seed": SEED,
                    "kmsTimeout": 10,
                    "kms": [{"apiKey": "k", "crn": "crn:v1:bluemix:public:kms:eu-de:a/0:1:key:6", "type": "public"}],
                },
            },
        },
    ),
    # ibm-wsc/ConfidentialComputingOnLinuxONE
    "docs/lab/cloud/lab1": Sample(
        workload={"play": {"resources": [BUSYBOX]}, "volumes": {"data": {"mount": "/mnt/data", "seed": SEED}}},
        env={"volumes": {"data": {"seed": SEED}}, "env": {"name": "Student", "interval": "30"}},
    ),
    "docs/lab/paynow": Sample(
        compose("{version: '3', services: {paynow: {image: IMAGE, ports: ['8443:8443']}}}"),
        env={
            "logging": {
                "syslog": {
                    "hostname": "192.168.22.80",
                    "port": 6514,
                    "server": "CERTIFICATE ON ONE LINE",
                    "cert": "CERTIFICATE ON ONE LINE",
                    "key": "PRIVATE ON ONE LINE",
                }
            }
        },
    ),
    # IBM/dapcs-oso-plugins contracts/ripple, and jyg007/dapcs-oso-framework
    "contracts/backend": Sample(
        compose(
            """
version: '3.6'
services:
  bridge:
    image: IMAGE
    environment: {Ids__0: 11111111-1111, Phrase: "{{EMPTY}}", LEVEL: 6, UNSET: }
    restart: always
    volumes: ["/mnt/data:/App_Data"]
  connect:
    image: IMAGE
    volumes: ["./ibm.cfg:/app/ibm.cfg:Z", "./cert:/data/cert:ro,Z"]
networks: {default: }
""",
            **{"ibm.cfg": "", "cert/ca.pem": ""},
        ),
        {"images": {}, "volumes": {"vault_vol": {"mount": "/mnt/data", "seed": SEED}}},
        {"volumes": {"vault_vol": {"seed": SEED}}, "cacerts": [{"certificate": "CERTIFICATE ENCODED"}]},
    ),
    "contracts/backend, a pod": Sample(
        {
            "play.yml": """
apiVersion: v1
kind: Pod
metadata: {name: backend-pod}
spec:
  containers:
    - name: backend_plugin_app
      image: IMAGE
      command: [start-component]
      envFrom: [{configMapRef: {name: contract.config.map, optional: false}}]
      env: [{name: app__name, value: "backend_plugin_app"}]
      volumeMounts: [{mountPath: /data, name: vault_vol}]
    - name: ep11server
      image: IMAGE
      securityContext: {runAsUser: 0, privileged: true}
      ports: [{containerPort: 9876, hostPort: 9876}]
      volumeMounts: [{mountPath: /cfg, name: srv1-volume}, {name: z90crypt, mountPath: /dev/z90crypt}]
  volumes:
    - {hostPath: {path: /data, type: Directory}, name: vault_vol}
    - {hostPath: {path: ./srv1, type: Directory}, name: srv1-volume}
    - {name: z90crypt, hostPath: {path: /dev/z90crypt, type: CharDevice}}
""",
            "srv1/server.yaml": "",
        },
        {"volumes": {"vault_vol": {"mount": "/data", "seed": SEED}}},
        {"volumes": {"vault_vol": {"seed": SEED}}, "env": {"certs__ca": "c"}},
    ),
    # IBM/dap-blueprint
    "terraform/compose_templates": Sample(
        compose("""
version: '2.4'
x-images:
  - &base IMAGE
networks: {dap: {external: false, driver: bridge, ipam: {driver: default, config: [{subnet: 192.168.10.0/24}]}}}
services:
  signing-service:
    image: *base
    hostname: ss-host
    networks: [dap]
    ports: ["${SSH_PORT}:22", "${PORT}:${PORT}"]
    environment: {MONGO_MAJOR: 7.0}
"""),
        env={"env": {"SSH_PORT": "2222", "PORT": "5001"}},
    ),
    # IBM/hyper-protect-tutorials
    "configuration-files/vault-workload.yaml": Sample(
        {
            "pod.yml": """
apiVersion: v1
kind: Pod
metadata: {name: vault}
spec:
  securityContext: {privileged: false}
  containers:
    - name: vault
      image: IMAGE
      securityContext: {privileged: false}
      volumeMounts: [{name: data, mountPath: "/vault/data:Z"}]
      ports: [{containerPort: 8200, hostPort: 8200}]
  volumes: [{name: data, hostPath: {path: /mnt/data, type: DirectoryOrCreate}}]
  restartPolicy: Never
"""
        },
        {"volumes": {"test": {"mount": "/mnt/data", "seed": SEED}}},
        {"volumes": {"test": {"seed": SEED}}},
    ),
    # MetacoSA/terraform
    "deployments/ibm/LinuxONE/notary": Sample(
        compose(r"""
services:
  notary:
    image: ${repository}@sha256:${sha}
    environment: {DIR: "/data/anti-rewind", URI: "${endpoint}"}
    entrypoint: [ "/bin/bash", "-c" ]
    command:
      - |
        # echo "address" >> /etc/hosts
        /opt/entrypoint.sh
    volumes: ["/mnt/data:/data", ".cert:/opt/cert:ro"]
"""),
        {
            "volumes": {"data": {"mount": "/mnt/data", "seed": SEED}},
            "env": {"repository": "r.example.com/n", "sha": "a" * 64},
        },
        {
            "volumes": {"data": {"seed": SEED}},
            "env": {"endpoint": "https://h.example.com"},
            "logging": {"syslog": {"hostname": "syslog.example.com", "port": 6514, "server": "CERTIFICATE"}},
        },
    ),
    # IBM/full-temperature-wallet-solution
    "build": Sample(
        compose(
            "services: {signing: {image: 'r.example.com/s:v1', volumes: ['/mnt/secure_enclave:/etc/secure_enclave']}}"
        ),
        {
            "images": {
                "dct": {"r.example.com/s": {"notary": "https://notary.example.com", "publicKey": "PUBLIC ENCODED"}}
            },
            "volumes": {"volume1": {"mount": "/etc/secure_enclave", "seed": SEED, "filesystem": "btrfs"}},
        },
        {"volumes": {"volume1": {"seed": SEED}}},
    ),
    # ibm-hyper-protect/contract-schema-go
    "samples/contracts/simple.yml": Sample(
        compose("services: {app: {image: IMAGE}}"),
        env={"signingKey": "PUBLIC"},
        auditor="PUBLIC INDENTED",
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_form_of_a_public_sample_is_taken(name: str, small: Pair) -> None:
    problems = check_contract(SAMPLES[name].contract(small))
    assert list(map(str, filter(stops, problems))) == []


def stops(problem: Problem) -> bool:
    """Stops a machine, or is taken otherwise than its author may think."""
    return problem.severity == "error" or problem.id == "HPL08013W"
