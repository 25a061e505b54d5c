"""The build server for real: git over HTTPS, a registry, buildah in its sandbox; and the attacks that are made on it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_lab import REGISTRY, SOURCE, Lab, Page, Running, as_server

from casemate.contract.cosign import Layer, fault, layers
from casemate.demo.pki import Authority
from casemate.demo.services import GATEWAY
from casemate.hpsb.client import Client
from casemate.hpsb.errors import BuildError
from casemate.hpsb.manifest import images, verify
from namespaces import needs_user_namespaces
from program import Result
from signers import tool

pytestmark = [pytest.mark.components, needs_user_namespaces]


def failed(job: dict[str, Any]) -> str:
    assert job["state"] == "failed", job
    return str(job["error"]["id"])


def built(server: Running, job: dict[str, Any]) -> dict[str, Any]:
    assert job["state"] == "done", (job, server.log(job))
    return verify(server.manifest(job), server.keys)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as error:
        act()
    return error.value.id


@pytest.fixture(scope="session")
def made(server: Running, lab: Lab) -> dict[str, Any]:
    """A job that is done, tag 1: for tests that need any."""
    revision = lab.git.commit("made", {"Containerfile": f"FROM {lab.base}\nRUN echo made > /made\n"})
    job = server.build("made", revision, tag="1")
    built(server, job)
    return job


# ------------------------------------------------------------------------------------------------- what it is for


def test_the_same_revision_gives_the_same_image_and_a_manifest_that_says_of_what(server: Running, lab: Lab) -> None:
    file = f"ARG WHO=nobody\nFROM {lab.base}\nARG WHO\nCOPY hello /hello\nRUN echo $WHO > /who\n"
    revision = lab.git.commit("same", {"Containerfile": file, "hello": "hi\n"})
    first = server.build("same", revision, arguments={"WHO": "me"}, tag="1")
    statement = built(server, first)
    assert statement["source"]["revision"] == revision and statement["source"]["time"] == 1_700_000_000
    assert statement["bases"] == [{"name": lab.base, "image": lab.base.partition("@")[2]}]
    assert statement["arguments"] == ["WHO"] and statement["network"] == [] and statement["before"] == []
    assert statement["image"]["digest"] == first["digest"]
    second = server.build("same", revision, arguments={"WHO": "me"}, tag="2", expect=first["digest"])
    assert built(server, second)["image"]["digest"] == first["digest"]
    other = server.build("same", revision, arguments={"WHO": "you"})
    assert built(server, other)["image"]["digest"] != first["digest"]


def test_signatures_of_both_kinds_hold_by_the_code_of_the_guest(
    server: Running, lab: Lab, made: dict[str, Any], tmp_path: Path
) -> None:
    """The library of the guest's engine pulls by GPG key, and by the digest that the guest finds by cosign's; by no other key."""
    job, statement = made, built(server, made)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {REGISTRY}\n")
    (tmp_path / "ca.crt").write_bytes(lab.door.authority)
    login = lab.door.auth["auths"][lab.door.here]  # type: ignore[index]
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {lab.registry: login}}))
    parts = {by: images(statement, by) for by in ("digest", "gpg", "cosign")}
    for by, (name, section) in parts.items():
        assert pulled(tmp_path, name, section) == job["digest"], by
    with lab.server() as other:  # its keys are others
        other.init()
        theirs = built(other, other.build("made", job["revision"], tag="2"))
    for by in ("gpg", "cosign"):
        _, section = images(theirs, by)
        assert pulled(tmp_path, parts[by][0], section) == "refused"


_PULL = """\
import json, subprocess, sys
from pathlib import Path
from casemate.contract.admission import admit, lookups, policy, read_keys
from casemate.contract.images import parse_reference
from casemate.guest import imagepolicy, state
from casemate.guest.report import Stop
from datetime import datetime, UTC
place, name, section = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
subprocess.run(["mount", "--bind", place / "hosts", "/etc/hosts"], check=True)
state.CERTIFICATES, state.AUTH = place / "certificates", place / "auth.json"
state.CERTIFICATES.mkdir(exist_ok=True)
(state.CERTIFICATES / "ca.crt").write_bytes((place / "ca.crt").read_bytes())
try:
    (one,) = imagepolicy.admitted({"images": section}, [parse_reference(name)], imagepolicy.Signed(datetime.now(UTC)).digest)
