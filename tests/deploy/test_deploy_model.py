"""The deployment file is read strictly, and every problem is told with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from deployments import CONTRACT, make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import casemate.cli
from casemate.deploy.errors import DeployError
from casemate.deploy.model import load, schema
from program import Result


def _keys() -> list[str]:
    definitions = schema()["$defs"]
    return [key for name in ("machine", "network", "volume") for key in definitions[name]["properties"]]


ONE = "machines:\n  db: {image: z, contract: contract.yaml%s}\n"
VOLUME = ", volumes: {data: {path: %s, size: 1G}}"


def test_what_is_not_said_has_a_value(write: Callable[..., Path]) -> None:
    machine = load(write(ONE % "")).machines["db"]
    assert (machine.tee, machine.memory, machine.cpus, machine.root_size) == ("s390-pv", 2 << 30, 2, 8 << 30)
    assert machine.running and not machine.autostart and machine.network.network == ""


def test_paths_are_those_beside_the_file(write: Callable[..., Path], tmp_path: Path) -> None:
    deployment = load(write(ONE % (VOLUME % "x/../data.img")))
    assert deployment.directory == tmp_path / "made"
    assert deployment.machines["db"].volumes[0].path == tmp_path / "data.img"


def test_every_problem_is_told_at_once_with_its_place(write: Callable[..., Path]) -> None:
    said = "memory: 1, cpus: 99, volumes: {data: {size: 1G}}, network: {bridge: br0, network: default}, rum: 1"
    with pytest.raises(DeployError) as error:
        load(write(ONE % f", {said}"))
    assert "machines.db.cpus" in error.value.cause and "machines.db.rum" in error.value.cause
    with pytest.raises(DeployError) as error:
        load(write(ONE % ", memory: 1, volumes: {data: {size: 1G}}, network: {bridge: br0, network: default}"))
    places = {line.strip().split(":")[0] for line in error.value.cause.splitlines()}
    assert places == {"machines.db.memory", "machines.db.network", "machines.db.volumes.data"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("machines: {'../etc': {image: z, contract: contract.yaml}}\n", "the name"),
        ("machines: {'a/b': {image: z, contract: contract.yaml}}\n", "the name"),
        ("machines: {'': {image: z, contract: contract.yaml}}\n", "the name"),
        ('machines: {"a\\n": {image: z, contract: contract.yaml}}\n', "the name"),
        ('machines: {"x\'/><disk": {image: z, contract: contract.yaml}}\n', "the name"),
        (ONE % ", volumes: {'../x': {path: x, size: 1G}}", "the name"),
        (ONE % ', network: {network: "a\'/>"}', "network.network"),
        (ONE % ", network: {bridge: 'br0 x'}", "network.bridge"),
        (ONE % ", network: {mac: '53:54:00:00:00:01'}", "unicast"),
        (ONE % ", network: {ports: ['0:1']}", "1 to 65535"),
        (ONE % ", network: {ports: ['80:1', '80:2']}", "twice"),
        (ONE % ", network: {config: deployment.yaml}", "network.config"),
        (ONE % ', volumes: {data: {path: "a\\x01b", size: 1G}}', "a character"),
        (ONE % ', volumes: {data: {path: "a\\x00b", size: 1G}}', "a character"),
        (ONE % ", volumes: {data: {path: x, pool: y, size: 1G}}", "either path or pool"),
        (ONE % ", volumes: {data: {path: x, size: 1M}}", "256M or more"),
        (ONE % ", volumes: {data: {path: x, size: 9999999T}}", "256M or more"),
        (ONE % (VOLUME % "z/root.squashfs"), "another purpose"),
        (ONE % (VOLUME % "deployment.yaml"), "another purpose"),
        (ONE % (VOLUME % "made/db/data.img"), "removed with the machine"),
        (ONE % ", volumes: {a: {path: x, size: 1G}, b: {path: y/../x, size: 1G}}", "already"),
        (ONE % ", tee: sev", "tee"),
        ("machines: {db: {image: pc, contract: contract.yaml, tee: s390-pv}}\n", "for s390x images"),
        ("machines: {db: {image: made, contract: contract.yaml}}\n", "not an image directory"),
        ("machines: {db: {image: z, contract: missing}}\n", "machines.db.contract: can't be read"),
        ("machines: {db: {image: z, contract: z/image.json}}\n", "machines.db.contract"),
        ("machines: {db: {image: z}}\n", "machines.db.contract: is missing"),
        ("machines: {}\nmachines: {}\n", "second time"),
        ("machines: &a {}\n", "anchor"),
        ("other: 1\nmachines: {}\n", "other: no such key"),
        ("machines: [\n", "not YAML"),
    ],
)
def test_a_file_is_refused(write: Callable[..., Path], text: str, what: str) -> None:
    with pytest.raises(DeployError) as error:
        load(write(text))
    assert error.value.id == "DEPLOY-FILE" and what in f"{error.value}"


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ext:///session?command=/tmp/evil",
        "qemu+ssh://elsewhere/session",
        "qemu://elsewhere/session",
        "--help",
        "''",
    ],
)
def test_a_connection_leads_to_this_host_and_runs_nothing(write: Callable[..., Path], uri: str) -> None:
    with pytest.raises(DeployError, match="connection"):
        load(write(ONE % "", uri))


def test_the_software_tee_is_refused_where_the_host_key_is_another_users(write: Callable[..., Path]) -> None:
    with pytest.raises(DeployError, match="qemu:///session"):
        load(write("machines: {db: {image: pc, contract: contract.yaml}}\n", "qemu:///system"))


def test_an_image_for_the_software_ultravisor_is_refused_on_ibm_z(write: Callable[..., Path], tmp_path: Path) -> None:
    said = json.loads((tmp_path / "z/image.json").read_text()) | {"hosts": ["development.crt"]}
    (tmp_path / "z/image.json").write_text(json.dumps(said))
    with pytest.raises(DeployError, match="--host-key"):
        load(write(ONE % ""))


def test_two_machines_cannot_share_a_disk_or_a_port(write: Callable[..., Path]) -> None:
    each = "{image: z, contract: contract.yaml, network: {ports: ['80:80']}, volumes: {d: {path: x, size: 1G}}}"
    with pytest.raises(DeployError) as error:
        load(write(f"machines:\n  a: {each}\n  b: {each}\n"))
    assert "machines.b.volumes.d: is machines.a.volumes.d already" in error.value.cause
    assert "80 is a port of a already" in error.value.cause


def test_a_value_of_the_contract_is_in_no_message_and_no_repr(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_bytes(b"workload: |\n  seed: geheim\nenv: [geheim]\n")
    with pytest.raises(DeployError) as error:
        load(write(ONE % ""))
    assert "geheim" not in error.value.diagnostics()
    (tmp_path / "contract.yaml").write_bytes(CONTRACT + b"# geheim\n")
    assert "geheim" not in repr(load(write(ONE % "")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_deployment_or_one_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(DeployError):
        load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(["image", "size", *_keys()])), inner)
        ),
        max_leaves=12,
    )
)
def test_any_values_give_a_deployment_or_one_error(tmp_path: Path, value: object) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(json.dumps({"machines": {"db": value}}))
    with pytest.raises(DeployError):
        load(path)


def test_the_starter_has_the_right_form(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("deploy", "init", "deployment.yaml").code == 0
    assert run("deploy", "init", "deployment.yaml").code == 1
    make_image(tmp_path / "image", "s390x")
    (tmp_path / "contract.yaml").write_bytes(CONTRACT)
    machine = load(tmp_path / "deployment.yaml").machines["db"]
    assert (machine.memory, machine.volumes[0].size, machine.network.network) == (4 << 30, 10 << 30, "default")
    assert Path(casemate.cli.__file__).with_name("starter").joinpath("deployment.yaml").is_file()


def test_the_schema_is_one(run: Callable[..., Result]) -> None:
    import jsonschema

    said = json.loads(run("deploy", "schema").out)
    jsonschema.Draft202012Validator.check_schema(said)
