"""What the services of the layer decide: contract, passphrases, logins, logging, signature, images, catch."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract_kit import Encoding, Pair, tar
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract import signature as signatures
from casemate.contract.archive import write_archive
from casemate.contract.passphrase import passphrase
from casemate.contract.workload import Service
from casemate.guest import (
    catch,
    container,
    contract,
    imagepolicy,
    logging,
    lukspassphrase,
    registryauth,
    signature,
    state,
    web,
)
from casemate.guest.report import Stop, run, say

DIGEST = "sha256:" + "0123456789abcdef" * 4
COMPOSE = f"services: {{db: {{image: '${{REGISTRY}}/db@{DIGEST}', environment: {{P: '${{PASSWORD}}'}}}}}}\n"
POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: db}}
spec: {{hostNetwork: perhaps, containers: [{{name: db, image: 'r.example.com/db@{DIGEST}'}}]}}
"""
Section = dict[str, Any]


def archive(text: str = COMPOSE) -> str:
    return write_archive({"docker-compose.yaml": text.encode()})


def gzipped(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data)).decode()


def workload(**changed: Any) -> Section:
    return {
        "type": "workload",
        "compose": {"archive": archive()},
        "auths": {"r.example.com:5000": {"username": "MARKuser", "password": "MARKpassword1"}},
        "volumes": {"data": {"seed": "MARKseedworkload", "previousSeed": "MARKseedworkload-old"}},
        "env": {"PASSWORD": "of the workload", "BOTH": "workload"},
        **changed,
    }


def env(pair: Pair, **changed: Any) -> Section:
    certificate, key = pair.certificate.decode(), pair.private.decode()
    return {
        "type": "env",
        "logging": {"syslog": {"hostname": "log.example.com", "server": certificate, "cert": certificate, "key": key}},
        "auths": {"https://index.docker.io/v1/": {"username": "MARKuser2", "password": "MARKpassword2"}},
        "volumes": {"data": {"seed": "MARKseedenvenvenv", "previousSeed": "MARKseedenvenvenv-old"}},
        "env": {"REGISTRY": "r.example.com:5000", "BOTH": "env"},
        **changed,
    }


def deliver(*sections: Section) -> None:
    for name, section in zip(("workload", "env"), sections, strict=True):
        (state.CONTRACT / name).write_text(yaml.safe_dump(section))


def stopped(service: Any, *arguments: Any) -> Stop:
    with pytest.raises(Stop) as stop:
        service(*arguments)
    return stop.value


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- contract


def test_a_contract_is_split_and_its_text_is_gone(guest: Path, pair: Pair) -> None:
    deliver(workload(), env(pair))
    contract.service()
    assert list(state.CONTRACT.iterdir()) == []
    assert state.read_json(state.SEEDS) == {
        "data": {
            "seed": {"workload": "MARKseedworkload", "env": "MARKseedenvenvenv"},
            "previousSeed": {"workload": "MARKseedworkload-old", "env": "MARKseedenvenvenv-old"},
        }
    }
    assert state.section("workload")["volumes"] == {"data": {}}
    assert state.read_json(state.ENVIRONMENT) == {
        "PASSWORD": "of the workload",
        "REGISTRY": "r.example.com:5000",
        "BOTH": "workload",
    }


def test_seeds_are_in_one_file_and_no_other(guest: Path, pair: Pair) -> None:
    deliver(workload(), env(pair))
    contract.service()
    assert [name for name, content in everything(guest).items() if b"MARKseed" in content] == [
        "run/casemate/seeds.json"
    ]


def test_api_keys_of_key_services_are_in_one_file_and_no_other(guest: Path, pair: Pair) -> None:
    full, crn = env(pair), "crn:v1:bluemix:public:kms:eu-de:a/1:22222222-aaaa:key:33333333-bbbb"
    full["volumes"]["data"] |= {"kms": [{"apiKey": "MARKapikey", "crn": crn, "type": "public"}], "kmsTimeout": 5}
    deliver(workload(), full)
    contract.service()
    held = [name for name, content in everything(guest).items() if b"MARKapikey" in content]
    assert held == ["run/casemate/keyservices.json"]
    assert (guest / held[0]).stat().st_mode & 0o777 == 0o600
    lukspassphrase.service()
    assert [path.name for path in state.PASSPHRASES.iterdir()] == ["data.seeds"]  # none without the third


