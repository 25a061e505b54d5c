"""Image references and compose's variables: understood as compose and the registries do, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract.archive import write_archive
from casemate.contract.errors import ImageError
from casemate.contract.images import (
    Reference,
    compose_images,
    interpolate,
    parse_reference,
    pod_images,
    read_compose,
    variables,
    workload_images,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("postgres", "docker.io/library/postgres:latest"),
        ("postgres:16", "docker.io/library/postgres:16"),
        (f"postgres@{DIGEST}", f"docker.io/library/postgres@{DIGEST}"),
        (f"postgres:16@{DIGEST}", f"docker.io/library/postgres@{DIGEST}"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/postgres", "docker.io/library/postgres:latest"),
        ("index.docker.io/me/app:1", "docker.io/me/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("10.0.2.2:5000/app", "10.0.2.2:5000/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("registry.example.com/a/b/c:v1.0", "registry.example.com/a/b/c:v1.0"),
        ("host:5000/a", "host:5000/a:latest"),
    ],
)
def test_references_mean_what_registries_take_them_for(text: str, canonical: str) -> None:
    assert parse_reference(text).canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Postgres", "postgres ", "postgres\n", "postgres:", "postgres@", "postgres@sha256:abc", "a//b", "/a",
        f"postgres@{DIGEST.upper()}", f"postgres@{DIGEST}0", f"postgres@md5:{'0' * 32}", "https://registry/a",
        "user:pass@host/a", "a/../b", "-a", "ä", "x" * 600, "a:b:c", "host:99999999/a", f"postgres@{DIGEST}@{DIGEST}",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="not an image reference"):
        parse_reference(text)


@given(st.text(max_size=80))
@settings(deadline=None)
def test_no_text_raises_anything_else(text: str) -> None:
    for read in (parse_reference, lambda value: interpolate(value, {"A": "b"})):
        try:
            read(text)
        except ImageError as error:
            assert error.cause


@given(st.from_regex(r"\A([a-z]{1,5}\.[a-z]{2}/)?[a-z]{1,5}(/[a-z0-9]{1,5})?(:[a-z0-9]{1,4})?\Z"))
@settings(deadline=None)
def test_a_canonical_reference_is_its_own_canonical_form(text: str) -> None:
    canonical = parse_reference(text).canonical
    assert parse_reference(canonical).canonical == canonical


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A/x", "a/x"),
        ("${A}/x", "a/x"),
        ("${A:-d}", "a"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${NONE:-d}", "d"),
        ("${NONE-}", ""),
        ("${A:?must}", "a"),
        ("${A:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${NONE+x}", ""),
        ("$$A", "$A"),
        ("${A}${A}", "aa"),
        ("plain", "plain"),
        ("$", "$"),
        ("a$", "a$"),
        ("$1 $(id) $-", "$1 $(id) $-"),
        ("${A:+x$A}", "xa"),
        ("${NONE:-${A}}", "a"),
        ("${NONE:-x${NONE:-$A}y}z", "xayz"),
        ("${A:-${NONE}}", "a"),
        ("${NONE:-{}}", "{}"),
        ("$$(id)", "$(id)"),
    ],
)
def test_variables_are_replaced_as_compose_does(text: str, value: str) -> None:
    assert interpolate(text, {"A": "a", "EMPTY": ""}) == value


@pytest.mark.parametrize(
    "text", ["${", "${A", "${A/b/c}", "${!A}", "${}", "${A:-${B}", "${A x}", "${A:-}${", "${NONE:-" * 40 + "}" * 40]
)
def test_forms_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"not understood|too deep"):
        interpolate(text, {"A": "a", "B": "b"})


@pytest.mark.parametrize("text", ["$NONE", "${NONE}", "${NONE:?x}", "${NONE?x}", "${EMPTY:?x}"])
def test_an_unset_variable_is_an_error(text: str) -> None:
    with pytest.raises(ImageError, match="is not set"):
        interpolate(text, {"EMPTY": ""})


def test_variables_are_named_with_whether_they_are_needed() -> None:
    assert variables("$A ${B:-x} ${C:?x} $$D ${A-x}") == {"A": True, "B": False, "C": True}


@pytest.mark.parametrize(
    ("service", "cause"),
    [
        ("{build: ., image: a}", "builds an image"),
        ("{extends: {service: b}, image: a}", "extends a service"),
        ("{command: x}", "has no image"),
        ("{image: 12}", "has no image"),
        ("[]", "is not a mapping"),
        ("{image: '$X'}", "is not set"),
        ("{image: 'A'}", "not an image reference"),
    ],
)
def test_a_service_whose_image_can_not_be_known_is_an_error(service: str, cause: str) -> None:
    found = compose_images(read_compose(f"services: {{db: {service}}}".encode()), {})["db"]
    assert isinstance(found, ImageError)
    assert cause in found.cause and found.where.startswith("services.db")


@pytest.mark.parametrize("text", ["a: 1", "services: []", "services: {}", "- a", "services: {a: [}", "include: [x]"])
def test_a_compose_file_without_services_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        read_compose(text.encode())


def test_a_compose_file_that_includes_others_is_refused() -> None:
    with pytest.raises(ImageError, match="includes"):
        read_compose(b"include: [b.yaml]\nservices: {a: {image: b}}\n")


def test_every_container_of_a_pod_is_found() -> None:
    pod = {"spec": {"initContainers": [{"image": "a"}], "containers": [{"image": "b"}, {}], "ephemeralContainers": 1}}
    found = dict(pod_images(pod))
    assert found["spec.initContainers[0].image"].path == "library/a"
    assert found["spec.containers[0].image"].path == "library/b"
    assert isinstance(found["spec.containers[1].image"], ImageError)
    assert isinstance(found["spec.ephemeralContainers"], ImageError)
    assert isinstance(dict(pod_images({}))["spec"], ImageError)


def test_a_registry_is_found_in_auths_under_the_names_in_use() -> None:
    assert "https://index.docker.io/v1/" in parse_reference("postgres").auths_keys
    assert parse_reference("r.example.com:5000/a").auths_keys[0] == "r.example.com:5000"


def packed(**files: bytes) -> dict[str, Any]:
    named = {name.replace("_", "."): content for name, content in files.items()}
    named["compose.yaml"] = named.pop("compose")
    return {"compose": {"archive": write_archive(named)}}


def test_a_file_of_defaults_is_read_as_compose_reads_it() -> None:
    text = b"services: {db: {image: '$REPO/db@$DIGEST'}}"
    defaults = f"HOST=r.example.com\nREPO=${{HOST}}/x\nDIGEST={DIGEST}\n".encode()
    (image,) = workload_images(packed(compose=text, _env=defaults), {}).values()
    assert isinstance(image, Reference) and image.canonical == f"r.example.com/x/db@{DIGEST}"
    (image,) = workload_images(packed(compose=text, _env=defaults), {"REPO": "other.example.com"}).values()
    assert isinstance(image, Reference) and image.registry == "other.example.com"
    (wrong,) = workload_images(packed(compose=text, _env=b"no line"), {}).values()
    assert isinstance(wrong, ImageError) and "NAME=value" in wrong.cause


def test_a_file_that_would_change_the_compose_file_is_not_passed_over() -> None:
    (wrong,) = workload_images(packed(compose=b"services: {}", compose_override_yml=b"services: {}"), {}).values()
    assert isinstance(wrong, ImageError) and "a second compose file" in wrong.cause
