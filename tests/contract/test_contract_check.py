"""The check: every problem at once, each with its place, and never a value."""

from __future__ import annotations

import base64
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
from contract_kit import Encoding, Pair, craft, pad, tar
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.contract.archive import write_archive
from casemate.contract.check import (
    Problem,
    check_any,
    check_contract,
    check_env,
    check_sections,
    check_workload,
    problems_stop,
    schema,
)
from casemate.contract.document import Contract, rewrite, write_contract
from casemate.contract.signature import sign
from casemate.contract.token import seal

DIGEST = "sha256:" + "0123456789abcdef" * 4
SEED = "SECRETSECRETSECRET"
CRN = "crn:v1:bluemix:public:kms:eu-de:a/0:11111111:key:66666666"
Section = dict[str, Any]


def compose(text: str) -> str:
    return write_archive({"docker-compose.yaml": text.encode()})


@pytest.fixture
def workload() -> Section:
    return {
        "type": "workload",
        "compose": {"archive": compose(f"services: {{db: {{image: '${{REGISTRY}}/db@{DIGEST}'}}}}\n")},
        "auths": {"r.example.com:5000": {"username": "SECRETuser", "password": "SECRETpassword"}},
        "volumes": {"data": {"mount": "/mnt/data", "filesystem": "ext4", "seed": SEED}},
        "env": {"A": "SECRETvalue"},
    }


@pytest.fixture
def env(small: Pair) -> Section:
    certificate, key = small.certificate.decode(), base64.b64encode(small.private).decode()
    return {
        "type": "env",
        "logging": {
            "syslog": {"hostname": "10.0.2.2", "port": 6514, "server": certificate, "cert": certificate, "key": key}
        },
        "volumes": {"data": {"seed": SEED}},
        "env": {"REGISTRY": "r.example.com:5000", "B": "SECRETvalue"},
        "signingKey": small.public.decode(),
    }


def change(section: Section, path: str, value: object = None, *, remove: bool = False) -> Section:
    changed = copy.deepcopy(section)
    *parents, last = path.split("/")
    inner: Any = changed
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if remove:
        del inner[last]
    else:
        inner[last] = value
    return changed


def places(problems: list[Problem], severity: str = "error") -> list[str]:
    return [problem.place for problem in problems if problem.severity == severity]


def test_good_sections_have_no_problem(workload: Section, env: Section) -> None:
    assert check_sections(workload, env) == []
    assert places(check_workload(workload), "note") == ["workload.compose.archive, docker-compose.yaml"]


def test_the_schema_is_one_and_says_the_same_as_the_check(workload: Section, env: Section) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    for name, section in (("workload", workload), ("env", env), ("contract", {"workload": workload, "env": "x"})):
        jsonschema.validate(section, {**schema(), "$ref": f"#/$defs/{name}"})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"workload": "x"}, schema())