except Stop:
    raise SystemExit(print("refused"))
(place / "policy.json").write_text(json.dumps(policy([one])))
(place / "registries.d").mkdir(exist_ok=True)
(place / "registries.d/lookups.yaml").write_text(json.dumps(lookups([one])))
done = subprocess.run(["skopeo", f"--policy={place}/policy.json", f"--registries.d={place}/registries.d", "copy", "--quiet",
    f"--src-authfile={place}/auth.json", f"--src-cert-dir={place}", f"docker://{one.pulled}", f"dir:{place}/pulled"],
    capture_output=True)
if done.returncode:
    print(done.stderr.decode(), file=sys.stderr)
    raise SystemExit(print("refused"))
import hashlib
print("sha256:" + hashlib.sha256((place / "pulled/manifest.json").read_bytes()).hexdigest())
"""


def pulled(place: Path, name: str, section: dict[str, Any]) -> str:
    shutil.rmtree(place / "pulled", ignore_errors=True)
    return as_server(_PULL, place, name, json.dumps(section)).split("\n")[-2]


def test_cosign_signatures_of_all_tags_of_an_image_stand(server: Running, lab: Lab, made: dict[str, Any]) -> None:
    jobs = [made, server.build("made", made["revision"], tag="b")]
    assert jobs[0]["digest"] == jobs[1]["digest"]
    sign = f"{jobs[0]['digest'].replace(':', '-')}.sig"
    place = ("--authfile", lab.door.directory / "auth.json", "--cert-dir", lab.door.directory / "trusted")
    manifest = tool("skopeo", "inspect", "--raw", *place, f"docker://{lab.door.here}/team/app:{sign}").encode()
    payloads = lab.door.registry.directory / "data/docker/registry/v2/blobs/sha256"

    def holds(layer: Layer, tag: str) -> bool:
        payload = (payloads / layer.digest[7:9] / layer.digest[7:] / "data").read_bytes()
        return fault(payload, layer, server.keys.cosign.encode(), f"{lab.name}:{tag}", jobs[0]["digest"]) is None

    for tag in ("1", "b"):
        assert any(holds(layer, tag) for layer in layers(manifest))
    assert not any(holds(layer, "c") for layer in layers(manifest))


def test_the_program_leads_through_a_build(
    server: Running, lab: Lab, run: Callable[..., Result], tmp_path: Path
) -> None:
    revision = lab.git.commit("program", {"app/Dockerfile": f"FROM {lab.base}\nRUN printf '\\033[2Jclear\\n'\n"})
    with lab.server() as fresh:
        config = ("-c", fresh.place / "build.yaml")
        job = ("--repository", lab.git.url("program"), "--revision", revision, "--name", lab.name)
        early = run("build", "start", *config, *job)
        assert early.code == 1 and "HPSB-NO-KEYS" in early.err and "casemate build init" in early.err
        assert run("build", "init", *config).code == 0
        assert "HPSB-KEYS" in run("build", "init", *config).err
        done = run("build", "start", *config, *job, "--containerfile", "app/Dockerfile", "--wait", "--json")
        told = json.loads(done.out)
        assert done.code == 0 and told["state"] == "done" and told["image"] == f"{lab.name}:{revision[:12]}"
        log = run("build", "log", *config, told["job"]).out
        assert b"?[2Jclear" in log and b"\x1b" not in log
        assert told["digest"] in run("build", "status", *config).out.decode()
        assert run("build", "status", *config, told["job"]).code == 0
        shown = run(
            "build", "manifest", *config, told["job"], "-o", "app.manifest", "--signature", "signature-1"
        ).out.decode()
        assert revision in shown and lab.base in shown and (tmp_path / "signature-1").stat().st_size > 100
        text = run("build", "image", *config, "app.manifest", "--by", "gpg").out.decode()
        assert f"image: {lab.name}:{revision[:12]}" in text and "rhs:" in text
        assert told["digest"] in run("build", "image", *config, told["job"]).out.decode()
        exported = json.loads(run("build", "state", "export", *config, "-o", "build.state", "--json").out)
        assert exported["generation"] == 2 and (tmp_path / "build.state").stat().st_mode & 0o77 == 0
        assert "1 jobs forgotten" in run("build", "clean", *config).out.decode()
        gone = run("build", "log", *config, told["job"])
        assert gone.code == 1 and "HPSB-NO-JOB" in gone.err
        wrong = run("build", "start", *config, *job, "--containerfile", "none", "--wait", "--json")
        assert wrong.code == 1 and json.loads(wrong.out)["error"]["id"] == "HPSB-CONTAINERFILE"


def test_what_the_program_writes_for_a_contract_passes_its_check(
    server: Running, made: dict[str, Any], run: Callable[..., Result], tmp_path: Path
) -> None:
    from casemate.contract.archive import write_archive
    from casemate.contract.check import check_workload

    for by in ("digest", "gpg", "cosign"):
        part = json.loads(
            run("build", "image", "-c", server.place / "build.yaml", made["job"], "--by", by, "--json").out
        )
        compose = f"services: {{app: {{image: '{part['image']}'}}}}\n".encode()
        section = {"type": "workload", "compose": {"archive": write_archive({"docker-compose.yaml": compose})}}
        assert [str(problem) for problem in check_workload({**section, "images": part["images"]})] == []


# ------------------------------------------------------------------------------------------------- steps that attack

_ATTACKS = """\
FROM {base}
COPY look /look
RUN sh /look
"""
_LOOK = r"""
echo "processes: $(ls /proc | grep -c '^[0-9]')"
for pid in $(ls /proc | grep '^[0-9]'); do
  tr '\0' '\n' < /proc/$pid/environ 2>/dev/null | grep -E 'HPSB|SERVER_KEY' && echo "FOUND an environment"