def test_what_workloads_may_read_has_no_seed_no_password_and_no_private_key(guest: Path, pair: Pair) -> None:
    mark = "MARKsecret"
    full = env(pair)
    both = pair.certificate.decode() + pair.private.decode()
    full["logging"]["syslog"]["cert"] = both
    full["logging"]["syslog"]["key"] = base64.b64encode(pair.private).decode()
    full["volumes"]["data"] |= {
        "kms": [{"apiKey": mark, "crn": "crn:v1:x", "type": "public"}],
        "grep11": {
            "address": "a",
            "clientCert": "c",
            "clientKey": mark,
            "caCert": "c",
            "metadata": {"aesKeyBlob": mark},
        },
        "apiKey": mark,
    }
    full["env"]["TLS_KEY"] = pair.private.decode()
    seeds = contract.take_seeds(work := workload(), full)
    said = json.dumps(contract.shown(work, full))
    assert seeds["data"]["seed"] == {"workload": "MARKseedworkload", "env": "MARKseedenvenvenv"}
    for secret in ("MARKseed", "MARKpassword", mark, "PRIVATE KEY", base64.b64encode(pair.private).decode()[:60]):
        assert secret not in said
    for kept in ("MARKuser", "log.example.com", "r.example.com:5000", "of the workload"):
        assert kept in said


@pytest.mark.parametrize(
    "target",
    [{"logRouter": {"hostname": "h", "iamApiKey": "MARK"}}, {"logDNA": {"hostname": "h", "ingestionKey": "MARK"}}],
)
def test_keys_of_every_log_backend_are_left_out(pair: Pair, target: Section) -> None:
    shown = contract.shown(workload(), env(pair, logging=target))
    assert "MARK" not in json.dumps(shown["env"]["logging"]) and "hostname" in json.dumps(shown["env"]["logging"])


