"""Signs images: simple signing with GPG, by skopeo; and cosign's form, as an image beside the image.

    gpg = Gpg.load(directory, state.gpg)                  # directory: in memory, or on an encrypted disk
    gpg.sign(layout, "r.example.com/app:17", signed)      # a directory of skopeo's with the image and signature-1
    write_cosign(directory, "r.example.com/app", ["17"], digest, state.cosign)

Both name the image with its tag, without which a signature could be put under any tag. GPG keys are RSA: the container engines
that verify with Go's OpenPGP know no newer ones.

Formats: ``containers-signature(5)``; cosign ``specs/SIGNATURE_SPEC.md``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.hpsb.errors import refused

PAYLOAD, ANNOTATION = "application/vnd.dev.cosign.simplesigning.v1+json", "dev.cosignproject.cosign/signature"
_OPTIONS = ("gpg", "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "")


@dataclass(frozen=True, slots=True)
class Gpg:
    """A home of GPG with one private key."""

    home: Path
    fingerprint: str

    @classmethod
    def create(cls, home: Path) -> str:
        """Make a key in a new home; return it, armored. The home is removed by the caller."""
        home.mkdir(mode=0o700, parents=True)
        name = f"Casemate secure build {os.urandom(4).hex()} <build@casemate.invalid>"
        _run(home, *_OPTIONS, "--quick-generate-key", name, "rsa3072", "sign", "never")
        return _run(home, *_OPTIONS, "--armor", "--export-secret-keys").decode()

    @classmethod
    def load(cls, home: Path, private: str) -> Gpg:
        """Put a key into a new home."""
        home.mkdir(mode=0o700, parents=True)
        _run(home, *_OPTIONS, "--import", stdin=private.encode())
        listed = _run(home, *_OPTIONS, "--with-colons", "--list-secret-keys").decode().splitlines()
        return cls(home, next(line.split(":")[9] for line in listed if line.startswith("fpr")))

    def public(self) -> str:
        """Return the public half, armored."""
        return _run(self.home, *_OPTIONS, "--armor", "--export-options", "export-minimal", "--export").decode()

    def sign(self, layout: Path, image: str, signed: Path) -> bytes:
        """Copy the image of a layout into a directory of skopeo's, with its signature for ``image``; return the signature."""
        _run(
            self.home,
            *("skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests"),
            *("--sign-by", self.fingerprint, "--sign-identity", image, f"oci:{layout}", f"dir:{signed}"),
        )
        return (signed / "signature-1").read_bytes()

    def close(self) -> None:
        """End the agent that GPG has started."""
        stop_agent(self.home)


def stop_agent(home: Path) -> None:
    """End the agent of a home, if one runs."""
    with suppress(OSError):
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=_environment(home), capture_output=True, check=False)


def write_cosign(layout: Path, name: str, tags: Sequence[str], digest: str, private: str) -> None:
    """Write the image that holds the signatures of an image in cosign's form, one for each of its tags."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Any = load_pem_private_key(private.encode(), None)
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(media: str, content: bytes) -> dict[str, Any]:
        hexadecimal = hashlib.sha256(content).hexdigest()
        (blobs / hexadecimal).write_bytes(content)
        return {"mediaType": media, "digest": f"sha256:{hexadecimal}", "size": len(content)}

    listed = []
    for tag in tags:
        critical = {
            "identity": {"docker-reference": f"{name}:{tag}"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        }
        payload = json.dumps({"critical": critical, "optional": None}).encode()
        signature = base64.b64encode(key.sign(payload, ec.ECDSA(SHA256()))).decode()
        listed.append({**blob(PAYLOAD, payload), "annotations": {ANNOTATION: signature}})
    diffs = [layer["digest"] for layer in listed]
    config = {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    described = blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media, "config": described, "layers": listed}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [blob(media, json.dumps(manifest).encode())]}
    (layout / "index.json").write_text(json.dumps(index))


def _environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "GNUPGHOME": str(home),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
    }


def _run(home: Path, *command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, env=_environment(home), check=False, timeout=600)
    if done.returncode:
        raise refused("SIGN", f"{command[0]} does not sign", "look at the log of the server")
    return done.stdout