done
ls /data /run/hpsb /run/login 2>/dev/null && echo "FOUND a place of the server"
find / -xdev -name state -o -xdev -name 'private-keys*' -o -xdev -name auth.json 2>/dev/null | grep . && echo "FOUND a file"
for place in $(ls / | grep -v 'proc\|sys\|dev\|look'); do
  grep -rlE 'PRIVATE KEY|casemate-build-1' /$place 2>/dev/null
done > /tmp/found
grep -v busybox /tmp/found && echo "FOUND a key"
for place in /proc/1/root /proc/1/cwd /proc/2/root; do ls $place/data 2>/dev/null && echo "FOUND through $place"; done
mount -t tmpfs none /mnt 2>/dev/null && echo "FOUND mount"
mount --bind / /tmp 2>/dev/null && echo "FOUND bind"
mkdir -p /tmp/x; chroot /tmp/x true 2>&1 | grep -q 'not permitted' || echo "FOUND chroot"
mknod /tmp/disk b 254 0 2>/dev/null && echo "FOUND device"
unshare -m true 2>/dev/null && echo "FOUND namespace"
nsenter -t 1 -m true 2>/dev/null && echo "FOUND another namespace"
echo 1 > /proc/sys/kernel/sysrq 2>/dev/null && echo "FOUND sysctl"
echo c > /proc/sysrq-trigger 2>/dev/null && echo "FOUND sysrq"
echo x > /proc/sys/kernel/core_pattern 2>/dev/null && echo "FOUND core pattern"
for port in ADDRESSES; do
  nc -w 2 10.0.2.2 $port < /dev/null 2>/dev/null && echo "FOUND the network"
  nc -w 2 127.0.0.1 $port < /dev/null 2>/dev/null && echo "FOUND the host"
