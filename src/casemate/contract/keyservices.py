"""What a contract says of key services: ``kms`` and ``kmsTimeout`` of a volume in ``env`` (``docs/key-services.md``).

    ways = read_services(volume["kms"])     # in the order in which they are asked
    patience(volume)                        # seconds to wait for one that does not answer

An entry names a root key by its CRN, ten parts between colons:

    crn:v1:CNAME:CTYPE:SERVICE:REGION:a/ACCOUNT:INSTANCE:key:KEY

``type`` says how the service is reached: ``public`` (what counts where it is not given) or ``private``, IBM's networks; or the
URL of one of one's own, ``https://HOST`` or ``https://HOST:PORT``, which gives access tokens too. (IBM's instances that have a
port of their own are named so as well; their tokens are IBM's.) Other tools take any text as ``type``, so such a contract has
the form that they know.

Older instances of Hyper Protect Crypto Services have an address with a port, which no CRN has. The region's broker knows it:

    read_address(answer, private=False)     # of GET https://REGION.broker.hs-crypto.cloud.ibm.com/crypto_v2/instances/INSTANCE

Source: IBM Cloud documentation, "About the contract" (``kms``), "Regions and endpoints" of Hyper Protect Crypto Services
and of Key Protect, "Cloud Resource Names"; the broker's answer: IBM's public clients of Key Protect (``kms.public``,
``kms.private``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from casemate.contract.errors import KeyServiceError

DEFAULT_MINUTES, MOST_MINUTES = 10, 60
MOST_ENTRIES = 5
_PART = r"[A-Za-z0-9._~/-]"
_CRN = re.compile(
    rf"crn:v1:{_PART}{{1,32}}:{_PART}{{1,32}}:(?P<service>{_PART}{{1,32}}):(?P<region>[a-z0-9-]{{0,32}}):{_PART}{{0,64}}"
    r":(?P<instance>[A-Za-z0-9-]{1,64}):key:(?P<key>[A-Za-z0-9-]{1,64})"
)
_HOST_PORT = r"(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?/?"
_URL = re.compile(f"https://{_HOST_PORT}")
_ADDRESS = re.compile(f"(https://)?{_HOST_PORT}")
_IBM = (".hs-crypto.cloud.ibm.com", ".hs-crypto.appdomain.cloud", ".kms.cloud.ibm.com")
_API_KEY = re.compile(r"[!-~]{1,512}")


@dataclass(frozen=True, slots=True)
class KeyWay:
    """A root key and one way to it. ``host``, ``port``: of the service; ``iam``: host and port that give access tokens.

    ``broker``: host and port that know a better address, where there is one; ``private``: which of the two that it has.
    """

    crn: str
    instance: str
    key: str
    host: str
    port: int
    iam: tuple[str, int]
    api_key: str = field(repr=False)
    broker: tuple[str, int] | None = None
    private: bool = False


def read_services(entries: Any) -> list[KeyWay]:
    """Return the ways that ``kms`` names. Raises :class:`KeyServiceError`, whose text has no value of the contract."""
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_ENTRIES:
        raise KeyServiceError(f"kms is a list of 1 to {MOST_ENTRIES} key services")
    return [_way(number, entry) for number, entry in enumerate(entries)]


def _way(number: int, entry: Any) -> KeyWay:
    if isinstance(entry, Mapping):
        entry = {"type": "public", **entry}
    if not isinstance(entry, Mapping) or not all(
        isinstance(entry.get(name), str) for name in ("apiKey", "crn", "type")
    ):
        raise KeyServiceError(f"kms[{number}] needs the texts apiKey and crn, and may have type")
    crn = _CRN.fullmatch(entry["crn"])
    if crn is None:
        raise KeyServiceError(f"kms[{number}].crn is not the CRN of a root key", "crn:v1:…:INSTANCE:key:KEY")
    if not _API_KEY.fullmatch(entry["apiKey"]):
        raise KeyServiceError(f"kms[{number}].apiKey has characters that no API key has, or is empty")
    host, port, iam = _reached(number, crn, entry["type"])
    way = KeyWay(entry["crn"], crn["instance"], crn["key"], host, port, iam, entry["apiKey"])
    if crn["service"] == "hs-crypto" and entry["type"] in ("public", "private"):
        broker = (f"{crn['region']}.broker.hs-crypto.cloud.ibm.com", 443)
        way = replace(way, broker=broker, private=entry["type"] == "private")
    return way


def read_address(answer: bytes, private: bool) -> tuple[str, int] | None:
    """Return the host and port of an instance that a broker's answer has; ``None`` where it has none of IBM's."""
    try:
        text = json.loads(answer)["kms"]["private" if private else "public"]
        found = _ADDRESS.fullmatch(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if found is None or not found["host"].lower().endswith(_IBM):
        return None
    port = int(found["port"] or 443)
    return (found["host"].lower(), port) if 0 < port < 65536 else None


def _reached(number: int, crn: re.Match[str], how: str) -> tuple[str, int, tuple[str, int]]:
    if (url := _URL.fullmatch(how)) is not None:
        port = int(url["port"] or 443)
        if not 0 < port < 65536:
            raise KeyServiceError(f"kms[{number}].type has a port that is none")
        host = url["host"].lower()
        return host, port, (_iam(".private." in f".{host}"), 443) if host.endswith(_IBM) else (host, port)
    if how not in ("public", "private"):
        raise KeyServiceError(f"kms[{number}].type is public, private, or the URL of a service, https://HOST:PORT")
    private = "private." if how == "private" else ""
    service, region = crn["service"], crn["region"]
    if not region or service not in ("hs-crypto", "kms"):
        raise KeyServiceError(
            f"kms[{number}].crn names no region of hs-crypto or kms, so its address is not known",
            "give the URL of the service as type",
        )
    if service == "hs-crypto":
        host = f"{crn['instance']}.api.{private}{region}.hs-crypto.appdomain.cloud"
    else:
        host = f"{private}{region}.kms.cloud.ibm.com"
    return host, 443, (_iam(bool(private)), 443)


def _iam(private: bool) -> str:
    return "private.iam.cloud.ibm.com" if private else "iam.cloud.ibm.com"


def patience(volume: Mapping[str, Any]) -> float:
    """Return ``kmsTimeout`` in seconds: it is 0 to 60 minutes, 10 where it is not given; with 0 each service is asked once.

    Raises :class:`KeyServiceError`.
    """
    given = volume.get("kmsTimeout", DEFAULT_MINUTES)
    if isinstance(given, bool) or not re.fullmatch("[0-9]{1,4}", str(given)) or int(given) > MOST_MINUTES:
        raise KeyServiceError(f"kmsTimeout is 0 to {MOST_MINUTES} minutes")
    return int(given) * 60.0