@pytest.mark.parametrize(
    ("path", "value", "place", "text"),
    [
        ("type", "env", "workload.type", "must be workload"),
        ("compose", 12, "workload.compose", "must be a mapping"),
        ("compose/archiv", "x", "workload.compose.archiv", "did you mean archive?"),
        ("compose/archive", "!!", "workload.compose.archive", "must be base64"),
        ("compose/archive", "QUJD", "workload.compose.archive", "not gzip"),
        ("play", {"resources": []}, "workload", "exactly one of compose, play"),
        ("volumes", [], "workload.volumes", "must be a mapping"),
        ("volumes/Data", {}, "workload.volumes", 'the name "Data": names of volumes'),
        ("volumes/data/seed", "short", "workload.volumes.data.seed", "15 or more characters"),
        ("volumes/data/seed", SEED + "\n", "workload.volumes.data.seed", "15 or more characters"),
        ("volumes/data/sed", SEED, "workload.volumes.data.sed", "did you mean seed?"),
        ("volumes/data/mount", "data", "workload.volumes.data.mount", "absolute path"),
        ("volumes/data/mount", "/mnt/../etc", "workload.volumes.data.mount", "absolute path"),
        ("volumes/data/mount", "/mnt/a\n", "workload.volumes.data.mount", "absolute path"),
        ("volumes/data/mount", "/proc/ssl", "workload.volumes.data.mount", "directory of the system"),
        ("volumes/data/mount", "/dev/containers", "workload.volumes.data.mount", "directory of the system"),
        ("volumes/data/mount", "/sys", "workload.volumes.data.mount", "directory of the system"),
        ("volumes/data/filesystem", "zfs", "workload.volumes.data.filesystem", "one of ext4, xfs, btrfs"),
        ("volumes/more", {"mount": "/mnt/data", "seed": SEED}, "workload.volumes.more.mount", "of the volume data"),
        ("volumes/more", {"mount": "/mnt/more", "seed": SEED}, "workload.volumes.more.seed", "has no partner: env has"),
        ("volumes/more", {"mount": "/mnt/more"}, "workload.volumes.more.seed", "is missing"),
        ("env/A", 12, "workload.env.A", "put numbers"),
        ("env/A B", "x", "workload.env", "names of variables"),
        ("auths/r", {"username": "x"}, "workload.auths.r.password", "is missing"),
        (
            "images",
            {"dct": {"UPPER": {"notary": "https://x", "publicKey": "AAAA"}}},
            "workload.images.dct.UPPER",
            "reference",
        ),
        ("imagess", {}, "workload.imagess", "did you mean images?"),
    ],
)
def test_a_problem_of_the_workload_has_its_place(
    workload: Section, env: Section, path: str, value: object, place: str, text: str
) -> None:
    problems = check_sections(change(workload, path, value), env)
    assert problems_stop(problems)
    assert any(problem.place == place and text in problem.text for problem in problems), list(map(str, problems))


@pytest.mark.parametrize(
    ("path", "value", "place", "text"),
    [
        ("type", "workload", "env.type", "must be env"),
        ("logging", {}, "env.logging", "exactly one of syslog"),
        ("logging/logRouter", {"hostname": "h", "iamApiKey": "k"}, "env.logging", "exactly one of"),
        ("logging/syslog/port", 70000, "env.logging.syslog.port", "be a port"),
        ("logging/syslog/port", True, "env.logging.syslog.port", "be a port"),
        ("logging/syslog/hostname", "tls://host", "env.logging.syslog.hostname", "host name"),
        ("logging/syslog/server", "hello", "env.logging.syslog.server", "neither PEM"),
        ("logging/syslog/prot", 1, "env.logging.syslog.prot", "did you mean port?"),
        ("volumes/data", {}, "env.volumes.data.seed", "is missing"),
        ("volumes/data/uv-secret-id", "index-1", "env.volumes.data.uv-secret-id", "not supported yet"),
        (
            "volumes/data/uv-previous-secret-id",
            "index-1",
            "env.volumes.data.uv-previous-secret-id",
            "not supported yet",
        ),
        ("volumes/data/grep11", {"address": "a"}, "env.volumes.data.grep11", "not supported yet"),
        ("volumes/data/kms", [], "env.volumes.data.kms", "a list of 1 to 5"),
        ("volumes/data/kms", [{"apiKey": "k", "crn": "c", "type": "public"}], "env.volumes.data.kms", "not the CRN"),
        ("volumes/data/kmsTimeout", 61, "env.volumes.data.kmsTimeout", "0 to 60 minutes"),
        ("volumes/date", {"seed": SEED}, "env.volumes.date.seed", "has no partner"),
        ("volumes/data/seed", None, "env.volumes.data.seed", "15 or more"),
        ("cacerts", [{"a": "AAAA"}, {"b": "AAAA"}], "env.cacerts", "at most one"),
        ("cacerts", [{"a": "AAAA"}], "env.cacerts[0].a", "neither PEM"),
        ("signingKey", "AAAA", "env.signingKey", "neither PEM"),
        ("host-attestation", {"HKD-1": {"host-key-doc": "QUJD"}}, "env.host-attestation", "is not supported: "),
        ("crypto-pt", {"lock": False}, "env.crypto-pt", "is not supported: "),
        ("signingkey", "AAAA", "env.signingkey", "did you mean signingKey?"),
        ("env", {"A": ["x"]}, "env.env.A", "must be text|be text"),
    ],
)
def test_a_problem_of_the_env_has_its_place(
    workload: Section, env: Section, path: str, value: object, place: str, text: str
) -> None:
    problems = check_sections(workload, change(env, path, value))
    assert problems_stop(problems)
    said = [problem for problem in problems if problem.place == place]
    assert any(word in problem.text for problem in said for word in text.split("|")), list(map(str, problems))


