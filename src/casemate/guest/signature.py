"""``hpl-signature``: where the contract names a ``signingKey``, its signature must hold.

Nothing but the log backend is used of a contract before this service has ended well. The time comes from the
infrastructure; a certificate's dates are a protection against mistakes, not against who sets the clock.
"""

from __future__ import annotations

import datetime
import shutil

from casemate.contract.errors import KeyFileError, SignatureError
from casemate.contract.signature import SigningKey, read_signing_key, verify
from casemate.guest import state
from casemate.guest.report import Stop, run, say

WARN_DAYS = 30


def check_time(key: SigningKey, now: datetime.datetime) -> None:
    """A certificate bounds the life of the contract."""
    if key.not_before is None or key.not_after is None:
        return
    if now < key.not_before:
        raise Stop("HPL12007E", f"the certificate of signingKey is valid only from {key.not_before:%Y-%m-%d}")
    if now > key.not_after:
        raise Stop("HPL12007E", f"the contract expired on {key.not_after:%Y-%m-%d}: sign it with a new certificate")
    if (left := (key.not_after - now).days) < WARN_DAYS:
        say("HPL12006E", f"the contract expires in {left} days, on {key.not_after:%Y-%m-%d}")


def service() -> None:
    """Verify the signature, or see that none was asked for; then forget the sections as they were delivered."""
    check()
    shutil.rmtree(state.CONTRACT)  # a section that was not sealed still has its seeds in it


def check() -> None:
    """Stop where the contract names a ``signingKey`` and its signature does not hold."""
    signing_key = state.section("env").get("signingKey")
    if signing_key is None:
        return
    try:
        key = read_signing_key(signing_key)
    except KeyFileError as error:
        raise Stop("HPL12003E", f"env.signingKey: {error}") from None
    check_time(key, datetime.datetime.now(datetime.UTC))
    given = state.CONTRACT / "envWorkloadSignature"
    if not given.is_file():
        raise Stop("HPL12001E", "the contract names a signingKey and has no envWorkloadSignature")
    # Bytes, since reading as text would make one of all line ends, and these strings are exact.
    workload, env = ((state.CONTRACT / f"sealed-{name}").read_bytes().decode() for name in ("workload", "env"))
    try:
        verify(workload, env, given.read_bytes().decode(), key.key)
    except SignatureError as error:
        raise Stop("HPL12001E", error.cause) from None
    say("HPL12005I", "the contract's signature holds")


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL12002E"))