done
nc -w 2 127.0.0.1 3128 < /dev/null 2>/dev/null && echo "FOUND a proxy"
timeout 3 nslookup example.com 2>&1 | grep -q 'Name:' && echo "FOUND names"
touch /context/poison /Containerfile /bases/poison /usr/bin/poison-host 2>/dev/null
echo "looked at all"
"""


def test_a_build_step_finds_no_key_no_way_out_and_no_network(server: Running, lab: Lab) -> None:
    ports = f"{lab.git.port} {lab.door.port} {lab.door.registry.port} {server.port}"
    files = {"Containerfile": _ATTACKS.format(base=lab.base), "look": _LOOK.replace("ADDRESSES", ports)}
    job = server.build("attack", lab.git.commit("attack", files))
    log = server.log(job)
    assert "looked at all" in log, log
    assert "FOUND" not in log, log
    processes = re.search(r"processes: (\d+)", log)
    assert processes and int(processes[1]) < 12  # the sandbox's own
    for secret in (*lab.secrets, lab.git.password, lab.door.registry.password):
        assert secret not in log and secret not in server.said


_OUTSIDE_THE_CHROOT = """\
import sys, time, json
from pathlib import Path
from casemate.hpsb.sandbox import Sandbox, Watch, make_work, run
place = Path(sys.argv[1]); place.chmod(0o711)
work = make_work(place / "work"); shown = place / "shown"; shown.mkdir(); (shown / "file").write_text("as it was")
said = bytearray()
box = Sandbox("attack", place, ("/bin/sh", "-c", sys.argv[2]), work, {"/bases": shown})
code, _ = run(box, Watch(place, int(sys.argv[3]), time.monotonic() + float(sys.argv[4])), said.extend)
print(code, said.decode("utf-8", "replace"))
assert (shown / "file").read_text() == "as it was"
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="box-"))
    yield made
    shutil.rmtree(made)


def test_what_breaks_out_of_the_chroot_is_root_of_an_empty_place(lab: Lab, place: Path) -> None:
    """A step that has all that buildah itself has: still no process, file or device of the server; what it is shown stays."""
    (place / "state").write_text("casemate-build-1")
    script = f"""
    cd /; ls -d /home /data /root/* {place} {SOURCE} 2>/dev/null && echo FOUND a place
    echo x > /bases/file 2>/dev/null && echo FOUND a base; echo x > /usr/bin/poison 2>/dev/null && echo FOUND programs
    mount -o remount,rw /bases 2>/dev/null && echo x > /bases/file && echo FOUND remount
    mount -o remount,rw /usr 2>/dev/null && echo x > /usr/bin/poison && echo FOUND remount
    umount /usr 2>/dev/null && echo FOUND below
    mknod /work/disk b 254 0 2>/dev/null && echo FOUND a device
    for pid in $(ls /proc | grep '^[0-9]'); do ls /proc/$pid/root/{place} 2>/dev/null && echo FOUND through proc; done
    echo x > /proc/sys/kernel/core_pattern 2>/dev/null && echo FOUND core pattern
    python3 -c "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)
for number in (250, 321, 101, 304): print(c.syscall(number, 0, 0, 0, 0), ctypes.get_errno())"
    ip link 2>/dev/null | grep -c mtu; ls /proc | grep -c '^[0-9]'
    echo looked; exit 7
    """
    said = as_server(_OUTSIDE_THE_CHROOT, place, script, 1 << 30, 60)
    assert said.startswith("7 ") and "looked" in said, said
    assert "FOUND" not in said, said
    assert said.count("-1 1\n") == 4, said  # keyctl, bpf, ptrace, open_by_handle_at: not permitted


@pytest.mark.parametrize(
    ("script", "size", "seconds", "what"),
    [
        ("sleep 60", 1 << 30, 2, "longer"),
        ("dd if=/dev/zero of=/work/x bs=1M count=80; sleep 60", 32 << 20, 60, "more on disk"),
    ],
)
def test_a_step_that_takes_too_much_ends(
    lab: Lab, place: Path, script: str, size: int, seconds: int, what: str
) -> None:
    with pytest.raises(AssertionError) as error:
        as_server(_OUTSIDE_THE_CHROOT, place, script, size, seconds)
    assert f"the job {'takes' if what == 'longer' else 'holds'} {what}" in str(error.value)


