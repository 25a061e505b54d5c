"""Real machines: one image, one registry and one log backend for all tests; two machines run at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from surroundings import Outcome, World, attempt

from casemate.demo import images, parties
from casemate.demo.services import LogServer, Registry
from casemate.image.build import build_image, is_current
from casemate.machine import home

sys.path.insert(0, str(Path(__file__).parent.parent / "luks"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    image = home.directory() / "demo-image"  # the demo's: built once for both, current by content
    if not is_current(image):
        build_image(image)
    container = images.build(images.BUSYBOX)
    with ExitStack() as stack:
        registry = stack.enter_context(Registry.running(directory / "registry"))
        logs = stack.enter_context(LogServer.running(directory / "logs"))
        digest = registry.push(container, "busybox")
        name = f"{registry.host}/busybox@{digest}"
        yield World(image, registry, logs, name, parties.new_key(2048), directory)


@pytest.fixture(scope="session")
def outcomes(world: World, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """Start, two at a time, the machines of all refusals that were asked for."""
    from refusals import REFUSALS

    asked = [item.callspec.params.get("refusal") for item in request.session.items if hasattr(item, "callspec")]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def run(name: str) -> Outcome:
            return attempt(REFUSALS[name].make(world, stack))

        futures = {name: pool.submit(run, name) for name in dict.fromkeys(asked) if name is not None}
        yield futures
        for future in futures.values():
            future.cancel()