def test_the_sections_that_are_passed_on_are_not_changed_by_what_is_shown(pair: Pair) -> None:
    one, other = workload(), env(pair)
    before = json.dumps([one, other])
    contract.shown(one, other)
    assert json.dumps([one, other]) == before


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"type": "workload", "volumes": {"data": {"seed": "short"}}}, "HPL05001E"),
        ({"volumes": {"data": {}}}, "HPL07001E"),
        ({"volumes": {"Data": {"seed": "MARKseedworkload"}}}, "HPL07015E"),
        ({"compose": {"archive": "AAAA"}}, "HPL06006E"),
        ({"compose": {"archive": gzipped(b"no tar" * 200)}}, "HPL06007E"),
        ({"compose": {"archive": gzipped(tar(("a", b"x" * 9000))[:5000])}}, "HPL06007E"),
        ({"compose": {"archive": write_archive({"a/docker-compose.yaml": b"services: {}\n"})}}, "HPL06008E"),
        ({"compose": {"archive": archive("a: [")}}, "HPL06009E"),
        ({"compose": {"archive": archive("services: {db: {image: 'db:latest'}}\n")}}, "HPL06010E"),
        ({"nonsense": 1, "compos": {}}, "HPL05001E"),
    ],
)
def test_a_contract_with_an_error_stops_with_its_identifier(
    guest: Path, pair: Pair, change: Section, id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(workload(**change), env(pair))
    stop = stopped(contract.service)
    assert id in {stop.id, *(line[3:12] for line in capsys.readouterr().err.splitlines())}
    assert "MARK" not in stop.detail
    assert not state.SEEDS.exists() and not (guest / "user-data.decrypted").exists()


@pytest.mark.parametrize("pod", ["kind: [", "apiVersion: v1\nkind: Deployment\n", POD])
def test_a_pod_that_is_not_understood_stops_before_and_where_it_would_start(guest: Path, pair: Pair, pod: str) -> None:
    play = {"archive": write_archive({"pod.yaml": pod.encode()})}
    section = workload(play=play)
    del section["compose"]
    deliver(section, env(pair))
    assert stopped(contract.service).id == "HPL15000E"
    stop = stopped(container.understood, {"play": play}, {})
    assert stop.id == "HPL15000E" and "pod.yaml" in stop.detail


def test_every_problem_is_said_and_none_says_a_value(
    guest: Path, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = {f"v{number}": {"seed": "MARK short"} for number in range(3)}
    deliver(workload(volumes=volumes), env(pair, volumes={}))
    stop = stopped(contract.service)
    said = capsys.readouterr().err + str(stop)
    assert all(f"v{number}" in said for number in range(3)) and "MARK" not in said


def test_a_section_that_is_missing_or_no_yaml_stops(guest: Path, pair: Pair) -> None:
    assert stopped(contract.service).id == "HPL05002E"
    deliver(workload(), env(pair))
    (state.CONTRACT / "env").write_bytes(b"type: env\nMARK: [\n")
    stop = stopped(contract.service)
    assert stop.id == "HPL05000E" and "MARK" not in stop.detail


def test_confidential_containers_do_not_start(guest: Path, pair: Pair) -> None:
    section = workload(**{"confidential-containers": {}})
    del section["compose"]
    deliver(section, env(pair))
    assert stopped(contract.service).id == "HPL05003E"


# ------------------------------------------------------------------------------------------------- passphrases


def test_a_passphrase_is_made_of_both_seeds_and_the_seeds_are_gone(guest: Path, pair: Pair) -> None:
    deliver(workload(), env(pair))
    contract.service()
    lukspassphrase.service()
    assert not state.SEEDS.exists()
    made = state.PASSPHRASES / "data"
    assert made.read_text() == passphrase("MARKseedworkload", "MARKseedenvenvenv")
    assert made.stat().st_mode & 0o777 == 0o600 and made.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("seeds", "missing"),
    [
        ({}, "workload and env"),
        ({"data": {"seed": {"workload": "a" * 15}}}, "env"),
        ({"data": {"seed": {"env": "a" * 15}}}, "workload"),
        ({"data": {"previousSeed": {"env": "a" * 15, "workload": "a" * 15}}}, "workload and env"),
        ({"other": {"seed": {"env": "a" * 15, "workload": "a" * 15}}}, "workload and env"),
    ],
)
def test_one_seed_missing_stops(seeds: dict[str, Any], missing: str) -> None:
    stop = stopped(lukspassphrase.passphrases, seeds, ["data"])
    assert (stop.id, stop.detail) == ("HPL07001E", f"volume data: no seed from {missing}")


def test_a_seed_that_is_none_stops_and_is_not_said() -> None:
    stop = stopped(lukspassphrase.passphrases, {"data": {"seed": {"workload": "SHORT", "env": "a" * 15}}}, ["data"])
    assert stop.id == "HPL07001E" and "SHORT" not in stop.detail


# ------------------------------------------------------------------------------------------------- registries


def test_logins_of_both_sections_the_workloads_first() -> None:
    mine = {"auths": {"r.example.com": {"username": "w", "password": "1"}}}
    theirs = {
        "auths": {
            "https://r.example.com": {"username": "e", "password": "2"},
            "other.example.com:5000": {"username": "e", "password": "p:w"},
        }
    }
    found = registryauth.logins(mine, theirs)["auths"]
    assert {host: base64.b64decode(login["auth"]) for host, login in found.items()} == {
        "r.example.com": b"w:1",
        "other.example.com:5000": b"e:p:w",
    }
    assert registryauth.logins({}, {}) == {"auths": {}}


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io"])
def test_the_default_registry_has_one_name_whatever_the_contract_calls_it(key: str) -> None:
    assert list(registryauth.logins({"auths": {key: {"username": "u", "password": "p"}}}, {})["auths"]) == ["docker.io"]


def test_logins_and_certificates_are_roots_alone(guest: Path, pair: Pair) -> None:
    text = base64.b64encode(pair.certificate).decode()
    state.write_json(state.SECTIONS / "workload.json", workload())
    state.write_json(state.SECTIONS / "env.json", env(pair, cacerts=[{"mine": text[:40] + "\n" + text[40:]}]))
    registryauth.service()
    assert state.AUTH.stat().st_mode & 0o777 == 0o600
    assert {path.name: path.read_bytes() for path in state.CERTIFICATES.iterdir()} == {"mine.crt": pair.certificate}
    assert state.CERTIFICATES.stat().st_mode & 0o777 == 0o700


def test_words_beside_the_certificates_of_a_registry_are_left_out(guest: Path, pair: Pair) -> None:
    """OpenSSL takes ASCII alone."""
    text = base64.b64encode("# Autorité\n".encode("latin-1") + pair.certificate).decode()
    found = registryauth.certificates({"cacerts": [{"mine": text}]})
    assert found == {"mine.crt": pair.certificate}
    web.context(pem.decode() for pem in found.values())


def test_a_certificate_of_a_registry_that_is_none_stops(pair: Pair) -> None:
    for content in (
        "not base64!",
        base64.b64encode(b"x").decode(),
        base64.b64encode(pair.certificate + pair.private).decode(),
        base64.b64encode(pair.certificate + pair.certificate.replace(b" CERTIFICATE", b" X509 CRL")).decode(),
        base64.b64encode(pair.certificate + pair.certificate[:-30]).decode(),
        base64.b64encode(pair.certificate + pair.certificate.replace(b"\nMII", b"\nMIJ")).decode(),
    ):
        assert stopped(registryauth.certificates, {"cacerts": [{"mine": content}]}).id == "HPL09001E"


# ------------------------------------------------------------------------------------------------- logging


@pytest.mark.parametrize(("name", "missing"), [("server", "HPL01007E"), ("cert", "HPL01008E"), ("key", "HPL01009E")])
def test_each_pem_of_syslog_has_its_own_identifier(pair: Pair, name: str, missing: str) -> None:
    given_ = {"server": pair.certificate.decode(), "cert": pair.certificate.decode(), "key": pair.private.decode()}
    assert set(logging.pems(given_)) == {"server", "cert", "key"}
    wrong = pair.private if name != "key" else pair.certificate
    stop = stopped(logging.pems, {**given_, name: wrong.decode()})
    assert (stop.id, name in stop.detail) == (missing, True)
    for damaged in ("", "nonsense", given_[name][:-20], "-----BEGIN CERTIFICATE-----", base64.b64encode(b"x").decode()):
        stop = stopped(logging.pems, {**given_, name: damaged})
        assert (stop.id, name in stop.detail) == ("HPL01005E", True)
    del given_[name]
    assert stopped(logging.pems, given_).id == missing


def test_pems_may_be_base64_of_pem(pair: Pair) -> None:
    text = [base64.b64encode(one).decode() for one in (pair.certificate, pair.certificate, pair.private)]
    found = logging.pems(dict(zip(("server", "cert", "key"), text, strict=True)))
    assert found == {"server": pair.certificate, "cert": pair.certificate, "key": pair.private}


def test_a_key_that_does_not_belong_to_its_certificate_stops_before_anything_is_sent(
    tmp_path: Path, pair: Pair
) -> None:
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for name, content in (("server", pair.certificate), ("cert", pair.certificate), ("key", other)):
        (tmp_path / f"{name}.pem").write_bytes(content)
    assert stopped(logging.probe, "127.0.0.1", 9, str(tmp_path)).id == "HPL01006E"
    (tmp_path / "key.pem").write_bytes(pair.protected(b"password"))
    assert stopped(logging.probe, "127.0.0.1", 9, str(tmp_path)).id == "HPL01006E"


def test_a_backend_that_does_not_answer_stops_with_its_name(tmp_path: Path, pair: Pair) -> None:
    for name, content in (("server", pair.certificate), ("cert", pair.certificate), ("key", pair.private)):
        (tmp_path / f"{name}.pem").write_bytes(content)
    stop = stopped(logging.probe, "127.0.0.1", 9, str(tmp_path))
    assert stop.id == "HPL01011E" and "127.0.0.1:9 can't be reached" in stop.detail


@pytest.mark.parametrize(
    ("host", "target"), [("log.example.com", "log.example.com"), ("10.0.2.2", "10.0.2.2"), ("fd00::1", "[fd00::1]")]
)
def test_the_log_configuration_names_host_and_port(host: str, target: str) -> None:
    text = logging.configuration(host, 6514, "/run/x")
    assert f'target="{target}" port="6514"' in text and f'streamDriverPermittedPeers="{host}"' in text
    assert 'streamDriverMode="1"' in text and 'streamDriverAuthMode="x509/name"' in text


# ------------------------------------------------------------------------------------------------- signature


def signed(pair: Pair, workload_text: str = "W\r\n", env_text: str = "E\n", key: str | None = None) -> None:
    for name, text in (("sealed-workload", workload_text), ("sealed-env", env_text)):
        (state.CONTRACT / name).write_bytes(text.encode())
    (state.CONTRACT / "envWorkloadSignature").write_text(signatures.sign(workload_text, env_text, pair.key))
    state.write_json(state.SECTIONS / "env.json", {"signingKey": key or pair.public.decode()})


def test_a_signature_holds_over_the_exact_strings(guest: Path, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    signed(pair)
    signature.service()
    assert "the contract's signature holds" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sealed-workload", "sealed-env"])
def test_a_section_that_was_replaced_or_has_other_line_ends_stops(guest: Path, pair: Pair, name: str) -> None:
    for other in (b"other", b"W\n", b"E\r\n", b""):
        signed(pair)
        (state.CONTRACT / name).write_bytes(other)
        assert stopped(signature.service).id == "HPL12001E"


def test_a_signature_that_is_missing_or_anothers_stops(guest: Path, pair: Pair) -> None:
    signed(pair)
    (state.CONTRACT / "envWorkloadSignature").write_text("AAAA")
    assert stopped(signature.service).id == "HPL12001E"
    (state.CONTRACT / "envWorkloadSignature").unlink()
    assert stopped(signature.service).id == "HPL12001E"
    signed(pair, key="nonsense")
    stop = stopped(signature.service)
    assert stop.id == "HPL12003E" and "nonsense" not in stop.detail


def test_without_a_signing_key_nothing_is_asked_for(guest: Path) -> None:
    state.write_json(state.SECTIONS / "env.json", {"type": "env"})
    signature.service()


@pytest.mark.parametrize(("days", "id"), [(400, None), (29, "HPL12006E"), (-1, "HPL12007E"), (9999, None)])
def test_a_certificate_bounds_the_life_of_a_contract(
    pair: Pair, capsys: pytest.CaptureFixture[str], days: int, id: str | None
) -> None:
    now = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    key = signatures.SigningKey(pair.key.public_key(), b"", now - datetime.timedelta(9), now + datetime.timedelta(days))
    if days < 0:
        assert stopped(signature.check_time, key, now).id == id
    else:
        signature.check_time(key, now)
        assert (id or "") in capsys.readouterr().err
    assert stopped(signature.check_time, key, now - datetime.timedelta(10)).id == "HPL12007E"


def test_a_bare_key_has_no_time(pair: Pair) -> None:
    signature.check_time(
        signatures.SigningKey(pair.key.public_key(), b""), datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    )


# ------------------------------------------------------------------------------------------------- images


def test_the_images_of_the_compose_file_are_found_each_once() -> None:
    text = (
        f"services: {{a: {{image: '$R/db@{DIGEST}'}}, b: {{image: '$R/db:1@{DIGEST}'}}, c: {{image: 'db@{DIGEST}'}}}}"
    )
    found = imagepolicy.named({"compose": {"archive": archive(text)}}, {"R": "r.example.com"})
    assert [one.canonical for one in found] == [f"r.example.com/db@{DIGEST}", f"docker.io/library/db@{DIGEST}"]


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("services: {a: {image: 'db:17'}}", "HPL06010E"),
        ("services: {a: {image: 'db'}}", "HPL06010E"),
        ("services: {a: {image: '$MISSING/db'}}", "HPL06009E"),
        ("services: {a: {build: .}}", "HPL06009E"),
        ("services: {}", "HPL06009E"),
        ("a: [", "HPL06009E"),
    ],
)
def test_an_image_without_a_digest_or_key_stops(guest: Path, text: str, id: str) -> None:
    state.write_json(state.SECTIONS / "workload.json", {"compose": {"archive": archive(text)}})
    state.write_json(state.ENVIRONMENT, {})
    assert stopped(imagepolicy.service).id == id
    assert not imagepolicy.POLICY.exists()