def test_one_job_leaves_nothing_for_the_next(server: Running, lab: Lab) -> None:
    file = f"FROM {lab.base}\nRUN ls -l /tmp /var/tmp /bin | cut -c1-40 > /list\n"
    good = lab.git.commit("clean", {"Containerfile": file})
    first = built(server, server.build("clean", good))
    evil = f"FROM {lab.base}\nRUN echo evil > /tmp/evil; mkdir -p /var/tmp; echo evil > /var/tmp/evil; echo evil > /bin/poison\n"
    server.build("clean", lab.git.commit("clean", {"Containerfile": evil}, branch="evil"))
    assert built(server, server.build("clean", good))["image"]["digest"] == first["image"]["digest"]
    assert list((server.volume / "jobs").iterdir()) == []
    assert [path.name for path in server.volume.iterdir()] in (["jobs", "state"], ["state", "jobs"])


# ------------------------------------------------------------------------------------------------- sources that attack


def test_a_revision_is_a_commit_of_a_branch_or_tag_by_its_full_hash(server: Running, lab: Lab) -> None:
    file = {"Containerfile": f"FROM {lab.base}\n"}
    revision = lab.git.commit("revisions", file)
    loose = lab.git.commit("revisions", {**file, "evil": "of a fork"}, branch="")
    bare = lab.git.directory / "revisions.git"
    tree = tool("git", "-C", bare, "rev-parse", f"{revision}^{{tree}}").strip()
    for wrong in ("main", revision[:12], "refs/heads/main", revision.upper(), f"{revision} --upload-pack=x"):
        assert refusal(lambda wrong=wrong: server.build("revisions", wrong)) == "HPSB-REVISION"
    for missing in ("0" * 40, loose, tree):
        assert failed(server.build("revisions", missing)) == "HPSB-REVISION"


def test_only_repositories_of_the_configuration_are_fetched(server: Running, lab: Lab) -> None:
    good = lab.git.url("revisions")
    for url in ("https://example.com/x.git", good.replace("https", "http"), "ext::sh -c id", f"{good}/../../other",
                good.replace("https://", "https://user@"), f"{good}?x", "/etc"):  # fmt: skip
        job = {**server.job("revisions", "0" * 40), "repository": url}
        assert refusal(lambda job=job: server.client.ask("POST", "/v1/jobs", job)) == "HPSB-REPOSITORY"


def test_submodules_are_refused(server: Running, lab: Lab) -> None:
    first = lab.git.commit("outer", {"Containerfile": f"FROM {lab.base}\n"})
    bare = lab.git.directory / "outer.git"
    tree = tool("git", "-C", bare, "ls-tree", first) + f"160000 commit {first}\tinner\n"
    (lab.directory / "tree").write_text(tree)
    made = tool("sh", "-c", f"git -C {bare} mktree --missing < {lab.directory}/tree").strip()
    who = {f"GIT_{x}_{y}": "a@example.com" for x in ("AUTHOR", "COMMITTER") for y in ("NAME", "EMAIL")}
    commit = tool("git", "-C", bare, "commit-tree", "-m", "x", made, env=who).strip()
    tool("git", "-C", bare, "update-ref", "refs/heads/inner", commit)
    assert failed(server.build("outer", commit)) == "HPSB-SUBMODULE"


def test_the_containerfile_is_a_regular_file_of_the_commit(server: Running, lab: Lab) -> None:
    files: dict[str, str | bytes | Path] = {
        "real": f"FROM {lab.base}\n",
        "Containerfile": Path("real"),
        "dir/x": "y",
        "link": Path("dir"),
    }
    revision = lab.git.commit("links", files)
    for path in ("Containerfile", "dir", "none", "link/x"):
        assert failed(server.build("links", revision, containerfile=path)) == "HPSB-CONTAINERFILE"
    for path in ("../x", "/etc/passwd", "a/../real", "./real", ".git/config", "", "a//b"):
        if path:
            assert (
                refusal(lambda path=path: server.build("links", revision, containerfile=path)) == "HPSB-CONTAINERFILE"
            )
    built(server, server.build("links", revision, containerfile="real"))


def test_a_link_in_the_source_gives_no_file_of_the_server(server: Running, lab: Lab) -> None:
    files: dict[str, str | bytes | Path] = {
        "Containerfile": f"FROM {lab.base}\nCOPY out /out\nRUN cat /out\n",
        "out": Path("/etc/ssl/certs/ca-certificates.crt"),
    }
    assert failed(server.build("links", lab.git.commit("links", files, branch="out"))) == "HPSB-FAILED"


