"""``hpl-logging``: validates the log backend, reaches it once with TLS, and writes what sends the lines.

Three backends (``docs/logging.md``): ``syslog``, TLS by an authority of the contract, with or without a certificate of
ours; ``logDNA``, syslog over TLS with the ingestion key in each line; ``logRouter``, the HTTP interface of IBM Cloud
Logs. The first two are sent by ``hpl-rsyslog``, the third by ``hpl-logrouter``. All read the journal, and the journal is
the queue: bounded, on the encrypted root disk, the oldest lines go first. A public service is trusted by the roots of
the image and by ``env.cacerts``. Certificates and keys stand in files in memory, for root only.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.contract.errors import ContractError
from casemate.contract.keys import kinds, pem_of
from casemate.guest import state
from casemate.guest.logloss import INTERVAL, STATISTICS
from casemate.guest.network import resolve
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL01000E"
DIRECTORY = state.RUN / "logging"
ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
"""Public authorities, as the image has them."""
PORTS = {"syslog": 6514, "logDNA": 6514, "logRouter": 443}
PATIENCE = 20.0
"""Seconds in which the backend must answer."""

_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "emailAddress": "emailAddress",
}
"""OpenSSL's short names of what subjects have; a subject with another part is not used."""
_FILES = (("server", "HPL01007E"), ("cert", "HPL01008E"), ("key", "HPL01009E"))


