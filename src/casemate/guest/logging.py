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
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.contract.errors import ContractError
from casemate.contract.keys import certificates_alone, kinds, pem_of
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
    try:
        found["server"] = b"".join(certificates_alone(found["server"]))
    except ContractError as error:
        raise Stop("HPL01007E", f"env.logging.syslog.server {error.cause}") from None
    return found


def trusted(env: Mapping[str, Any], roots: bytes) -> bytes:
    """Return the authorities by which a public service is known, PEM: those of the image, and ``cacerts`` of ``env``."""
    found = [roots]
    for entry in env.get("cacerts", ()):
        for text in entry.values():
            try:
                found += certificates_alone(pem_of(text))
            except ContractError as error:
                raise Stop("HPL01005E", f"env.cacerts: {error.cause}") from None
    return b"\n".join(found)


def probe(host: str, port: int, directory: str) -> str:
    """Connect once as rsyslog will; return the name that rsyslog has to expect in the backend's certificate.

    A server that doesn't want our certificate says so only after the handshake.
    """
    try:
        context = ssl.create_default_context(cafile=f"{directory}/server.pem")
        if Path(directory, "cert.pem").exists():
            context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem", password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError):
        text = "a certificate or key is damaged, or they don't belong together"
        raise Stop("HPL01006E", f"env.logging: {text}") from None
    try:
        with socket.create_connection((host, port), PATIENCE) as plain:
            plain.settimeout(PATIENCE)
            with context.wrap_socket(plain, server_hostname=host) as secure:
                certificate = secure.getpeercert() or {}
                secure.settimeout(0.3)
                try:
                    ended = secure.read(1) == b""
                except TimeoutError:
                    ended = False
    except ssl.SSLCertVerificationError as error:
        raise Stop("HPL01011E", f"{host}:{port} is not the log backend: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Stop("HPL01011E", f"{host}:{port} refuses the connection: {error.reason}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Stop("HPL01011E", f"the log backend {host}:{port} can't be reached: {reason}") from None
    if ended:
        raise Stop("HPL01011E", f"{host}:{port} ends the connection: does it ask for a certificate, another one?")
    if (name := permitted(host, certificate)) is None:
        text = f"the certificate of {host}:{port} must have {host} as its common name or among its DNS names"
        raise Stop("HPL01011E", f"{text}: rsyslog knows no addresses among the alternative names")
    return name


def permitted(host: str, certificate: Mapping[str, Any]) -> str | None:
    """Return the name of a certificate, as ``getpeercert`` gives it, by which rsyslog knows ``host``; ``None`` without.

    Its ``gtls`` driver compares the common name and the DNS names, as they are spelt: fewer than OpenSSL does, so the
    probe alone could succeed and no line ever arrive. A wildcard that covers the host is expected as it is spelt.
    """
    names = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    names |= {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
    wildcard = f"*.{host.partition('.')[2]}"
    return host if host in names else wildcard if wildcard in names and wildcard.count(".") > 1 else None


def structured(logdna: Mapping[str, Any] | None) -> str:
    """Return the structured data (RFC 5424) in front of each line: Mezmo's, with the ingestion key, or none."""
    if logdna is None:
        return "-"
    tags = ",".join(logdna.get("tags", ()))
    return f'[logdna@48950 key="{logdna["ingestionKey"]}"' + (f' tags="{tags}"' if tags else "") + "]"


def configuration(host: str, port: int, directory: str, permitted: str | None = None, data: str = "-") -> str:
    """Return the configuration of rsyslog: the journal in, TLS out.

    ``permitted``: the name that the backend's certificate must have; ``data``: see :func:`structured`.

    The queue in memory is short and waits for ever: so lines stay in the journal while the backend is away, and leave it
    in their order. A line of a container carries its name and identifier, and its image as structured data. By the statistics
    :mod:`casemate.guest.logloss` knows what was lost.
    """
    target = f"[{host}]" if _is_ipv6(host) else host
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
       streamDriver="gtls" streamDriverMode="1" streamDriverAuthMode="x509/name"
       streamDriverPermittedPeers="{permitted or host}" streamDriver.permitExpiredCerts="off" keepAlive="on"
       action.resumeRetryCount="-1" action.resumeInterval="1" action.resumeIntervalMax="10"
       action.reportSuspension="off")
"""


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


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
        permitted = probe(host, port, str(DIRECTORY))
        data = structured(given if kind == "logDNA" else None)
        state.write(DIRECTORY / "rsyslog.conf", configuration(host, port, str(DIRECTORY), permitted, data))
    say("HPL01010I", "Logging has been setup successfully.")