@pytest.mark.parametrize(
    ("path", "value", "places"),
    [
        ("confidential-containers", {}, []),
        ("volumes/data/kms", [{"apiKey": "k", "crn": CRN}] * 5, []),
        ("volumes/data/kmsTimeout", 0, []),
        ("volumes/data/kmsTimeout", 20, []),
        ("volumes/data/uv-previous-secret-id", "index-2", ["env.volumes.data.uv-previous-secret-id"]),
        (
            "volumes/data/grep11",
            {"address": "a", "metadata": {"aesKeyBlob": "a", "previousaesKeyBlob": "b"}},
            ["env.volumes.data.grep11"],
        ),
    ],
)
def test_a_key_that_other_tools_know_is_not_told_as_a_slip(
    workload: Section, env: Section, path: str, value: object, places: list[str]
) -> None:
    problems = check_sections(workload, change(env, path, value))
    assert [problem.place for problem in problems] == places
    assert all("not supported yet" in problem.text for problem in problems)


def test_private_keys_and_certificates_stand_where_they_should(env: Section, small: Pair) -> None:
    swapped = change(env, "logging/syslog/key", small.certificate.decode())
    assert places(check_env(swapped)) == ["env.logging.syslog.key"]
    locked = change(env, "logging/syslog/key", small.protected(b"x").decode())
    assert "password" in str(check_env(locked)[0])
    assert "private" in str(check_env(change(env, "signingKey", small.private.decode()))[0])


def test_all_problems_come_at_once(workload: Section, env: Section) -> None:
    bad = change(change(workload, "volumes/data/seed", "x"), "env/A", 1)
    assert set(places(check_sections(bad, change(env, "logging/syslog/port", 0)))) >= {
        "workload.volumes.data.seed",
        "workload.env.A",
        "env.logging.syslog.port",
    }


def test_a_mistake_of_form_hides_no_other_problem(workload: Section, env: Section) -> None:
    bad = change(workload, "env/A", 1)
    bad = change(bad, "compose/archive", compose("services: {a: {image: postgres}, b: {build: .}}"))
    bad = change(bad, "volumes/more", {"seed": "short"})
    bad = change(bad, "volumes/wrong", [])
    odd = change(change(env, "logging/syslog/port", 0), "signingKey", "AAAA")
    found = places(check_sections(bad, odd))
    assert sorted(found) == [
        "env.logging.syslog.port",
        "env.signingKey",
        "workload.compose.archive, docker-compose.yaml, services.a.image",
        "workload.compose.archive, docker-compose.yaml, services.b.build",
        "workload.env.A",
        "workload.volumes.more.mount",
        "workload.volumes.more.seed",
        "workload.volumes.more.seed",
        "workload.volumes.wrong",
    ]


def test_nothing_is_said_twice(workload: Section, env: Section) -> None:
    for section in ({**env, "logging": "yes"}, {**env, "logging": []}):
        problems = check_sections(workload, section)
        assert len(problems) == len(set(problems))


