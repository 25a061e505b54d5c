"""What deployments are made of, for tests."""

from __future__ import annotations

import json
from pathlib import Path

from casemate.deploy.model import Deployment, load

CONTRACT = b"workload: |\n  type: workload\nenv: |\n  type: env\n"


def make_image(
    directory: Path, arch: str = "amd64", tag: str = "11" * 16, hosts: tuple[str, ...] = ("z16.crt",)
) -> Path:
    """Make what looks like an image directory from outside."""
    directory.mkdir(exist_ok=True)
    said = {"format": "casemate-image/1", "version": "1", "arch": arch, "tag": tag, "hosts": list(hosts)}
    (directory / "image.json").write_text(json.dumps(said))
    (directory / "casemate.img").write_bytes(b"")
    (directory / "root.squashfs").write_bytes(b"")
    return directory


def empty(deployment: Deployment) -> Deployment:
    """Return the same deployment without machines: to apply it is to destroy."""
    return load(deployment.path, machines=False)
