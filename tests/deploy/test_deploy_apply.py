"""Plans and their application against a real libvirt: nothing twice, nothing silently, nothing that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployments import CONTRACT, empty, make_image

from casemate.cidata import read_volume
from casemate.deploy import apply as applying
from casemate.deploy import state as states
from casemate.deploy.errors import DeployError
from casemate.deploy.libvirt import Virsh
from casemate.deploy.model import Deployment, load
from program import Result

MACHINE = "{image: z, contract: contract.yaml, running: false, \
memory: %s, root: {size: 2G}, volumes: {data: {path: %s, size: %s}}}"
RUNNING = MACHINE.replace("running: false, ", "")

pytestmark = pytest.mark.components


@dataclass
class Lab:
    """A deployment file, and the libvirt that it is for."""

    connection: str
    write: Callable[..., Path]
    directory: Path

    @property
    def libvirt(self) -> Virsh:
        return Virsh(self.connection)

    def load(self, **machines: str) -> Deployment:
        text = "machines:\n" + "".join(f"  {name}: {said}\n" for name, said in machines.items())
        return load(self.write(text if machines else "machines: {}\n", self.connection))

    def one(self, memory: str = "1G", path: str = "data.img", size: str = "256M") -> Deployment:
        return self.load(db=MACHINE % (memory, path, size))

    def acts(self, deployment: Deployment) -> list[str]:
        return [step.act for step in applying.look_and_plan(deployment, self.libvirt).steps]

    def apply(self, deployment: Deployment, agreed: bool = False) -> list[str]:
        done = applying.apply(deployment, self.libvirt, agreed=agreed, patience=0)
        return [step.act for step in done.steps]

    def virsh(self, *words: str, text: str | None = None) -> str:
        done = subprocess.run(
            ["virsh", "-q", "-c", self.connection, *words], input=text, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def lab(connection: str, write: Callable[..., Path], tmp_path: Path) -> Lab:
    return Lab(connection, write, tmp_path)


def test_a_second_apply_changes_nothing(lab: Lab) -> None:
    deployment = lab.one()
    assert lab.acts(deployment) == ["make", "write", "write", "define"]
    assert lab.libvirt.names() == {} and not (lab.directory / "made").exists(), "a plan changes nothing"
    lab.apply(deployment)
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in lab.directory.rglob("*") if path.is_file()
    }
    assert lab.acts(deployment) == [] and lab.apply(deployment) == []
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in lab.directory.rglob("*") if path.is_file()}
    assert before == after
    assert read_volume((lab.directory / "made/db/cidata.img").read_bytes())["user-data"] == CONTRACT


def test_what_changes_in_the_file_changes_in_libvirt_and_nothing_else(lab: Lab) -> None:
    lab.apply(lab.one())
    changed = lab.one("2G")
    (step,) = applying.look_and_plan(changed, lab.libvirt).steps
    assert [(change.what, change.old, change.new) for change in step.changes] == [("memory", "1024", "2048")]
    lab.apply(changed)
    assert "2097152</memory>" in lab.virsh("dumpxml", "db")
    assert lab.acts(changed) == []


def test_another_contract_or_image_is_seen(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    (lab.directory / "contract.yaml").write_bytes(CONTRACT + b"# another\n")
    assert lab.apply(lab.one()) == ["write", "define"]
    assert b"another" in read_volume((lab.directory / "made/db/cidata.img").read_bytes())["user-data"]
    make_image(lab.directory / "z", "s390x", tag="22" * 16)
    assert lab.acts(lab.one()) == ["define"]


def test_autostart_is_set_and_taken_back(lab: Lab) -> None:
    lab.apply(lab.one())
    said = MACHINE % ("1G", "data.img", "256M")
    assert lab.apply(lab.load(db=said.replace("running", "autostart: true, running")))[-1] == "autostart"
    assert "Autostart:      enable" in lab.virsh("dominfo", "db")
    assert lab.apply(lab.one()) == ["autostart"]


def test_drift_is_told_and_mended(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    xml = lab.virsh("dumpxml", "db").replace("</devices>", "<graphics type='vnc' port='-1'/></devices>")
    lab.virsh("define", "/dev/stdin", text=xml)
    plan = applying.look_and_plan(deployment, lab.libvirt)
    assert any(change.what == "devices.graphics.type" and change.new == "vnc" for change in plan.drift["db"])
    lab.apply(deployment)
    assert "graphics" not in lab.virsh("dumpxml", "db") and lab.acts(deployment) == []


def test_a_domain_that_was_removed_is_told_and_defined_again(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    lab.virsh("undefine", "db")
    plan = applying.look_and_plan(deployment, lab.libvirt)
    assert [change.what for change in plan.drift["db"]] == ["domain"]
    assert lab.apply(deployment) == ["define"] and lab.acts(deployment) == []


def test_a_volume_that_was_swapped_is_written_again(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    (lab.directory / "made/db/cidata.img").write_bytes(b"evil")
    assert lab.apply(deployment) == ["write"] and lab.acts(deployment) == []


def test_a_domain_of_the_same_name_that_is_not_ours_is_never_touched(lab: Lab) -> None:
    xml = "<domain type='test'><name>db</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    lab.virsh("define", "/dev/stdin", text=xml)
    before = lab.virsh("dumpxml", "db")
    for agreed in (False, True):
        with pytest.raises(DeployError) as error:
            lab.apply(lab.one(), agreed)
        assert error.value.id == "DEPLOY-FOREIGN"
    assert lab.virsh("dumpxml", "db") == before and not (lab.directory / "data.img").exists()
    assert lab.apply(empty(lab.one()), agreed=True) == []
    assert lab.virsh("dumpxml", "db") == before


def test_a_state_that_names_a_foreign_domain_gives_no_right_to_it(lab: Lab) -> None:
    """The state file is forged so that the other's domain would have our UUID, and says it was defined by us."""
    deployment = lab.one()
    state = states.new(deployment.connection, deployment.directory).with_machine("db", states.Known())
    states.save(states.place(deployment.path), state)
    from casemate.deploy.domain import identity

    unique = identity(state.id, "db")
    xml = f"<domain type='test'><name>db</name><uuid>{unique}</uuid><memory>65536</memory>"
    lab.virsh("define", "/dev/stdin", text=xml + "<os><type>hvm</type></os></domain>")
    with pytest.raises(DeployError) as error:
        lab.apply(deployment, agreed=True)
    assert error.value.id == "DEPLOY-FOREIGN"
    lab.apply(empty(deployment), agreed=True)
    assert lab.libvirt.names() == {"db": unique}, "destroy forgets what it can't prove to be its own, and leaves it"


