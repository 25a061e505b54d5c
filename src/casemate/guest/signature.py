"""``hpl-signature``: where the contract names a ``signingKey``, its signature must hold.

Nothing but the log backend is used of a contract before this service has ended well. The time comes from the
infrastructure; a certificate's dates are a protection against mistakes, not against who sets the clock.
"""

from __future__ import annotations

import datetime

from casemate.contract.errors import KeyFileError, SignatureError
from casemate.contract.keys import WARN_DAYS
from casemate.contract.signature import SigningKey, read_signing_key, trusted, verify
from casemate.guest import state
from casemate.guest.report import Stop, say

UNFORESEEN = "HPL12002E"


def check_time(key: SigningKey, now: datetime.datetime) -> None:
    """A certificate bounds the life of the contract."""
    if key.not_before is None or key.not_after is None:
        return
    if now < key.not_before:
        raise Stop("HPL12007E", f"the certificate of signingKey is valid only from {key.not_before:%Y-%m-%d}")
    if now > key.not_after:
        raise Stop("HPL12007E", f"the contract expired on {key.not_after:%Y-%m-%d}: sign it with a new certificate")
    warn(key.not_after, now)


def warn(not_after: datetime.datetime, now: datetime.datetime) -> None:
    """Say that a contract ends soon."""
    if (left := (not_after - now).days) < WARN_DAYS:
        say("HPL12006E", f"the contract expires in {left} days, on {not_after:%Y-%m-%d}")


def service() -> None:
    """Verify the signature, or see that none was asked for; then forget the sections as they were delivered."""
    check()
    state.forget(state.CONTRACT)  # a section that was not sealed still has its seeds in it


def check() -> None:
    """Stop where the contract names a ``signingKey`` and its signature does not hold."""
    signing_key = state.section("env").get("signingKey")
    if signing_key is None:
        return
    try:
        now = datetime.datetime.now(datetime.UTC)
        key = trusted(read_signing_key(signing_key), now)
    except KeyFileError as error:
        raise Stop("HPL12003E", f"env.signingKey: {error}") from None
    check_time(key, now)
    given = state.CONTRACT / "envWorkloadSignature"
    if not given.is_file():
        raise Stop("HPL12001E", "the contract names a signingKey and has no envWorkloadSignature")
    # Bytes, since reading as text would make one of all line ends, and these strings are exact.
    workload, env = ((state.CONTRACT / f"sealed-{name}").read_bytes().decode() for name in ("workload", "env"))
    try:
        verify(workload, env, given.read_bytes().decode(), key.key)
    except SignatureError as error:
        raise Stop("HPL12001E", error.cause) from None
    say("HPL12005I", f"the contract's signature holds{_by(key)}")
    if key.not_after is not None:
        state.write_json(state.EXPIRY, key.not_after.timestamp())  # from here on hpl-expiry looks at the clock


def _by(key: SigningKey) -> str:
    if key.not_after is None:
        return ""
    issuer = "whose issuer was checked" if key.authority else "whose issuer was not given, and is not checked"
    return f", by a certificate {issuer}; the contract expires on {key.not_after:%Y-%m-%d}"
