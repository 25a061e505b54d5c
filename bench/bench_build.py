"""A keys-only image by a builder machine against the same on the host: both have the public parts ready.

python bench/bench_build.py          # ratios; the exit code is 1 where a target is missed

The machine starts, takes its job, makes keys and image, and ends. Where there is no KVM all of that is emulated.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import approval
from casemate.build import buildvm
from casemate.build import job as jobs
from casemate.image.build import build_image
from casemate.machine import qemu

TARGET, EMULATED_TARGET = 5.0, 40.0


def main() -> int:
    """Measure and print; return the exit code."""
    kvm = qemu.kvm_works()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        build_image(directory / "plain")  # root, initrd and authority are there afterwards
        began = time.monotonic()
        build_image(directory / "plain")
        plain = time.monotonic() - began
        keys = {person: ec.generate_private_key(ec.SECP384R1()) for person in ("alice", "bob")}
        pem = {
            person: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            for person, key in keys.items()
        }
        reviewers = json.dumps({"format": "casemate-reviewers/1", "threshold": 2, "reviewers": pem}).encode()
        builder = buildvm.create(directory / "builder", reviewers)
        job = buildvm.make_job(builder, jobs.IMAGE).as_bytes()
        statement = approval.statement(jobs.subject(buildvm.NAME), 1, job, approval.parse_reviewers(reviewers))
        signed = approval.pae(approval.PAYLOAD_TYPE, statement)
        by = [(person, key.sign(signed, ec.ECDSA(hashes.SHA384()))) for person, key in keys.items()]
        files, archive = buildvm.files_of(job)
        steps: list[tuple[float, str]] = []
        began = time.monotonic()
        buildvm.run(
            *(builder, job, approval.envelope(statement, by), files, directory / "state.img", directory / "image"),
            archive=archive,
            progress=lambda step: steps.append((time.monotonic() - began, step)),
        )
        whole = time.monotonic() - began
    at = {step.split(":")[0]: when for when, step in steps}
    start, done = at.get("HPL17010I", 0.0), at.get("HPL17011I", whole)
    target = TARGET if kvm else EMULATED_TARGET
    how = "KVM" if kvm else "emulated"
    print(f"# on the host {plain:.1f} s; machine ({how}) {whole:.1f} s: start {start:.1f} s, job {done - start:.1f} s")
    print(f"builder machine/host: ratio {whole / plain:.1f} (target ≤ {target:.0f}, {how})")
    return int(whole / plain > target)


if __name__ == "__main__":
    sys.exit(main())