def test_a_source_that_is_too_large_is_not_checked_out(server: Running, lab: Lab) -> None:
    large = {"Containerfile": f"FROM {lab.base}\n", "zeros": bytes(9 << 20)}  # packed it is small
    assert failed(server.build("large", lab.git.commit("large", large))) == "HPSB-SIZE"


# ------------------------------------------------------------------------------------------------- bases and fetches


def test_bases_by_tag_and_files_from_urls_are_refused(server: Running, lab: Lab) -> None:
    tagged = lab.base.partition("@")[0] + ":1"
    url = f"https://{lab.site}/x"
    for file, id in (
        (f"FROM {tagged}\n", "BASE-TAG"),
        (f"FROM {lab.base}\nCOPY --from={tagged} /bin /b\n", "BASE-TAG"),
        (f"ARG B={tagged}\nFROM $B\n", "BASE-TAG"),
        (f"FROM {lab.base}\nADD {url} /x\n", "ADD-URL"),
        (f'FROM {lab.base}\nADD ["{url}", "/x"]\n', "ADD-URL"),
        (f"FROM other.example/x@sha256:{'0' * 64}\n", "BASE"),
        (f"FROM {lab.base[:-64]}{'0' * 64}\n", "BASE"),
        (f"FROM {lab.base}\nARG U={url}\nADD $U /x\n", "FAILED"),  # not seen before: the sandbox has no network
        (f"FROM {lab.base}\nONBUILD RUN true\nRUN --mount=type=bind,from={tagged},target=/m true\n", "BASE-TAG"),
    ):
        revision = lab.git.commit("bases", {"Containerfile": file})
        assert failed(server.build("bases", revision)) == f"HPSB-{id}", file
    assert Page.said == 0


def test_a_registry_that_gives_another_base_is_refused(server: Running, lab: Lab) -> None:
    revision = lab.git.commit("swapped", {"Containerfile": f"FROM {lab.base}\n"})
    path = f"/v2/busybox/manifests/{lab.base.partition('@')[2]}"
    lab.door.lies[path] = (b'{"schemaVersion": 2}', "application/vnd.oci.image.manifest.v1+json")
    try:
        assert failed(server.build("swapped", revision)) == "HPSB-BASE"
    finally:
        del lab.door.lies[path]


def test_an_index_gives_the_image_for_this_machine(server: Running, lab: Lab) -> None:
    """What public registries have: the Containerfile names the index, the manifest of the build both digests."""
    place, digest = lab.directory / "index", lab.base.partition("@")[2]
    shutil.rmtree(place, ignore_errors=True)
    (place / "blobs/sha256").mkdir(parents=True)
    from casemate.demo import images as made

    source = made.build(made.BUSYBOX)
    shutil.copytree(source / "blobs/sha256", place / "blobs/sha256", dirs_exist_ok=True)
    size = (source / "blobs/sha256" / digest[7:]).stat().st_size
    media = "application/vnd.oci.image.manifest.v1+json"
    entry = {"mediaType": media, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": "amd64"}}
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    )
    import hashlib

    name = hashlib.sha256(index.encode()).hexdigest()
    url, login = f"/v2/busybox/manifests/sha256:{name}", lab.door.registry
    import http.client

    context = ssl.create_default_context(cadata=login.authority.decode())
    connection = http.client.HTTPSConnection("127.0.0.1", login.port, context=context)
    basic = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/vnd.oci.image.index.v1+json"}
    connection.request("PUT", url, index, headers)
    assert connection.getresponse().status == 201
    base = f"{lab.registry}/busybox@sha256:{name}"
    statement = built(
        server, server.build("index", lab.git.commit("index", {"Containerfile": f"FROM {base}\nRUN true\n"}))
    )
    assert statement["bases"] == [{"name": base, "image": digest}]