def test_a_renamed_domain_is_not_made_a_second_time(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    lab.virsh("domrename", "db", "other")
    with pytest.raises(DeployError, match="domrename"):
        lab.apply(deployment, agreed=True)


def test_a_lost_state_makes_the_domain_a_foreign_one(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    states.place(deployment.path).unlink()
    with pytest.raises(DeployError) as error:
        lab.apply(deployment, agreed=True)
    assert error.value.id == "DEPLOY-FOREIGN"


def test_a_data_volume_grows_and_never_shrinks(lab: Lab) -> None:
    lab.apply(lab.one())
    (lab.directory / "data.img").write_bytes(b"precious".ljust(256 << 20, b"\0"))
    assert lab.apply(lab.one(size="512M")) == ["grow"]
    data = (lab.directory / "data.img").open("rb")
    assert data.read(8) == b"precious" and (lab.directory / "data.img").stat().st_size == 512 << 20
    with pytest.raises(DeployError) as error:
        lab.apply(lab.one(size="256M"), agreed=True)
    assert error.value.id == "DEPLOY-VOLUME" and (lab.directory / "data.img").stat().st_size == 512 << 20


def test_a_data_volume_that_is_gone_is_not_replaced_by_an_empty_one(lab: Lab) -> None:
    lab.apply(lab.one())
    (lab.directory / "data.img").unlink()
    with pytest.raises(DeployError, match="gone"):
        lab.apply(lab.one(), agreed=True)
    assert not (lab.directory / "data.img").exists()


def test_a_data_volume_outlives_its_machine(lab: Lab, run: Callable[..., Result]) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    plan = applying.look_and_plan(empty(deployment), lab.libvirt)
    assert plan.kept == (str(lab.directory / "data.img"),)
    assert run("deploy", "destroy", deployment.path).code == 1, "a removal is agreed to"
    assert lab.libvirt.names().keys() == {"db"}
    done = run("deploy", "destroy", deployment.path, "--yes")
    assert done.code == 0 and b"data.img stays" in done.out
    assert lab.libvirt.names() == {} and (lab.directory / "data.img").stat().st_size == 256 << 20
    assert not (lab.directory / "made/db").exists() and not states.place(deployment.path).exists()


def test_a_machine_that_is_taken_out_of_the_file_is_removed_only_by_who_agrees(lab: Lab) -> None:
    said = MACHINE % ("1G", "%s.img", "256M")
    lab.apply(lab.load(a=said % "a", b=said % "b"))
    smaller = lab.load(a=said % "a")
    with pytest.raises(DeployError) as error:
        lab.apply(smaller)
    assert error.value.id == "DEPLOY-CONSENT" and lab.libvirt.names().keys() == {"a", "b"}
    lab.apply(smaller, agreed=True)
    assert lab.libvirt.names().keys() == {"a"} and (lab.directory / "b.img").exists()


def test_only_files_of_ours_are_removed(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    (lab.directory / "made/db/notes.txt").write_text("mine")
    (lab.directory / "made/db/console.log").symlink_to(lab.directory / "contract.yaml")
    lab.apply(empty(deployment), agreed=True)
    assert [path.name for path in (lab.directory / "made/db").iterdir()] == ["notes.txt"]
    assert (lab.directory / "contract.yaml").read_bytes() == CONTRACT


@pytest.mark.parametrize("kind", ["link", "dangling link", "device", "directory", "pipe"])
def test_a_volume_that_is_no_regular_file_is_refused(lab: Lab, kind: str) -> None:
    path = lab.directory / "data.img"
    victim = lab.directory / "victim"
    if kind == "link":
        victim.write_bytes(b"victim")
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(DeployError) as error:
        lab.apply(lab.one(path=str(path)), agreed=True)
    assert error.value.id == "DEPLOY-VOLUME" and lab.libvirt.names() == {}
    assert not victim.exists() or victim.read_bytes() == b"victim"


def test_a_link_in_place_of_a_machines_directory_is_refused(lab: Lab) -> None:
    deployment = lab.one()
    (lab.directory / "victim").mkdir()
    (lab.directory / "victim/cidata.img").write_bytes(b"victim")
    (lab.directory / "made").mkdir()
    (lab.directory / "made/db").symlink_to(lab.directory / "victim")
    with pytest.raises(DeployError) as error:
        lab.apply(deployment, agreed=True)
    assert error.value.id == "DEPLOY-DISK" and (lab.directory / "victim/cidata.img").read_bytes() == b"victim"


def test_what_is_gone_from_the_disk_can_still_be_destroyed(lab: Lab, run: Callable[..., Result]) -> None:
    path = lab.one().path
    assert run("deploy", "apply", path).code == 0
    (lab.directory / "contract.yaml").unlink()
    (lab.directory / "z/image.json").unlink()
    assert run("deploy", "plan", path).code == 1
    assert run("deploy", "destroy", path, "--yes").code == 0 and lab.libvirt.names() == {}


def test_console_and_record_are_read_where_libvirt_writes_them(lab: Lab, run: Callable[..., Result]) -> None:
    path = lab.one().path
    assert run("deploy", "record", path, "db", "-o", "record").code == 1
    (lab.directory / "made/db").mkdir(parents=True)
    (lab.directory / "made/db/console.log").write_bytes(b"HPL10001I: started\x1b[2J\r\n")
    (lab.directory / "made/db/record.json").write_text(json.dumps({"se-checksums.txt": "YQ=="}) + "\n")
    assert run("deploy", "logs", path, "db").out == b"HPL10001I: started[2J\n"
    assert run("deploy", "record", path, "db", "-o", "record").code == 0
    assert (lab.directory / "record/se-checksums.txt").read_bytes() == b"a"
    assert run("deploy", "logs", path, "other").code == 1


def test_a_link_in_place_of_our_disk_is_replaced_and_not_followed(lab: Lab) -> None:
    deployment = lab.one()
    victim = lab.directory / "victim"
    victim.write_bytes(b"victim")
    (lab.directory / "made/db").mkdir(parents=True)
    for name in ("cidata.img", "root.img", ".cidata.img.new", ".root.img.new"):
        (lab.directory / "made/db" / name).symlink_to(victim)
    lab.apply(deployment)
    assert victim.read_bytes() == b"victim" and lab.acts(deployment) == []
    assert not (lab.directory / "made/db/root.img").is_symlink()


FORGED: list[Callable[[dict[str, Any]], Any]] = [
    lambda said: said["machines"].update({"../../etc": said["machines"]["db"]}),
    lambda said: said["machines"]["db"].update({"volume": "/etc/passwd"}),
    lambda said: said.update({"format": "casemate-deployment-state/2"}),
    lambda said: said.update({"id": "../../etc"}),
    lambda said: said.update({"id": said["id"].upper()}),
    lambda said: said.update({"machines": []}),
    lambda said: said["machines"]["db"].update({"asked": 5}),
    lambda said: said.pop("id"),
    lambda said: said.update({"directory": "/etc"}),
    lambda said: said.update({"connection": "qemu:///system"}),
    lambda said: said["machines"]["db"].update({"asked": "<domain"}),
    lambda said: said["machines"]["db"].update({"given": "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><d>&a;</d>"}),
]


@pytest.mark.parametrize("number", range(len(FORGED)))
def test_a_forged_state_is_refused(lab: Lab, number: int) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    place = states.place(deployment.path)
    said = json.loads(place.read_text())
    FORGED[number](said)
    place.write_text(json.dumps(said))
    before = lab.virsh("dumpxml", "db")
    for each in (deployment, empty(deployment)):
        with pytest.raises(DeployError) as error:
            lab.apply(each, agreed=True)
        assert error.value.id == "DEPLOY-STATE"
    assert lab.virsh("dumpxml", "db") == before


def test_a_state_that_is_a_link_is_refused(lab: Lab) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    place = states.place(deployment.path)
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))
    with pytest.raises(DeployError):
        lab.apply(deployment)


def test_no_secret_of_a_contract_is_in_the_state_and_others_cannot_read_it(lab: Lab) -> None:
    (lab.directory / "contract.yaml").write_bytes(CONTRACT + b"# geheim\n")
    deployment = lab.one()
    lab.apply(deployment)
    place = states.place(deployment.path)
    assert "geheim" not in place.read_text() and place.stat().st_mode & 0o077 == 0
    assert "geheim" not in lab.virsh("dumpxml", "db")


def test_two_at_once_are_not_possible(lab: Lab) -> None:
    deployment = lab.one()
    with states.locked(states.place(deployment.path)), pytest.raises(DeployError) as error:
        lab.apply(deployment)
    assert error.value.id == "DEPLOY-LOCKED" and lab.libvirt.names() == {}


def test_an_interrupted_apply_goes_on_wherever_it_was_cut(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before each step and before each write of the state, each place in turn, in all of a machine's life."""
    lives = [
        lab.load(db=RUNNING % ("2G", "data.img", "512M")),
        lab.load(),
        lab.load(db=RUNNING % ("1G", "data.img", "256M")),
    ]
    calls, limit, cuts = 0, 1000, 0

    def cutting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(states, "save", cutting(states.save))
    monkeypatch.setattr(applying, "_write", cutting(applying._write))
    monkeypatch.setattr(applying, "_provide", cutting(applying._provide))
    for name in ("define", "undefine", "start", "stop"):
        monkeypatch.setattr(Virsh, name, cutting(getattr(Virsh, name)))
    for place in range(1, 12):
        lab.apply(lives[2])
        for each in lives[:2]:
            calls, limit = 0, place
            try:
                lab.apply(each, agreed=True)
            except KeyboardInterrupt:
                cuts += 1
            calls, limit = 0, 1000
            lab.apply(each, agreed=True)
            assert lab.acts(each) == []
            assert lab.libvirt.names().keys() == each.machines.keys()
        assert (lab.directory / "data.img").stat().st_size == 512 << 20
        (lab.directory / "data.img").unlink()
    assert cuts >= 10


def test_the_program_has_the_exit_codes_of_its_kind(lab: Lab, run: Callable[..., Result]) -> None:
    path = lab.one().path
    assert run("deploy", "plan", path).code == 0
    assert run("deploy", "plan", path, "--detailed-exitcode").code == 2
    done = json.loads(run("deploy", "apply", path, "--json").out)
    assert done["changes"] and [step["act"] for step in done["steps"]][-1] == "define"
    assert run("deploy", "plan", path, "--detailed-exitcode").code == 0
    (row,) = json.loads(run("deploy", "show", path, "--json").out)
    assert (row["name"], row["state"], row["tee"]) == ("db", "stopped", "s390-pv")
    assert b"nothing differs" in run("deploy", "plan", path).out
    lab.write("machines: {db: 1}\n", lab.connection)
    assert run("deploy", "plan", path, "--detailed-exitcode").code == 1


def test_the_xml_that_is_shown_is_the_one_that_is_asked_for(lab: Lab, run: Callable[..., Result]) -> None:
    deployment = lab.one()
    lab.apply(deployment)
    state = states.load(states.place(deployment.path))
    assert state is not None
    assert run("deploy", "show", deployment.path, "--xml", "db").out.decode() == state.machines["db"].asked


def test_a_libvirt_that_is_not_there_is_one_message(write: Callable[..., Path]) -> None:
    said = MACHINE % ("1G", "data.img", "256M")
    deployment = load(write(f"machines: {{db: {said}}}\n", "qemu+unix:///session?socket=/nowhere"))
    with pytest.raises(DeployError) as error:
        applying.look_and_plan(deployment, Virsh(deployment.connection))
    assert error.value.id == "DEPLOY-LIBVIRT"


def test_a_running_machine_is_stopped_only_by_who_agrees(lab: Lab) -> None:
    assert lab.apply(lab.load(db=RUNNING % ("1G", "data.img", "256M")))[-2:] == ["define", "start"]
    running = lab.virsh("domid", "db")
    changed = lab.load(db=RUNNING % ("2G", "data.img", "256M"))
    with pytest.raises(DeployError) as error:
        lab.apply(changed)
    assert error.value.id == "DEPLOY-CONSENT" and lab.virsh("domid", "db") == running
    assert "2097152</memory>" not in lab.virsh("dumpxml", "--inactive", "db")
    assert lab.apply(changed, agreed=True) == ["stop", "define", "start"]
    assert lab.virsh("domid", "db") != running and lab.acts(changed) == []


def test_a_volume_grows_only_while_its_machine_is_stopped(lab: Lab) -> None:
    lab.apply(lab.load(db=RUNNING % ("1G", "data.img", "256M")))
    larger = lab.load(db=RUNNING % ("1G", "data.img", "512M"))
    with pytest.raises(DeployError):
        lab.apply(larger)
    assert (lab.directory / "data.img").stat().st_size == 256 << 20
    assert lab.apply(larger, agreed=True) == ["stop", "grow", "start"]


def test_a_machine_that_stopped_is_started_and_one_that_should_not_run_is_stopped(lab: Lab) -> None:
    deployment = lab.load(db=RUNNING % ("1G", "data.img", "256M"))
    lab.apply(deployment)
    lab.virsh("destroy", "db")
    assert lab.apply(deployment) == ["start"] and lab.acts(deployment) == []
    assert lab.apply(lab.one(), agreed=True) == ["stop"]


def test_the_question_is_asked_of_a_program_by_its_exit_code(lab: Lab, run: Callable[..., Result]) -> None:
    path = lab.load(db=RUNNING % ("1G", "data.img", "256M")).path
    assert run("deploy", "apply", path).code == 0
    lab.load(db=RUNNING % ("2G", "data.img", "256M"))
    done = json.loads(run("deploy", "plan", path, "--json").out)
    assert [(step["act"], step["disruptive"]) for step in done["steps"]] == [
        *(("stop", True), ("define", False), ("start", False))
    ]
    refused = run("deploy", "apply", path, "--json")
    assert refused.code == 1 and json.loads(refused.out)["error"]["id"] == "DEPLOY-CONSENT"
    assert run("deploy", "apply", path, "--yes", "--patience", 0).code == 0