def dated(pair: Pair, begins: int, ends: int, *, curve: bool = False) -> str:
    """A certificate over a key, valid from and until so many days from now; over a fresh EC key with ``curve``."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dated")])
    key = generate_private_key(SECP256R1()) if curve else pair.key
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(NOW + timedelta(days=begins))
        .not_valid_after(NOW + timedelta(days=ends))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("begins", "ends", "severity", "identifier"),
    [(-9, -1, "error", "HPL12007E"), (1, 9, "error", "HPL12007E"), (-1, 9, "warning", "HPL12006E"), (-1, 99, "", "")],
)
def test_the_certificate_of_a_signing_key_has_its_time(
    env: Section, small: Pair, begins: int, ends: int, severity: str, identifier: str
) -> None:
    dates = change(env, "signingKey", dated(small, begins, ends))
    found = [problem for problem in check_env(dates, now=NOW) if problem.place == "env.signingKey"]
    assert [(problem.severity, problem.id) for problem in found] == ([(severity, identifier)] if severity else [])
    assert check_env(dates) == []  # the rules know no clock of their own


def test_certificates_of_the_log_backend_are_read_where_there_is_a_clock(env: Section, small: Pair) -> None:
    good = env
    for part in ("server", "cert"):
        good = change(good, f"logging/syslog/{part}", dated(small, -1, 99))
    assert check_env(good, now=NOW) == []
    assert check_env(change(good, "logging/syslog/server", dated(small, -1, 99, curve=True)), now=NOW) == []
    foreign = change(good, "logging/syslog/cert", dated(small, -1, 99, curve=True))
    assert places(check_env(foreign, now=NOW)) == ["env.logging.syslog.key"]
    old = change(good, "logging/syslog/cert", dated(small, -9, -1))
    assert places(check_env(old, now=NOW), "warning") == ["env.logging.syslog.cert"]
    damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert places(check_env(change(good, "logging/syslog/server", damaged), now=NOW)) == ["env.logging.syslog.server"]
    authorities = change(good, "cacerts", [{"mine": base64.b64encode(damaged.encode()).decode()}])
    assert places(check_env(authorities, now=NOW)) == ["env.cacerts[0].mine"]
    second = change(good, "logging/syslog/server", dated(small, -1, 99) + damaged)
    assert places(check_env(second, now=NOW)) == ["env.logging.syslog.server"]


@pytest.mark.parametrize("kind", ["X509 CRL", "PRIVATE KEY", "TRUSTED CERTIFICATE"])
def test_whom_to_trust_is_said_by_certificates_alone(env: Section, small: Pair, kind: str) -> None:
    pem = small.certificate.decode()
    beside = pem + pem.replace(" CERTIFICATE", f" {kind}")
    authorities = change(env, "cacerts", [{"mine": base64.b64encode(beside.encode()).decode()}])
    server = change(env, "logging/syslog/server", beside)
    anchored = change(
        env,
        "volumes/data/anchor",
        {"url": "https://a.example.com/data", "publicKey": small.public.decode(), "ca": beside, "cert": pem}
        | {"key": small.private.decode()},
    )
    for section, place in (
        (authorities, "env.cacerts[0].mine"),
        (server, "env.logging.syslog.server"),
        (anchored, "env.volumes.data.anchor"),
    ):
        (problem,) = check_env(section)
        assert (problem.place, problem.severity) == (place, "error") and "certificates that are whole" in problem.text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("services: {db: {image: postgres}}", "neither a digest nor a key"),
        ("services: {db: {image: 'postgres:16'}}", "neither a digest nor a key"),
        ("services: {db: {image: '${NONE:-postgres}'}}", "neither a digest nor a key"),
        ("services: {db: {build: .}}", "builds an image"),
        ("services: {db: {image: A}}", "not an image reference"),
        ("services: {db: {image: a, image: b}}", "a second time"),
        ("services: [", "not YAML"),
        ("service: {}", "no services"),
        (
            f"services: {{db: {{image: 'a@{DIGEST}', environment: {{X: '$NONE'}}}}}}",
            "a variable that nobody gives is empty",
        ),
        (f"services: {{db: {{image: 'a@{DIGEST}', environment: {{X: '${{NONE'}}}}}}", "a form that is not understood"),
        (f"services: {{db: {{image: 'a@{DIGEST}', environment: [NONE]}}}}", "given by neither section"),
        (f"services: {{db: {{image: 'a@{DIGEST}', volums: []}}}}", "did you mean volumes?"),
        (f"services: {{db: {{image: 'a@{DIGEST}', volumes: ['/etc:/x']}}}}", "a directory of the system"),
        (f"services: {{db: {{image: 'a@{DIGEST}', volumes: ['./x:/x']}}}}", "an empty directory"),
    ],
)
def test_a_compose_file_that_would_not_run_is_told(workload: Section, env: Section, text: str, cause: str) -> None:
    problems = check_sections(change(workload, "compose/archive", compose(text)), env)
    assert any(cause in problem.text for problem in problems), list(map(str, problems))


def test_an_archive_with_a_link_is_told_by_its_name(workload: Section, env: Section) -> None:
    import gzip
    import tarfile

    link = tarfile.TarInfo("conf")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    packed = base64.b64encode(gzip.compress(tar(("docker-compose.yaml", b""), (link, b"")))).decode()
    problems = check_sections(change(workload, "compose/archive", packed), env)
    assert places(problems) == ["workload.compose.archive, conf"]


GPG = "mAVhYmNkZQ=="
"""A packet that is a public key by its form."""


def test_an_image_with_a_key_needs_no_digest(workload: Section, env: Section) -> None:
    archive = compose("services: {db: {image: 'quay.io/me/db:1'}}")
    keyed = {**workload, "compose": {"archive": archive}, "images": {"rhs": {"quay.io/me/db": {"publicKey": GPG}}}}
    assert check_sections(keyed, env) == []
    keyed["images"] = {"rhs": {"quay.io/me/other": {"publicKey": GPG}}}
    assert problems_stop(check_sections(keyed, env))


def test_an_image_of_the_deployers_choice_is_left_open_without_env(workload: Section) -> None:
    text = "services: {db: {image: '${IMAGE}'}}"
    assert not problems_stop(check_workload(change(workload, "compose/archive", compose(text))))


def test_an_image_without_digest_is_told_whatever_the_registry_will_be(workload: Section) -> None:
    tagged = change(workload, "compose/archive", compose("services: {db: {image: '${REGISTRY}/me/db:1'}}"))
    (place,) = places(check_workload(tagged))
    assert place.endswith("services.db.image")
    keyed = change(tagged, "images", {"rhs": {"quay.io/me/db": {"publicKey": GPG}}})
    assert not problems_stop(check_workload(keyed))
    for text in ("${REGISTRY}/me/db:${TAG}", "${REGISTRY}/me/${NAME}"):
        left = change(workload, "compose/archive", compose(f"services: {{db: {{image: '{text}'}}}}"))
        assert not problems_stop(check_workload(left))


@pytest.mark.parametrize("kind", ["resources", "templates", "archive"])
def test_pods_are_checked_like_compose_files(workload: Section, env: Section, kind: str) -> None:
    pod: Section = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    pod["spec"] = {"containers": [{"name": "c", "image": "a"}]}
    play = {kind: write_archive({"pod.yaml": rewrite(pod).encode()}) if kind == "archive" else [pod]}
    section = {**change(workload, "compose", remove=True), "play": play}
    (problem,) = check_sections(section, env)
    assert "digest" in problem.text and problem.place.endswith("spec.containers[0].image")
    pod["spec"] = {"containers": [{"name": "c", "image": f"a@{DIGEST}"}]}
    play = {kind: write_archive({"pod.yaml": rewrite(pod).encode()}) if kind == "archive" else [pod]}
    assert check_sections({**section, "play": play}, env) == []


# ------------------------------------------------------------------------------------------------- whole contracts


def test_a_plain_contract_is_checked_with_its_signature(workload: Section, env: Section, small: Pair) -> None:
    texts = rewrite(workload) + "\n", rewrite(env) + "\n"
    good = Contract(*texts, small.public.decode(), sign(*texts, small.key))
    assert check_contract(write_contract(good)) == []
    missing = Contract(*texts, small.public.decode())
    assert places(check_contract(write_contract(missing))) == ["envWorkloadSignature"]
    changed = Contract(texts[0] + "#\n", texts[1], small.public.decode(), good.envworkload_signature)
    assert places(check_contract(write_contract(changed))) == ["envWorkloadSignature"]
    unsigned = change(env, "signingKey", remove=True)
    never = Contract(texts[0], rewrite(unsigned), small.public.decode(), good.envworkload_signature)
    assert places(check_contract(write_contract(never)), "warning") == ["envWorkloadSignature"]


def test_sealed_sections_are_noted_and_their_form_checked(
    workload: Section, env: Section, small: Pair, image: Pair
) -> None:
    token = seal(b"x", small.certificate)
    data = write_contract(Contract(token, token, token, "c2ln"))
    assert not problems_stop(check_contract(data))
    assert not problems_stop(check_contract(data, small.certificate))
    wrong = check_contract(data, image.certificate)
    assert places(wrong) == ["workload", "env", "attestationPublicKey"]
    assert "for this certificate" in wrong[0].text
    assert places(check_contract(write_contract(Contract(token[:-1], token)))) == ["workload"]


def test_who_holds_the_key_checks_what_is_sealed(workload: Section, env: Section, small: Pair, other: Pair) -> None:
    bad = rewrite(change(workload, "volumes/data/seed", "short")).encode()
    texts = [seal(text, small.public) for text in (bad, rewrite(env).encode(), base64.b64encode(small.public))]
    whole = Contract(*texts, sign(texts[0], texts[1], small.key))
    assert places(check_contract(write_contract(whole), key=small.key)) == ["workload.volumes.data.seed"]
    assert places(check_any(texts[0].encode() + b"\n", key=small.key)) == ["workload.volumes.data.seed"]
    swapped = Contract(seal(rewrite(workload).encode(), small.public), *texts[1:], whole.envworkload_signature)
    assert places(check_contract(write_contract(swapped), key=small.key)) == ["envWorkloadSignature"]
    assert places(check_contract(write_contract(whole), key=other.key)) == ["workload", "env", "attestationPublicKey"]
    short = craft(small.key.public_key(), b"\nrest", b"", pad(rewrite(env).encode()))
    assert "short password" in str(check_any(short.encode(), key=small.key)[0])


def test_a_token_by_itself_is_checked(small: Pair) -> None:
    token = seal(b"type: env\n", small.public).encode()
    assert places(check_any(token), "note") == [""]
    assert "damaged token" in str(check_any(token[:-3])[0])


def test_the_auditors_key_may_be_base64_of_pem(workload: Section, env: Section, small: Pair) -> None:
    texts = rewrite(workload), rewrite(change(env, "signingKey", remove=True))
    assert check_contract(write_contract(Contract(*texts, base64.b64encode(small.public).decode()))) == []


def test_an_encryption_certificate_out_of_its_time_is_told(small: Pair) -> None:
    token = seal(b"x", small.public)
    data = write_contract(Contract(token, token, token))
    found = check_contract(data, dated(small, -9, -1).encode(), now=NOW)
    assert [(one.id, one.severity) for one in found if one.severity != "note"] == [("HPL12013W", "warning")]
    assert places(check_contract(data, dated(small, -9, 9).encode(), now=NOW), "warning") == ["encryption certificate"]
    assert not places(check_contract(data, dated(small, -9, 99).encode(), now=NOW), "warning")
    assert not places(check_contract(data, small.public, now=NOW), "warning")


def test_a_missing_section_hides_no_problem_of_the_other() -> None:
    found = [str(problem) for problem in check_any(b"env: |\n  type: env\n  volumes: {A: {}}\nwrkload: 1\n")]
    assert any("has no workload" in text for text in found)
    assert any("wrkload" in text and "did you mean workload" in text for text in found)
    assert any("env.logging: is missing" in text for text in found) and any(
        "names of volumes" in text for text in found
    )
    assert places(check_any(b"workload:\nenv:\n"))[:2] == ["workload", "env"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"", ""),
        (b"a: [", "line"),
        (b"workload: a: b", "line"),
        (b"env: x", ""),
        (b"workload: x\nenv: {}", "workload"),
        (b"workload: |\n  type: workload\n  a: &a 1\nenv: {}", "workload, line 2"),
        (b"workload: {}\nenv: {}\nenvWorkloadsignature: x\n", "envWorkloadsignature"),
        (b"workload: {}\nenv: {}\nattestationPublicKey: x\n", "attestationPublicKey"),
    ],
)
def test_a_broken_contract_is_told_where(text: bytes, place: str) -> None:
    problems = check_any(text)
    assert problems_stop(problems)
    assert any(problem.place.startswith(place) for problem in problems), list(map(str, problems))


def test_a_bare_section_is_known_by_its_type(workload: Section, env: Section) -> None:
    assert not problems_stop(check_any(rewrite(workload).encode()))
    assert check_any(rewrite(env).encode()) == []
    assert places(check_any(b"type: env\n")) == ["env.logging"]


leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.just(SEED)
)
values = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.sampled_from(
        ["type", "seed", "mount", "syslog", "archive", "data", "server", "dct", "containers", "spec"]
    ), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
KEYS = [
    "type", "compose", "play", "confidential-containers", "auths", "images", "volumes", "env", "logging", "cacerts",
    "signingKey", "volumes/data", "volumes/data/seed", "compose/archive", "logging/syslog", "logging/syslog/key",
    "play/resources", "images/dct", "confidential-containers/config",
]  # fmt: skip


@given(path=st.sampled_from(KEYS), value=values, second=st.sampled_from(KEYS), other=values)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_section_raises_and_no_message_has_a_value(
    workload: Section, env: Section, path: str, value: object, second: str, other: object
) -> None:
    def changed(section: Section) -> Section:
        for place, new in ((path, value), (second, other)):
            try:
                section = change(section, place, new)
            except (TypeError, AttributeError):
                continue
        return section

    for problems in (
        check_sections(changed(workload), changed(env), now=NOW),
        check_any(write_contract(Contract(rewrite(changed(workload)), rewrite(changed(env))))),
    ):
        said = "".join(str(problem) for problem in problems)
        assert "SECRET" not in said
        assert said.isprintable()


def test_syslog_has_a_certificate_with_its_key_or_neither(workload: Section, env: Section) -> None:
    alone = change(env, "logging/syslog/key", remove=True)
    assert [(p.place, p.text) for p in check_env(alone)] == [
        ("env.logging.syslog", "must have both cert and key, or neither")
    ]
    assert not problems_stop(check_env(change(alone, "logging/syslog/cert", remove=True)))


@pytest.mark.parametrize(
    ("logging", "place"),
    [
        ({"hostname": "h", "ingestionKey": 'a"]'}, "env.logging.logDNA.ingestionKey"),
        ({"hostname": "h", "ingestionKey": "a\n"}, "env.logging.logDNA.ingestionKey"),
        ({"hostname": "h", "ingestionKey": "a", "tags": ["a,b"]}, "env.logging.logDNA.tags[0]"),
        ({"hostname": "h", "ingestionKey": "a", "tags": ["a'"]}, "env.logging.logDNA.tags[0]"),
    ],
)
def test_what_would_end_a_line_of_the_log_s_configuration_is_refused(
    env: Section, logging: dict[str, object], place: str
) -> None:
    assert [p.place for p in check_env(change(env, "logging", {"logDNA": logging}))] == [place]