def test_what_the_engine_reads_is_public_and_what_is_pulled_is_not(guest: Path) -> None:
    state.write_json(
        state.SECTIONS / "workload.json",
        {"compose": {"archive": archive(f"services: {{a: {{image: 'db@{DIGEST}'}}}}")}},
    )
    state.write_json(state.ENVIRONMENT, {})
    imagepolicy.service()
    assert imagepolicy.POLICY.stat().st_mode & 0o777 == imagepolicy.LOOKUPS.stat().st_mode & 0o777 == 0o644
    name = f"docker.io/library/db@{DIGEST}"
    assert state.read_json(state.IMAGES) == [{"named": name, "pulled": name}]


# ------------------------------------------------------------------------------------------------- containers


def test_no_container_starts_while_seeds_or_passphrases_are_there(guest: Path) -> None:
    state.write_json(state.SEEDS, {})
    assert stopped(container.service).id == "HPL08006E"
    state.SEEDS.unlink()
    state.write_json(state.KEY_SERVICES, {})
    assert stopped(container.service).id == "HPL08006E"
    state.KEY_SERVICES.unlink()
    state.write(state.PASSPHRASES / "data", "x")
    assert stopped(container.service).id == "HPL08006E"


def test_directories_are_made_and_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    os.close(container.open_beneath(str(volume / "a/b"), make=True))
    assert (volume / "a/b").is_dir()
    (volume / "file").write_text("of the archive")
    os.close(container.open_beneath(str(volume / "file"), make=False))
    (tmp_path / "secret").mkdir()
    (volume / "link").symlink_to(tmp_path / "secret")
    (volume / "inside").symlink_to("a")
    for name in ("link", "link/new", "inside/b", "missing"):
        stop = stopped(lambda name=name: container.open_beneath(str(volume / name), make=name == "link/new"))
        assert stop.id == "HPL08002E"
    assert list((tmp_path / "secret").iterdir()) == []


