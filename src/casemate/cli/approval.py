"""``casemate approval``: the two-person rule for configurations and source revisions."""

from __future__ import annotations

import json
from pathlib import Path

import click

_REVIEWERS = click.option(
    "--reviewers", required=True, type=click.Path(), help="Who may approve, and how many must; you trust this file."
)
_SUBJECT = click.option("--subject", required=True, help="What FILE is for; an approval for another subject is none.")
_LARGEST_CONTENT = 256 << 20


@click.group()
def approval() -> None:
    """Sign what a build accepts, and verify that enough reviewers did."""


@approval.command()
@click.argument("file", type=click.Path())
@_REVIEWERS
@_SUBJECT
@click.option("--revision", required=True, type=int, help="A number that grows with each new FILE for this subject.")
@click.option("--as", "name", required=True, help="Your name among the reviewers.")
@click.option("--key", required=True, help="URI of your key: file:PATH or pkcs11:…, as casemate ca has them.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The approval; signatures in it are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print who has signed as JSON.")
def sign(
    file: str, reviewers: str, subject: str, revision: int, name: str, key: str, output: str, as_json: bool
) -> None:
    """Read FILE, then add your signature to its approval.

    \b
    casemate approval sign build.yaml --reviewers reviewers.json --subject build-config --revision 7 \\
        --as alice --key file:alice.key -o build.yaml.approval
    """
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    from casemate import approval as approvals
    from casemate.build import signers
    from casemate.cli.ui import read_input, tell, write_output

    who = approvals.parse_reviewers(read_input(reviewers, approvals.LARGEST))
    payload = approvals.statement(subject, revision, read_input(file, _LARGEST_CONTENT), who)
    signatures: dict[str, bytes] = {}
    if output != "-" and Path(output).exists():
        before, found = approvals.signatures_of(read_input(output, approvals.LARGEST), who)
        if before != payload:
            raise approvals.ApprovalError(
                "the approval that is there is for something else: other bytes, subject, revision or reviewers",
                "compare FILE with what the others signed, or write to another file",
                output,
                id="APPROVAL-OTHER",
            )
        signatures = dict(found)
    if name not in who.keys:
        raise approvals.ApprovalError(
            f"{name} is no reviewer", f"one of {', '.join(sorted(who.keys))}", id="APPROVAL-REVIEWERS"
        )
    if name not in signatures:
        data = approvals.pae(approvals.PAYLOAD_TYPE, payload)
        with signers.find(key, Path.cwd()).open() as private:
            public = private.public_key()
            if signers.spki(public) != signers.spki(who.keys[name]):
                raise approvals.ApprovalError(
                    f"this is not the key of {name}", "give your own key", id="APPROVAL-REVIEWERS"
                )
            algorithm = signers.algorithm_for(public)
            if isinstance(private, ec.EllipticCurvePrivateKey):
                signatures[name] = private.sign(data, ec.ECDSA(algorithm))
            else:
                signatures[name] = private.sign(data, padding.PKCS1v15(), algorithm)
        made = approvals.envelope(payload, list(signatures.items()))
        approvals.signatures_of(made, who)
        write_output(output, made)
    missing = max(0, who.threshold - len(signatures))
    if as_json:
        said = {"signed": sorted(signatures), "threshold": who.threshold, "missing": missing}
        tell(output, json.dumps(said))
    else:
        tell(output, f"{output}: signed by {', '.join(sorted(signatures))}" + (f"; {missing} more" if missing else ""))


@approval.command()
@click.argument("file", type=click.Path())
@click.option("--approval", "envelope", required=True, type=click.Path(), help="The approval of FILE.")
@_REVIEWERS
@_SUBJECT
@click.option(
    "--state", type=click.Path(path_type=Path), help="Where accepted revisions are kept: older ones are refused."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was approved as JSON.")
def verify(file: str, envelope: str, reviewers: str, subject: str, state: Path | None, as_json: bool) -> None:
    """Verify that enough reviewers have signed these bytes for this subject, as a revision that is not older than the last.

    Without --state an older revision is not noticed.

    \b
    casemate approval verify build.yaml --approval build.yaml.approval --reviewers reviewers.json \\
        --subject build-config --state accepted.json
    """
    import contextlib
    import fcntl
    import os

    from casemate import approval as approvals
    from casemate.cli.ui import read_input, require_file_name, write_output

    who = approvals.parse_reviewers(read_input(reviewers, approvals.LARGEST))
    content, data = read_input(file, _LARGEST_CONTENT), read_input(envelope, approvals.LARGEST)
    with contextlib.ExitStack() as stack:
        last: dict[str, tuple[int, str]] = {}
        if state is not None:
            require_file_name(str(state))
            lock = os.open(state.with_name(f".{state.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if state.exists():
                last = approvals.parse_last(read_input(str(state), approvals.LARGEST))
        approved = approvals.verify(content, data, who, subject=subject, last=last.get(subject))
        accepted = (approved.revision, approved.sha256)
        if state is not None and last.get(subject) != accepted:
            write_output(str(state), approvals.format_last({**last, subject: accepted}))
    if as_json:
        said = {"subject": approved.subject, "revision": approved.revision, "sha256": approved.sha256}
        click.echo(json.dumps({**said, "names": approved.names, "threshold": who.threshold}))
    else:
        click.echo(f"{file}: revision {approved.revision} of {subject}, approved by {', '.join(approved.names)}")