def test_a_step_that_fetches_something_else_the_second_time_is_seen_and_refused(lab: Lab) -> None:
    """RUN may reach the one host that the configuration names, and only that; its result changes from build to build."""
    with lab.server(hosts=[lab.site]) as server:
        server.init()
        fetch = f"""
echo "proxy is $https_proxy"
printf 'CONNECT {lab.site} HTTP/1.1\\r\\n\\r\\n' | nc -w 3 127.0.0.1 3128 | head -1
printf 'CONNECT {GATEWAY}:{lab.git.port} HTTP/1.1\\r\\n\\r\\n' | nc -w 3 127.0.0.1 3128 | head -1
printf 'GET http://{lab.site}/ HTTP/1.1\\r\\n\\r\\n' | nc -w 3 127.0.0.1 3128 | head -1
cat /proc/sys/kernel/random/uuid > /fetched
"""
        revision = lab.git.commit(
            "fetch", {"Containerfile": f"FROM {lab.base}\nCOPY fetch /f\nRUN sh /f\n", "fetch": fetch}
        )
        first = server.build("fetch", revision)
        log = server.log(first)
        assert built(server, first)["network"] == [lab.site]
        assert "proxy is http://127.0.0.1:3128" in log and "200 Connection established" in log, log
        assert log.count("403 Not named") == 2, log
        assert f"refused by the server: {GATEWAY}:{lab.git.port}" in log
        second = server.build("fetch", revision)
        assert built(server, second)["before"] == [first["digest"]]
        assert failed(server.build("fetch", revision, expect=first["digest"])) == "HPSB-EXPECTED"
        step = f"FROM {lab.base}\nARG U=https://{lab.site}/\nADD $U /x\n"  # ADD fetches nothing, though RUN may
        assert failed(server.build("fetch", lab.git.commit("fetch", {"Containerfile": step}))) == "HPSB-FAILED"


# ------------------------------------------------------------------------------------------------- results on their way out


def test_a_registry_that_answers_with_another_image_afterwards_is_told(server: Running, lab: Lab) -> None:
    revision = lab.git.commit("out", {"Containerfile": f"FROM {lab.base}\nRUN echo out > /out\n"})
    path = "/v2/team/app/manifests/swapped"
    lab.door.lies[path] = (b'{"schemaVersion": 2}', "application/vnd.oci.image.manifest.v1+json")
    try:
        job = server.build("out", revision, tag="swapped")
        assert failed(job) == "HPSB-SWAPPED"
        assert refusal(lambda: server.manifest(job)) == "HPSB-NOT-DONE"
    finally:
        del lab.door.lies[path]


def test_a_manifest_that_was_changed_or_is_of_another_server_is_refused(server: Running, made: dict[str, Any]) -> None:
    data = server.manifest(made)
    envelope = json.loads(data)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["image"]["digest"] = f"sha256:{'0' * 64}"
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    assert refusal(lambda: verify(json.dumps(envelope).encode(), server.keys)) == "HPSB-MANIFEST"
    from dataclasses import replace

    other = replace(server.keys, manifest=server.keys.cosign)
    assert refusal(lambda: verify(data, other)) == "HPSB-MANIFEST"
    assert refusal(lambda: verify(data, replace(server.keys, gpg="x"))) == "HPSB-MANIFEST"


# ------------------------------------------------------------------------------------------------- clients and the state


def test_a_client_needs_a_certificate_of_the_contracts_authority(server: Running, lab: Lab, tmp_path: Path) -> None:
    given = server.settings
    context = ssl.create_default_context(cafile=str(given.ca))

    def ask(tls: ssl.SSLContext) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
            peer = tls.wrap_socket(plain, server_hostname="127.0.0.1")
            peer.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            return peer.recv(100)

    with pytest.raises(OSError):
        ask(context)
    another, no_client = Authority.create("Clients").client("builder"), lab.clients.server(("builder",))
    for stranger in (another, no_client):
        (tmp_path / "c.pem").write_bytes(stranger.certificate + stranger.key)
        context = ssl.create_default_context(cafile=str(given.ca))
        context.load_cert_chain(tmp_path / "c.pem")
        with pytest.raises(OSError):
            ask(context)
    context = ssl.create_default_context(cafile=str(given.ca))
    context.load_cert_chain(given.certificate, given.key)
    assert ask(context).startswith(b"HTTP/1.1 200")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        ask(context)
    (tmp_path / "ca.crt").write_bytes(Authority.create("Other").certificate)  # and the client knows its server
    from dataclasses import replace

    assert refusal(lambda: Client(replace(given, ca=tmp_path / "ca.crt")).ask("GET", "/v1/status")) == "HPSB-SERVER"