def test_a_third_seed_is_never_left_out_in_silence(guest: Path, pair: Pair) -> None:
    for name, value in (
        ("kms", [{"apiKey": "k", "crn": "c", "type": "public"}]),
        ("uv-secret-id", "index-1"),
        ("grep11", {"address": "a"}),
    ):
        asked = env(pair)
        asked["volumes"]["data"][name] = value
        deliver(workload(), asked)
        assert stopped(contract.service).id == "HPL07001E"


def test_volumes_are_found_by_the_mount_point_of_the_contract() -> None:
    assert container.mount_points({"data": {}, "logs": {"mount": "/logs"}}) == {
        "/mnt/data": "/var/volumes/data",
        "/logs": "/var/volumes/logs",
    }


def test_variables_reach_the_engine_by_file_or_as_its_secrets_and_never_by_argument_or_environment(
    guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = guest / "engine"
    recorder.write_text(
        f"""#!/bin/sh
[ "$1" = secret ] && cat >> {guest}/secrets
for argument in "$@"; do
    echo "$argument" >> {guest}/arguments
    case "$argument" in --env-file=*) cat "${{argument#*=}}" > {guest}/file;; esac
done
env >> {guest}/environment
"""
    )
    recorder.chmod(0o755)
    monkeypatch.setattr(container, "PODMAN", str(recorder))
    variables = {
        "SHORT": "geheim one",
        "LONG": "geheim two\nthree",
        "CARRIAGE": "geheim four\r",
        "BIG": "geheim" * 9999,
    }
    container.Podman().start(
        Service(
            "app",
            "app",
            "image",
            command=["run"],
            environment=variables,
            networks={"workload": ("alias=app", "ip=10.0.0.7")},
        )
    )
    arguments = (guest / "arguments").read_text()
    assert "geheim" not in arguments + (guest / "environment").read_text()
    assert {
        *("--secret=app-0,type=env,target=LONG", "--secret=app-1,type=env,target=CARRIAGE", "--name=app"),
        *("--secret=app-2,type=env,target=BIG", "--network=workload:alias=app,ip=10.0.0.7", "run", "--pull=never"),
    } <= set(arguments.splitlines())
    assert (guest / "file").read_text() == "SHORT=geheim one\n"
    assert (guest / "secrets").read_bytes() == b"geheim two\nthreegeheim four\r" + b"geheim" * 9999
    assert everything(state.RUN) == {}  # the file of variables is gone


# ------------------------------------------------------------------------------------------------- what is said


@given(st.text(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_message_is_one_line_without_controls(capsys: pytest.CaptureFixture[str], detail: str) -> None:
    say("HPL07001E", detail)
    line = capsys.readouterr().err
    assert line.startswith("<3>HPL07001E: ") and line.endswith("\n")
    assert line[:-1].isprintable() and line.count("\n") == 1


@pytest.mark.parametrize(("id", "level"), [("HPL07001E", 3), ("HPL01002W", 4), ("HPL01010I", 6)])
def test_the_level_is_that_of_the_identifier(capsys: pytest.CaptureFixture[str], id: str, level: int) -> None:
    say(id, "x" * 5000)
    assert capsys.readouterr().err == f"<{level}>{id}: {'x' * 2000}\n"


def test_what_nobody_foresaw_is_told_by_its_type_and_place_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def service() -> None:
        raise ValueError("geheim")

    assert run(service, "HPL05000E") == 1
    said = capsys.readouterr().err
    assert "HPL05000E: unexpected ValueError at service:" in said and "geheim" not in said


def test_a_stop_is_told_and_ends_with_1_and_success_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    def service() -> None:
        raise Stop("HPL02003E", "why")

    assert run(service, "HPL02120E") == 1 and capsys.readouterr().err == "<3>HPL02003E: why\n"
    assert run(lambda: None, "HPL02120E") == 0 and capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------- state, programs


def test_files_are_roots_alone_and_a_link_is_not_followed(tmp_path: Path) -> None:
    state.write(tmp_path / "a/b/file", "x")
    assert (tmp_path / "a/b/file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    state.write(tmp_path / "public/file", b"y", 0o644)
    assert (tmp_path / "public/file").stat().st_mode & 0o777 == 0o644
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        state.write(tmp_path / "link", "x")
    assert not (tmp_path / "target").exists()


def test_a_program_gets_its_secret_by_standard_input_and_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "x")
    assert state.call("cat", stdin=b"geheim") == "geheim"
    assert "LEAK" not in state.call("env") and "A=b" in state.call("env", env={"A": "b"})


def test_a_program_that_fails_hangs_or_floods_is_told_in_few_words() -> None:
    with pytest.raises(OSError, match="sh ended with 3: why not"):
        state.call("sh", "-c", "echo why; echo  not >&2; echo why >&2; exit 3".replace("echo why; ", "echo why >&2;"))
    with pytest.raises(OSError, match="did not end within"):
        state.call("sleep", "5", timeout=0.1)
    with pytest.raises(OSError) as error:
        state.call("sh", "-c", "yes x | head -c 100000 >&2; exit 1")
    assert len(str(error.value)) < 700


def test_the_reason_of_a_stop_reaches_the_console_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(catch.subprocess, "run", lambda words, **_: asked.append(words))
    monkeypatch.setattr(catch.time, "sleep", asked.append)
    monkeypatch.setattr(catch, "failed", lambda: "hpl-image")
    for console in (tmp_path / "console", tmp_path / "none" / "console"):  # without a console it stops all the same
        monkeypatch.setattr(catch, "CONSOLE", console)
        catch.service()
        assert "HPL10000E: Service failed -> hpl-image" in capsys.readouterr().err
    line = (tmp_path / "console").read_text()
    assert re.fullmatch(r"\[ *\d+\.\d{6}\] hpl-catch\[\d+\]: HPL10000E: Service failed -> hpl-image: .*\n", line)
    assert asked.count(catch.GRACE) == 2 and asked[-1] == ["/usr/bin/systemctl", "--no-block", "poweroff"]


def test_the_services_that_failed_are_named_and_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def systemd_says(text: str) -> str:
        done = subprocess.CompletedProcess([], 0, text.encode())
        monkeypatch.setattr(catch.subprocess, "run", lambda *_, **__: done)
        return catch.failed()

    line = "{} loaded failed failed Hyper Protect Layer\n"
    assert (
        systemd_says(line.format("hpl-storage.service") + line.format("hpl-image.service")) == "hpl-storage, hpl-image"
    )
    assert systemd_says(line.format("systemd-sysctl.service")) == "systemd-sysctl"
    assert systemd_says(line.format("hpl-seal.service") + line.format("tmp.mount")) == "hpl-seal"
    assert systemd_says("") == "unknown"
    assert systemd_says(line.format("\x1b[2J.service")) == "unknown"
