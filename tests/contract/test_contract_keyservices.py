"""What ``kms`` and ``kmsTimeout`` may be, and where a service is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.contract.errors import KeyServiceError
from casemate.contract.keyservices import patience, read_address, read_services

INSTANCE, KEY = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"


def crn(service: str = "hs-crypto", region: str = "us-south") -> str:
    return f"crn:v1:bluemix:public:{service}:{region}:a/0123456789abcdef:{INSTANCE}:key:{KEY}"


def entry(**values: Any) -> dict[str, Any]:
    return {"apiKey": "MARK-api-key", "crn": crn(), "type": "public", **values}


@pytest.mark.parametrize(
    ("host", "iam"),
    [
        ("api.eu-de.hs-crypto.cloud.ibm.com", "iam.cloud.ibm.com"),
        ("api.private.eu-de.hs-crypto.cloud.ibm.com", "private.iam.cloud.ibm.com"),
        ("private.eu-de.kms.cloud.ibm.com", "private.iam.cloud.ibm.com"),
        ("hs-crypto.cloud.ibm.com.example.com", None),
        ("eu-de.kms.cloud.ibm.com.example.com", None),
    ],
)
def test_an_instance_of_ibms_with_a_port_has_ibms_tokens_and_no_other_has(host: str, iam: str | None) -> None:
    [way] = read_services([entry(type=f"https://{host}:8992")])
    assert (way.host, way.port) == (host, 8992)
    assert way.iam == ((iam, 443) if iam else (host, 8992))


@pytest.mark.parametrize(
    ("service", "how", "host", "port", "iam"),
    [
        ("hs-crypto", "public", f"{INSTANCE}.api.us-south.hs-crypto.appdomain.cloud", 443, "iam.cloud.ibm.com"),
        (
            "hs-crypto",
            "private",
            f"{INSTANCE}.api.private.us-south.hs-crypto.appdomain.cloud",
            443,
            "private.iam.cloud.ibm.com",
        ),
        ("kms", "public", "us-south.kms.cloud.ibm.com", 443, "iam.cloud.ibm.com"),
        ("kms", "private", "private.us-south.kms.cloud.ibm.com", 443, "private.iam.cloud.ibm.com"),
        ("kms", "https://keys.example.com:8443", "keys.example.com", 8443, "keys.example.com"),
        ("own", "https://192.0.2.7/", "192.0.2.7", 443, "192.0.2.7"),
    ],
)
def test_a_service_is_where_crn_and_type_say(service: str, how: str, host: str, port: int, iam: str) -> None:
    [way] = read_services([entry(crn=crn(service), type=how)])
    assert (way.host, way.port, way.iam[0], way.iam[1]) == (host, port, iam, port)
    assert (way.instance, way.key, way.api_key) == (INSTANCE, KEY, "MARK-api-key")
    assert "MARK" not in repr(way)


def test_the_broker_is_asked_where_an_instance_may_have_a_port() -> None:
    ways = read_services([entry(), entry(type="private"), entry(crn=crn("kms")), entry(type="https://k:1")])
    broker = ("us-south.broker.hs-crypto.cloud.ibm.com", 443)
    assert [(way.broker, way.private) for way in ways] == [
        (broker, False),
        (broker, True),
        (None, False),
        (None, False),
    ]


@pytest.mark.parametrize(
    ("kms", "address"),
    [
        ({"public": "api.eu-de.hs-crypto.cloud.ibm.com:8992"}, ("api.eu-de.hs-crypto.cloud.ibm.com", 8992)),
        ({"public": "https://x.api.eu-de.hs-crypto.appdomain.cloud"}, ("x.api.eu-de.hs-crypto.appdomain.cloud", 443)),
        ({"private": "api.private.eu-de.hs-crypto.cloud.ibm.com:1"}, None),
        ({"public": "evil.example:443"}, None),
        ({"public": "hs-crypto.cloud.ibm.com.evil.example"}, None),
        ({"public": "evil.example/.hs-crypto.cloud.ibm.com"}, None),
        ({"public": "api.eu-de.hs-crypto.cloud.ibm.com:0"}, None),
        ({"public": 5}, None),
        ({"public": None}, None),
        ([], None),
        (None, None),
    ],
)
def test_of_a_brokers_answer_only_an_address_of_ibms_counts(kms: object, address: tuple[str, int] | None) -> None:
    assert read_address(json.dumps({"kms": kms}).encode(), private=False) == address


@given(st.binary(max_size=100))
def test_any_answer_of_a_broker_is_read(answer: bytes) -> None:
    assert read_address(answer, private=True) is None


def test_the_public_network_is_taken_where_no_type_is_given() -> None:
    [way] = read_services([{"apiKey": "k", "crn": crn("kms")}])
    assert way == read_services([entry(apiKey="k", crn=crn("kms"))])[0]


def test_five_entries_are_read() -> None:
    assert len(read_services([entry()] * 5)) == 5


def test_the_order_of_the_entries_is_kept() -> None:
    ways = read_services([entry(type="private"), entry(), entry(type="https://k:1")])
    assert [way.iam[0] for way in ways] == ["private.iam.cloud.ibm.com", "iam.cloud.ibm.com", "k"]


@pytest.mark.parametrize(
    "entries",
    [
        None,
        {},
        [],
        [entry()] * 6,
        [entry(type=None)],
        ["x"],
        [{}],
        [entry(type="other")],
        [entry(type="http://k")],
        [entry(type="https://k:0")],
        [entry(type="https://k:65536")],
        [entry(type="https://user@k")],
        [entry(type="https://k/path")],
        [entry(type="https://k\n")],
        [entry(type="")],
        [entry(crn="")],
        [entry(crn="crn:v1:x")],
        [entry(crn=crn().replace(":key:", ":keyring:"))],
        [entry(crn=crn() + "/../x")],
        [entry(crn=crn() + "\n")],
        [entry(crn=crn(region=""))],
        [entry(crn=crn("other"))],
        [entry(crn=crn(region="us-south.evil.example"))],
        [entry(apiKey="")],
        [entry(apiKey="MARK key")],
        [entry(apiKey="MARK\r\nX: y")],
        [entry(), {"apiKey": 1, "crn": crn(), "type": "public"}],
    ],
)
def test_anything_else_is_refused_without_a_value_in_the_text(entries: Any) -> None:
    with pytest.raises(KeyServiceError) as error:
        read_services(entries)
    for value in ("MARK", "evil", "user", INSTANCE):
        assert value not in str(error.value)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_is_read_or_refused(value: Any) -> None:
    for given_value in (value, [value], [entry() | {"crn": value}], [entry() | {"type": value}]):
        try:
            read_services(given_value)
        except KeyServiceError:
            continue


def test_the_time_is_minutes_as_number_or_text_and_bounded() -> None:
    assert [patience(volume) for volume in ({}, {"kmsTimeout": 1}, {"kmsTimeout": "60"})] == [600, 60, 3600]
    assert [patience({"kmsTimeout": none}) for none in (0, "0")] == [0, 0]
    for bad in (61, -1, "", "ten", "1.5", True, None, "9" * 9, [], "１０"):
        with pytest.raises(KeyServiceError):
            patience({"kmsTimeout": bad})