def test_no_process_has_the_contracts_secrets_in_its_environment_or_arguments(server: Running, lab: Lab) -> None:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        assert lab.git.password.encode() not in words
        if b"casemate.hpsb.server" in words and b"unshare" not in words:
            assert b"HPSB_SECRET" not in environment and lab.secrets[0].encode() not in environment


def test_the_state_moves_to_a_new_server_and_older_changed_or_other_ones_are_refused(lab: Lab) -> None:
    revision = lab.git.commit(
        "state", {"Containerfile": f"FROM {lab.base}\nRUN cat /proc/sys/kernel/random/uuid > /now\n"}
    )
    with lab.server() as first:
        keys = first.init()
        assert refusal(first.init) == "HPSB-INITIALISED"
        old = first.client.fetch("POST", "/v1/state/export")
        before = built(first, first.build("state", revision))
        new = first.client.fetch("POST", "/v1/state/export")
        for stale in (old, new):
            assert (
                refusal(lambda stale=stale: first.client.fetch("POST", "/v1/state/import", stale)) == "HPSB-STATE-OLD"
            )
        assert b"PRIVATE" not in new and lab.secrets[0].encode() not in new
        assert (first.volume / "state").stat().st_mode & 0o77 == 0
        kept = (first.volume / "state").read_bytes()
        assert b"PRIVATE" not in kept
    with lab.server() as second:
        for place in (20, 40, 90, len(new) - 1):
            changed = bytes([*new[:place], new[place] ^ 1, *new[place + 1 :]])
            assert (
                refusal(lambda changed=changed: second.client.fetch("POST", "/v1/state/import", changed))
                == "HPSB-STATE"
            )
        assert refusal(lambda: second.client.fetch("POST", "/v1/state/import?least=3", new)) == "HPSB-STATE-OLD"
        answer = json.loads(second.client.fetch("POST", "/v1/state/import?least=2", new))
        assert answer["keys"] == keys.document() and answer["builds"] == 1
        second.settings.keys.write_text(json.dumps(answer["keys"]))
        again = built(second, second.build("state", revision))  # it knows what the first has built
        assert again["before"] == [before["image"]["digest"]] and again["server"] == before["server"]
        assert refusal(lambda: second.client.fetch("POST", "/v1/state/import", new)) == "HPSB-STATE-OLD"
        with lab.server() as third:
            third.init()
            assert refusal(lambda: third.client.fetch("POST", "/v1/state/import", new)) == "HPSB-STATE-OTHER"


def test_a_server_with_another_partys_secret_does_not_open_the_state(lab: Lab, tmp_path: Path) -> None:
    with lab.server() as first:
        first.init()
        exported = first.client.fetch("POST", "/v1/state/export")
    mine = lab.secrets
    lab.secrets = (mine[0], "another-" + "x" * 20)
    try:
        with lab.server() as other:
            assert refusal(lambda: other.client.fetch("POST", "/v1/state/import", exported)) == "HPSB-STATE"
    finally:
        lab.secrets = mine


def test_requests_that_are_none_are_refused_and_the_server_goes_on(server: Running) -> None:
    client = server.client
    for method, path, body in (
        ("POST", "/v1/jobs", b"{"), ("POST", "/v1/jobs", b"[]"),
        ("POST", "/v1/jobs", b'{"a":1,"a":2}'), ("GET", "/v1/nothing", b""),
        ("GET", "/v1/jobs/../../state", b""), ("POST", "/v1/state/import?least=x", b""),
        ("POST", "/v1/state/import", b"casemate-build-1"),
        ("GET", "/v1/jobs/000000000000", b""),
    ):  # fmt: skip
        assert refusal(lambda m=method, p=path, b=body: client.fetch(m, p, b)).startswith("HPSB-")
    with socket.create_connection(("127.0.0.1", server.port), 5) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert client.ask("GET", "/v1/status")["keys"]
