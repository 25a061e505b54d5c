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
from casemate.contract.errors import ImageError, TrustError
from casemate.contract.images import DEFAULT_REGISTRY, Reference, workload_images
from casemate.guest import state
from casemate.guest.report import Stop, say

if TYPE_CHECKING:
    from casemate.guest.web import Server

UNFORESEEN = "HPL16002E"
POLICY = state.PUBLIC / "policy.json"
LOOKUPS = state.PUBLIC / "registries.d/workload.yaml"


def named(workload: dict[str, Any], environment: dict[str, str]) -> list[Reference]:
    """Return the images of the workload, each once."""
    found: dict[str, Reference] = {}
    for image in workload_images(workload, environment).values():
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
        raise Stop("HPL16004E", str(error)) from None
    try:
        return [admit(image, keys, resolve) for image in images]
    except ImageError as error:
        raise Stop("HPL06010E", str(error)) from None


class Signed:
    """Finds what the engine can't: the digests of tags by content trust and by cosign's signatures."""

    def __init__(self, now: datetime.datetime) -> None:
        self._now = now
        self._trusted: dict[ImageKey, Any] = {}
        self._tls: Any = None

    def digest(self, key: ImageKey, image: Reference) -> str:
        """Return the digest that the tag of an image stands for, by one key."""
        digest = self._by_trust(key, image) if key.kind == "dct" else self._by_cosign(key, image)
        say("HPL16011I", f"{image.canonical} is {digest} by its signature ({key.kind})")
        return digest

    def _by_trust(self, key: ImageKey, image: Reference) -> str:
        from casemate.contract.tuf import digest_of, read_pin, signed_targets
        from casemate.guest import web  # late: the standard library's HTTP takes a second of an emulated processor

        if key not in self._trusted:  # asked once, so that all tags are of one state
            url = urlsplit(key.url)
            server = self._server(url.netloc, image.registry)

            def fetch(name: str, limit: int) -> bytes:
                path = f"{url.path.rstrip('/')}/v2/{quote(image.name, safe='/:')}/_trust/tuf/{name}.json"
                if (data := server.get(path, limit)) is None:
                    raise Stop(
                        "HPL16008E", f"the notary server {url.netloc} has no {name.partition('.')[0]} of {image.name}"
                    )
                return data

            try:
                self._trusted[key] = signed_targets(image.name, read_pin(key.key), self._now, fetch)
            except web.WebError as error:
                raise Stop("HPL16008E", str(error)) from None
            except TrustError as error:
                if error.id == TrustError.EXPIRED:
                    raise Stop("HPL16007E", f"the trust data of {image.name}: {error}") from None
                raise Stop("HPL16006E", f"the trust data of {image.name}: {error}") from None
        digest = digest_of(self._trusted[key], image.tag or "latest")
        if digest is None:
            raise Stop("HPL16009E", f"nobody has signed {image.canonical}")
        return digest

    def _by_cosign(self, key: ImageKey, image: Reference) -> str:
        from casemate.contract import cosign
        from casemate.guest import web

        server = self._server(
            "registry-1.docker.io" if image.registry == DEFAULT_REGISTRY else image.registry, image.registry
        )
        place = f"/v2/{image.path}"

        def manifest_of(tag: str) -> bytes | None:
            return server.get(f"{place}/manifests/{tag}", cosign.LARGEST_MANIFEST, cosign.MANIFESTS)

        faults = []
        try:
            manifest = manifest_of(image.tag or "latest")
            if manifest is None:
                raise Stop("HPL06004E", f"{image.canonical} is not in its registry")
            digest = cosign.digest_of(manifest)
            listed = manifest_of(f"{digest.replace(':', '-')}.sig")
            for layer in cosign.layers(listed) if listed is not None else []:
                payload = server.get(f"{place}/blobs/{layer.digest}", cosign.LARGEST_PAYLOAD, "*/*") or b""
                if (fault := cosign.fault(payload, layer, key.key, image.canonical, digest)) is None:
                    return digest
                faults.append(fault)
        except web.WebError as error:
            raise Stop("HPL06004E", str(error)) from None
        except TrustError as error:
            raise Stop("HPL16010E", f"{image.canonical}: the list of signatures {error}") from None
        why = f"only signatures {', or '.join(dict.fromkeys(faults))}" if faults else "no signature"
        raise Stop("HPL16010E", f"{image.canonical} ({digest}) has {why}")

    def _server(self, host: str, registry: str) -> Server:
        from casemate.guest import web

        if self._tls is None:  # read once: the public authorities are many
            self._tls = web.context(path.read_text() for path in sorted(state.CERTIFICATES.iterdir()))
        logins = {name: login["auth"] for name, login in state.read_json(state.AUTH)["auths"].items()}
        return web.Server(host, registry, logins, self._tls)


def service() -> None:
    """Admit, and write what the engine reads."""
    workload = state.section("workload")
    signed = Signed(datetime.datetime.now(datetime.UTC))
    found = admitted(workload, named(workload, state.read_json(state.ENVIRONMENT)), signed.digest)
    state.write(POLICY, json.dumps(policy(found)), 0o644)
    state.write(LOOKUPS, json.dumps(lookups(found)), 0o644)  # JSON is YAML
    state.write_json(state.IMAGES, [{"named": each.named, "pulled": each.pulled} for each in found])
