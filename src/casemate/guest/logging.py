"""``hpl-logging``: validates the log backend, reaches it once with TLS, and writes what ``hpl-rsyslog`` reads.

Only ``syslog`` yet: TLS, both sides with certificates. The backend's name is checked against its certificate, here
and again by rsyslog at every connection. Certificates and key stand in files in memory.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from casemate.contract.errors import ContractError
from casemate.contract.keys import kinds, pem_of
from casemate.guest import state
from casemate.guest.network import resolve
from casemate.guest.report import Stop, run, say

DIRECTORY = state.RUN / "logging"
PORT = 6514
PATIENCE = 20.0
"""Seconds in which the backend must answer."""

_FILES = (("server", "HPL01007E"), ("cert", "HPL01008E"), ("key", "HPL01009E"))


def pems(syslog: dict[str, Any]) -> dict[str, bytes]:
    """Return the three PEM texts of a ``syslog`` section; each has its own message where it is missing."""
    found = {}
    for name, missing in _FILES:
        try:
            found[name] = pem_of(syslog[name])
            first = kinds(found[name])[0]
        except (ContractError, KeyError, IndexError):
            raise Stop("HPL01005E", f"env.logging.syslog.{name} has no PEM block") from None
        if name != "key" and "CERTIFICATE" not in first:
            raise Stop(missing, f"env.logging.syslog.{name} has no certificate")
        if name == "key" and not first.endswith("PRIVATE KEY"):
            raise Stop(missing, "env.logging.syslog.key has no private key")
    return found


def probe(host: str, port: int, directory: str) -> None:
    """Connect once as rsyslog will. A server that doesn't want our certificate says so only after the handshake."""
    try:
        context = ssl.create_default_context(cafile=f"{directory}/server.pem")
        context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem", password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError):
        raise Stop("HPL01006E", "env.logging.syslog: cert and key are damaged, or don't belong together") from None
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
        raise Stop("HPL01011E", f"{host}:{port} ends the connection: does it accept our certificate?")
    if host not in seen_by_rsyslog(certificate):
        text = f"the certificate of {host}:{port} must have {host} as its common name or among its DNS names, spelt out"
        raise Stop("HPL01011E", f"{text}: rsyslog knows neither wildcards nor addresses among the alternative names")


def seen_by_rsyslog(certificate: Mapping[str, Any]) -> set[str]:
    """Return the names that rsyslog's ``gtls`` driver would compare, of what ``getpeercert`` returns.

    They are fewer than OpenSSL's, so the probe alone could succeed and no line ever arrive.
    """
    names = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    return names | {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}


def configuration(host: str, port: int, directory: str) -> str:
    """Return the configuration of rsyslog: the journal in, TLS out, a queue in memory between them."""
    target = f"[{host}]" if _is_ipv6(host) else host
    return f"""\
global(workDirectory="{directory}" maxMessageSize="16k"
       defaultNetstreamDriverCAFile="{directory}/server.pem"
       defaultNetstreamDriverCertFile="{directory}/cert.pem"
       defaultNetstreamDriverKeyFile="{directory}/key.pem")
module(load="imjournal" stateFile="imjournal.state" ratelimit.interval="0" persistStateInterval="1000")
template(name="line" type="list") {{
  constant(value="<") property(name="pri") constant(value=">1 ")
  property(name="timereported" dateFormat="rfc3339") constant(value=" ")
  property(name="hostname") constant(value=" ") property(name="$.from") constant(value=" - - - ")
  property(name="msg" droplastlf="on") constant(value="\\n")
}}
set $.from = $programname;
if $!CONTAINER_NAME != "" then {{
  set $.from = "container/" & $!CONTAINER_NAME;
}}
action(type="omfwd" target="{target}" port="{port}" protocol="tcp" template="line" tcp_framing="octet-counted"
       streamDriver="gtls" streamDriverMode="1" streamDriverAuthMode="x509/name"
       streamDriverPermittedPeers="{host}" streamDriver.permitExpiredCerts="off" keepAlive="on"
       queue.type="LinkedList" queue.size="10000" queue.timeoutEnqueue="0" queue.timeoutShutdown="3000"
       action.resumeRetryCount="-1" action.resumeInterval="1")
"""


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def service() -> None:
    """Validate, reach, configure."""
    given = state.section("env")["logging"]
    if "syslog" not in given:
        raise Stop("HPL01011E", f"env.logging: this version knows syslog, not {', '.join(given)}")
    syslog = given["syslog"]
    host, port = syslog["hostname"], int(syslog.get("port", PORT))
    if not 0 < port < 65536:
        raise Stop("HPL01001E", "env.logging.syslog.port is no port")
    for name, pem in pems(syslog).items():
        state.write(DIRECTORY / f"{name}.pem", pem)
    resolve(host)
    probe(host, port, str(DIRECTORY))
    state.write(DIRECTORY / "rsyslog.conf", configuration(host, port, str(DIRECTORY)))
    say("HPL01010I", "Logging has been setup successfully.")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL01000E"))