def pems(syslog: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the PEM texts of a ``syslog`` section, one or three; each has its own message where it is missing."""
    found = {}
    for name, missing in _FILES:
        if name != "server" and "cert" not in syslog and "key" not in syslog:
            continue  # the backend knows us by nothing: only its own certificate is checked
        if name not in syslog:
            raise Stop(missing, f"env.logging.syslog.{name} is missing: give cert and key, or neither")
        try:
            found[name] = pem_of(syslog[name])
            first = kinds(found[name])[0]
        except (ContractError, IndexError):
            raise Stop("HPL01005E", f"env.logging.syslog.{name} has no PEM block") from None
        if name != "key" and "CERTIFICATE" not in first:
            raise Stop(missing, f"env.logging.syslog.{name} has no certificate")
        if name == "key" and not first.endswith("PRIVATE KEY"):
            raise Stop(missing, "env.logging.syslog.key has no private key")
    return found


def trusted(env: Mapping[str, Any], roots: bytes) -> bytes:
    """Return the authorities by which a public service is known, PEM: those of the image, and ``cacerts`` of ``env``."""
    found = [roots]
    for entry in env.get("cacerts", ()):
        for text in entry.values():
            try:
                found.append(pem_of(text))
            except ContractError:
                raise Stop("HPL01005E", "env.cacerts has no PEM block") from None
    return b"\n".join(found)


def probe(host: str, port: int, directory: str) -> tuple[str, str]:
    """Connect once as rsyslog will; return how it is to know the backend again, and the newest protocol that it may speak.

    That is TLS 1.2 where the backend speaks it. In 1.3 servers send tickets after the handshake, which rsyslog never reads;
    and while something waits to be read, it doesn't see that the other side has gone, and the next line is lost.
    """
    try:
        context = ssl.create_default_context(cafile=f"{directory}/server.pem")
        if Path(directory, "cert.pem").exists():
            context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem", password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError):
        text = "a certificate or key is damaged, or they don't belong together"
        raise Stop("HPL01006E", f"env.logging: {text}") from None
    protocol = "TLSv1.2"
    try:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            certificate = _handshake(context, host, port)
        except ssl.SSLError as error:
            if error.reason != "TLSV1_ALERT_PROTOCOL_VERSION":
                raise
            protocol, context.maximum_version = "TLSv1.3", ssl.TLSVersion.TLSv1_3
            certificate = _handshake(context, host, port)
    except ssl.SSLCertVerificationError as error:
        raise Stop("HPL01011E", f"{host}:{port} is not the log backend: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Stop("HPL01011E", f"{host}:{port} refuses the connection: {error.reason}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Stop("HPL01011E", f"the log backend {host}:{port} can't be reached: {reason}") from None
    if certificate is None:
        raise Stop("HPL01011E", f"{host}:{port} ends the connection: does it ask for a certificate, another one?")
    if (known := permitted(host, certificate)) is None:
        text = f"the certificate of {host}:{port} is for an address: so its subject must be of letters, digits and common signs"
        raise Stop("HPL01011E", f"{text}, since rsyslog knows it by that")
    return known, protocol


def _handshake(context: ssl.SSLContext, host: str, port: int) -> Mapping[str, Any] | None:
    """Return the backend's certificate, as ``getpeercert`` gives it; ``None`` where it ends the connection.

    A server that doesn't want our certificate may say so only after the handshake.
    """
    with socket.create_connection((host, port), PATIENCE) as plain:
        plain.settimeout(PATIENCE)
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(0.3)
            try:
                ended = secure.read(1) == b""
            except TimeoutError:
                ended = False
            return None if ended else secure.getpeercert() or {}


def permitted(host: str, certificate: Mapping[str, Any]) -> str | None:
    """Return how rsyslog is to know the backend again that :func:`probe` has accepted as ``host``; ``None``: it can't.

    ``certificate``: as ``getpeercert`` gives it. rsyslog's ``ossl`` driver looks for a name as OpenSSL does, among the DNS
    names, and for no address. Where the host is one, the backend is known by its subject, in the form of ``X509_NAME_oneline``.
    """
    if not _is_address(host):
        return host
    parts = [pair for part in certificate.get("subject", ()) for pair in part]
    line = "".join(f"/{_SHORT.get(key, '')}={value}" for key, value in parts)
    plain = re.fullmatch(r"(/[A-Za-z]+=[A-Za-z0-9 .,:@()_+-]+)+", line) and line.count("/") == len(parts)
    return line if plain else None


def structured(logdna: Mapping[str, Any] | None) -> str:
    """Return the structured data (RFC 5424) in front of each line: Mezmo's, with the ingestion key, or none."""
    if logdna is None:
        return "-"
    tags = ",".join(logdna.get("tags", ()))
    return f'[logdna@48950 key="{logdna["ingestionKey"]}"' + (f' tags="{tags}"' if tags else "") + "]"


def configuration(
    host: str, port: int, directory: str, permitted: str | None = None, data: str = "-", protocol: str = "TLSv1.2"
) -> str:
    """Return the configuration of rsyslog: the journal in, TLS out.

    ``permitted``, ``protocol``: see :func:`probe`; ``data``: see :func:`structured`.

    The driver is OpenSSL's: that of GnuTLS makes Diffie-Hellman parameters at each connection, which nobody uses: seconds.
    The queue in memory is short and waits for ever: so lines stay in the journal while the backend is away, and leave it
    in their order. A line of a container carries its name and identifier, and its image as structured data. By the statistics
    :mod:`casemate.guest.logloss` knows what was lost.
    """
    target = f"[{host}]" if _is_address(host) == 6 else host
    files = {"CA": "server"} | ({"Cert": "cert", "Key": "key"} if Path(directory, "cert.pem").exists() else {})
    drivers = " ".join(f'defaultNetstreamDriver{kind}File="{directory}/{name}.pem"' for kind, name in files.items())
    return f"""\
global(workDirectory="{directory}" maxMessageSize="16k" internalmsg.severity="warn"
       {drivers})
main_queue(queue.type="FixedArray" queue.size="1000" queue.lightDelayMark="0" queue.dequeueBatchSize="64"
           queue.timeoutEnqueue="2000000000" queue.timeoutShutdown="2000")
module(load="impstats" interval="{INTERVAL}" format="json" log.syslog="off" log.file="{directory}/{STATISTICS}")
module(load="imjournal" stateFile="imjournal.state" ratelimit.interval="0" persistStateInterval="100")
template(name="line" type="list") {{
  constant(value="<") property(name="pri") constant(value=">1 ")
  property(name="timereported" dateFormat="rfc3339") constant(value=" ")
  property(name="hostname") constant(value=" ") property(name="$.from") constant(value=" ")
  property(name="$.id") constant(value=" - ") property(name="$.data") constant(value=" ")
  property(name="msg" droplastlf="on" controlcharacters="escape") constant(value="\\n")
}}
set $.from = re_extract($programname, '^[!-~]+$', 0, 0, "unknown");
set $.id = "-";
set $.data = '{data}';
if re_match($!CONTAINER_NAME, '^[A-Za-z0-9_.-]+$') and re_match($!CONTAINER_ID, '^[0-9a-f]{{12}}$') then {{
  set $.from = "container/" & $!CONTAINER_NAME;
  set $.id = $!CONTAINER_ID;
  if re_match($!CONTAINER_TAG, '^[A-Za-z0-9_.:/@-]+$') then {{
    if $.data == "-" then {{ set $.data = ""; }}
    set $.data = $.data & '[container@32473 image="' & $!CONTAINER_TAG & '"]';
  }}
}}
action(type="omfwd" target="{target}" port="{port}" protocol="tcp" template="line" tcp_framing="octet-counted"
       streamDriver="ossl" streamDriverMode="1" streamDriverAuthMode="x509/name"
       streamDriverPermittedPeers="{permitted or host}" streamDriver.permitExpiredCerts="off" keepAlive="on"
       gnutlsPriorityString="MaxProtocol={protocol}"
       action.resumeRetryCount="-1" action.resumeInterval="1" action.resumeIntervalMax="10"
       action.reportSuspension="off")
"""


def _is_address(host: str) -> int:
    """Return 4 or 6 for an address of that version, 0 for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def service() -> None:
    """Validate, reach, configure."""
    env = state.section("env")
    kind, given = next(iter(env["logging"].items()))
    host, port = given["hostname"], int(given.get("port", PORTS[kind]))
    if not 0 < port < 65536:
        raise Stop("HPL01001E", f"env.logging.{kind}.port is no port")
    files = pems(given) if kind == "syslog" else {"server": trusted(env, ROOTS.read_bytes())}
    for name, pem in files.items():
        state.write(DIRECTORY / f"{name}.pem", pem)
    resolve(host)
    if kind == "logRouter":
        from casemate.guest import logrouter

        logrouter.probe(logrouter.Router(host, port, given["iamApiKey"], str(DIRECTORY / "server.pem")))
        state.write(DIRECTORY / "logrouter.json", json.dumps({"host": host, "port": port, "key": given["iamApiKey"]}))
    else:
        known, protocol = probe(host, port, str(DIRECTORY))
        data = structured(given if kind == "logDNA" else None)
        state.write(DIRECTORY / "rsyslog.conf", configuration(host, port, str(DIRECTORY), known, data, protocol))
    say("HPL01010I", "Logging has been setup successfully.")
