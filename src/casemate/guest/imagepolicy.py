"""``hpl-image-policy``: which images may start, told to the container engine in its own words.

The engine's policy rejects everything; then each image that the workload names gets one exact scope: its digest, or
the signatures that it must have. So even a mistake in what follows starts nothing that the contract doesn't name. What the
engine of Debian doesn't know is verified here, content trust and cosign's signatures: each gives a digest.

This service talks to servers that nobody trusts and parses what they say: it has no capability and writes two directories.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from casemate.contract.admission import Admitted, ImageKey, admit, lookups, policy, read_keys
from casemate.contract.archive import read_archive
from casemate.contract.errors import ContractError, ImageError, TrustError
from casemate.contract.images import DEFAULT_REGISTRY, Reference, compose_images, read_compose
from casemate.guest import state
from casemate.guest.report import Stop, run, say

if TYPE_CHECKING:
    from casemate.guest.web import Server

POLICY = state.PUBLIC / "policy.json"
LOOKUPS = state.PUBLIC / "registries.d/workload.yaml"


def named(workload: dict[str, Any], environment: dict[str, str]) -> list[Reference]:
    """Return the images of the workload, each once."""
    try:
        _, text = read_archive(workload["compose"]["archive"]).compose()
        images = compose_images(read_compose(text), environment)
    except ContractError as error:
        raise Stop("HPL06009E", str(error)) from None
    found: dict[str, Reference] = {}
    for image in images.values():
        if not isinstance(image, Reference):
            raise Stop("HPL06009E", str(image))
        found[image.canonical] = image
    return list(found.values())


def admitted(
    workload: dict[str, Any], images: Sequence[Reference], resolve: Callable[[ImageKey, Reference], str]
) -> list[Admitted]:
    """Return how each image is admitted; one that isn't stops."""
    try:
        keys = read_keys(workload)
    except ImageError as error:
        raise Stop(error.id, str(error)) from None
    try:
        return [admit(image, keys, resolve) for image in images]
    except ImageError as error:
        raise Stop("HPL06010E", str(error)) from None


class Signed:
    """Finds what the engine can't: the digests of tags by content trust and by cosign's signatures."""

    def __init__(self, now: datetime.datetime) -> None:
        self._now = now
        self._trusted: dict[ImageKey, Any] = {}

    def digest(self, key: ImageKey, image: Reference) -> str:
        """Return the digest that the tag of an image stands for, by one key."""
        digest = self._by_trust(key, image) if key.kind == "dct" else self._by_cosign(key, image)
        say("HPL16011I", f"{image.canonical} is {digest} by its signature ({key.kind})")
        return digest

    def _by_trust(self, key: ImageKey, image: Reference) -> str:
        from casemate.contract.tuf import digest_of, read_pin, signed_targets

        if key not in self._trusted:  # asked once, so that all tags are of one state
            url = urlsplit(key.url)
            server = _server(url.netloc, image.registry, "HPL16008E")

            def fetch(name: str, limit: int) -> bytes:
                path = f"{url.path.rstrip('/')}/v2/{quote(image.name, safe='/:')}/_trust/tuf/{name}.json"
                if (data := server.get(path, limit)) is None:
                    raise Stop(
                        "HPL16008E", f"the notary server {url.netloc} has no {name.partition('.')[0]} of {image.name}"
                    )
                return data

            try:
                self._trusted[key] = signed_targets(image.name, read_pin(key.key), self._now, fetch)
            except TrustError as error:
                id = "HPL16007E" if error.id == TrustError.EXPIRED else "HPL16006E"
                raise Stop(id, f"the trust data of {image.name}: {error}") from None
        digest = digest_of(self._trusted[key], image.tag or "latest")
        if digest is None:
            raise Stop("HPL16009E", f"nobody has signed {image.canonical}")
        return digest

    @staticmethod
    def _by_cosign(key: ImageKey, image: Reference) -> str:
        from casemate.contract import cosign

        host = "registry-1.docker.io" if image.registry == DEFAULT_REGISTRY else image.registry
        server = _server(host, image.registry, "HPL06004E")
        path = f"/v2/{image.path}"
        manifest = server.get(f"{path}/manifests/{image.tag or 'latest'}", cosign.LARGEST_MANIFEST, cosign.MANIFESTS)
        if manifest is None:
            raise Stop("HPL06004E", f"{image.canonical} is not in its registry")
        digest = cosign.digest_of(manifest)
        tag = f"{digest.replace(':', '-')}.sig"
        listed = server.get(f"{path}/manifests/{tag}", cosign.LARGEST_MANIFEST, cosign.MANIFESTS)
        faults = []
        try:
            for layer in cosign.layers(listed) if listed is not None else []:
                payload = server.get(f"{path}/blobs/{layer.digest}", cosign.LARGEST_PAYLOAD, "*/*") or b""
                if (fault := cosign.fault(payload, layer, key.key, image.canonical, digest)) is None:
                    return digest
                faults.append(fault)
        except TrustError as error:
            raise Stop("HPL16010E", f"{image.canonical}: the signature {error}") from None
        why = f"only signatures {', or '.join(dict.fromkeys(faults))}" if faults else "no signature"
        raise Stop("HPL16010E", f"{image.canonical} ({digest}) has {why}")


def _server(host: str, registry: str, id: str) -> Server:
    from casemate.guest import web

    logins = {name: login["auth"] for name, login in state.read_json(state.AUTH)["auths"].items()}
    tls = web.context(path.read_text() for path in sorted(state.CERTIFICATES.iterdir()))
    return web.Server(host, registry, logins, tls, id)


def service() -> None:
    """Admit, and write what the engine reads."""
    workload = state.section("workload")
    signed = Signed(datetime.datetime.now(datetime.UTC))
    found = admitted(workload, named(workload, state.read_json(state.ENVIRONMENT)), signed.digest)
    state.write(POLICY, json.dumps(policy(found)), 0o644)
    state.write(LOOKUPS, json.dumps(lookups(found)), 0o644)  # JSON is YAML
    state.write_json(state.IMAGES, [{"named": each.named, "pulled": each.pulled} for each in found])


if __name__ == "__main__":
    raise SystemExit(run(service, "HPL16002E"))
