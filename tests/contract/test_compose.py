"""What becomes of a compose file: what is understood, to the letter; everything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract import compose
from casemate.contract.composevalues import read_env_file
from casemate.contract.errors import WorkloadError
from casemate.contract.images import Open, compose_images, read_compose
from casemate.contract.workload import Health, Places, Problems, Restart, Service

IMAGE = "registry.example.com/app@sha256:" + "0" * 64
PLACES = Places("/w/archive", "/w/scratch", {"/mnt/data": "/var/volumes/data", "/mnt/data/logs": "/var/volumes/logs"})


def services(document: dict[str, Any], env: dict[str, str], places: Places) -> list[Service]:
    """As the machine does: the first problem stops it."""
    made = compose.translate(document, env, places, problems := Problems())
    for problem in problems:
        raise problem
    return made.services


def translate(env: dict[str, str] | None = None, **service: Any) -> Service:
    (made,) = services({"services": {"app": {"image": IMAGE, **service}}}, env or {}, PLACES)
    return made


def refused(**service: Any) -> str:
    with pytest.raises(WorkloadError) as error:
        translate(**service)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("user", 1000, ["--user=1000"]),
        ("working_dir", "/srv", ["--workdir=/srv"]),
        ("hostname", "db", ["--hostname=db"]),
        ("mem_limit", "512m", ["--memory=512m"]),
        ("cpus", 1.5, ["--cpus=1.5"]),
        ("shm_size", "64m", ["--shm-size=64m"]),
        ("privileged", True, ["--privileged"]),
        ("privileged", False, []),
        ("read_only", "true", ["--read-only"]),
        ("init", "false", []),
        ("cap_drop", ["ALL"], ["--cap-drop=ALL"]),
        ("tmpfs", "/tmp", ["--tmpfs=/tmp"]),
        ("tmpfs", ["/tmp", "/run"], ["--tmpfs=/tmp", "--tmpfs=/run"]),
        ("sysctls", {"net.core.somaxconn": 1024}, ["--sysctl=net.core.somaxconn=1024"]),
        ("ulimits", {"nofile": {"soft": 10, "hard": 20}, "nproc": 5}, ["--ulimit=nofile=10:20", "--ulimit=nproc=5"]),
        ("healthcheck", {"test": ["CMD-SHELL", "true"]}, ["--health-cmd=true"]),
        ("healthcheck", {"test": ["CMD", "a", "b c"]}, ['--health-cmd=["a", "b c"]']),
        ("healthcheck", {"disable": True}, ["--no-healthcheck"]),
        ("stop_grace_period", "1m30s", ["--stop-timeout=90"]),
        ("extra_hosts", {"db": "10.0.0.2"}, ["--add-host=db:10.0.0.2"]),
        ("extra_hosts", ["db=10.0.0.2", "a:10.0.0.3"], ["--add-host=db:10.0.0.2", "--add-host=a:10.0.0.3"]),
        ("network_mode", "none", ["--network=none"]),
        ("network_mode", "bridge", []),
        ("network_mode", "host", ["--network=host"]),
        ("extra_hosts", ["host.docker.internal:host-gateway"], ["--add-host=host.docker.internal:host-gateway"]),
        ("cpu_quota", 50000, ["--cpu-quota=50000"]),
        ("device_cgroup_rules", ["c 1:3 mr"], ["--device-cgroup-rule=c 1:3 mr"]),
        ("pid", "host", ["--pid=host"]),
        ("volumes", ["/data"], ["--volume=/data"]),
        ("volumes", [{"type": "volume", "target": "/data"}], ["--volume=/data"]),
        ("deploy", {"placement": {}, "update_config": {"parallelism": 1}}, []),
        ("healthcheck", {"interval": "5s"}, []),
        ("deploy", {"resources": {"limits": {"cpus": "0.5", "memory": "64M"}}}, ["--cpus=0.5", "--memory=64M"]),
        ("deploy", {"replicas": 1}, []),
        ("scale", 1, []),
        ("logging", {"driver": "json-file"}, []),
        ("stdin_open", True, ["--interactive"]),
        ("command", None, []),
        ("healthcheck", {"test": ["NONE"]}, ["--no-healthcheck"]),
        ("labels", {"a": "b"}, []),
        ("x-own", {"any": "thing"}, []),
    ],
)
def test_what_is_understood_becomes_an_option(key: str, value: Any, options: list[str]) -> None:
    assert translate(**{key: value}).options == options


@pytest.mark.parametrize(
    "key",
    ["network_mode", "cgroup_parent", "userns_mode", "secrets", "configs", "env_file", "volumes_from", "links", "runtime",
     "pid_mode", "device_cgroup_rules", "profiles", "deploy", "uts", "cgroup", "isolation", "gpus", "mac_address", "scale"],
)  # fmt: skip
def test_a_key_that_is_not_understood_is_refused_by_name(key: str) -> None:
    assert refused(**{key: "x"}).startswith(f"services.app.{key}")


@pytest.mark.parametrize("key", ["include", "models", "service"])
def test_a_key_of_the_file_that_is_not_understood_is_refused_by_name(key: str) -> None:
    with pytest.raises(WorkloadError, match=key):
        services({"services": {"app": {"image": IMAGE}}, key: {}}, {}, PLACES)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privileged", "yes"),
        ("privileged", 1),
        ("privileged", "False"),
        ("read_only", []),
        ("user", True),
        ("user", ["root"]),
        ("cap_add", {"ALL": True}),
        ("cap_add", [["ALL"]]),
        ("command", []),
        ("command", "'unclosed"),
        ("restart", "sometimes"),
        ("restart", "always\n"),
        ("restart", False),
        ("container_name", "a/b"),
        ("container_name", "--privileged"),
        ("healthcheck", {"test": ["CMD", {"a": 1}], "disable": False} | {"test": {"a": 1}}),
        ("depends_on", [["db"]]),
        ("depends_on", "db"),
        ("depends_on", ["nobody"]),
        ("depends_on", {"app": {"condition": "whenever"}}),
        ("environment", "A=b"),
        ("env_file", ["missing.env"]),
        ("env_file", {"path": "/etc/passwd"}),
        ("env_file", "../up.env"),
        ("secrets", ["undeclared"]),
        ("deploy", {"replicas": 2}),
        ("healthcheck", {"test": "true", "interval": "often"}),
        ("healthcheck", {"test": "true", "retry": 1}),
        ("network_mode", "service:nobody"),
        ("network_mode", "container:nobody"),
        ("network_mode", "service:app"),
        ("volumes_from", ["nobody"]),
        ("volumes_from", ["a/b"]),
        ("links", ["nobody"]),
        ("links", ["app:a b"]),
        ("pid", "service:nobody"),
        ("profiles", "debug"),
        ("device_cgroup_rules", ["x"]),
        ("scale", 2),
        ("environment", {"A": ["b"]}),
        ("ulimits", ["nofile"]),
        ("networks", ["front", "back"]),
        ("networks", {"front": {"ipv4_address": "10.0.0.2"}}),
    ],
)
def test_a_value_of_another_form_is_refused_with_its_place(key: str, value: Any) -> None:
    assert refused(**{key: value}).startswith(f"services.app.{key}")


def test_false_in_quotes_or_from_a_variable_is_not_true() -> None:
    assert translate({"PRIVILEGED": "false"}, privileged="${PRIVILEGED}").options == []
    assert translate({"PRIVILEGED": "true"}, privileged="${PRIVILEGED}").options == ["--privileged"]


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "-v", "", "a" * 65, "a\nb", ".hidden"])
def test_a_service_has_a_name_that_names_no_path_and_no_option(name: str) -> None:
    with pytest.raises(WorkloadError, match="name of a service"):
        services({"services": {name: {"image": IMAGE, "container_name": "fine"}}}, {}, PLACES)


def test_the_image_is_the_one_that_the_policy_admits_in_full() -> None:
    assert translate().image == IMAGE
    (made,) = services({"services": {"db": {"image": "postgres:17@sha256:" + "1" * 64}}}, {}, PLACES)
    assert made.image == "docker.io/library/postgres@sha256:" + "1" * 64


# ------------------------------------------------------------------------------------------------- commands


def test_the_entry_point_comes_before_the_command_whichever_stands_first() -> None:
    one = translate(entrypoint=["sh", "-c"], command=["echo hello"])
    other = translate(command=["echo hello"], entrypoint=["sh", "-c"])
    assert one.options == other.options == ["--entrypoint=sh"]
    assert one.command == other.command == ["-c", "echo hello"]


def test_a_command_is_words_and_never_an_option_of_the_engine() -> None:
    made = translate(command="--privileged 'two words'")
    assert made.command == ["--privileged", "two words"] and made.options == []


# ------------------------------------------------------------------------------------------------- variables


@pytest.mark.parametrize("given_", [{"PASSWORD": "geheim"}, ["PASSWORD=geheim"], {"PASSWORD": "${SECRET}"}])
def test_variables_never_stand_in_arguments(given_: Any) -> None:
    made = translate({"SECRET": "geheim"}, environment=given_)
    assert made.environment == {"PASSWORD": "geheim"}
    assert "geheim" not in " ".join([*made.options, *made.command])


def test_values_are_texts_as_written() -> None:
    made = translate(environment={"A": 1, "B": True, "C": "", "D": "a=b", "E": "$$HOME"})
    assert made.environment == {"A": "1", "B": "true", "C": "", "D": "a=b", "E": "$HOME"}


@pytest.mark.parametrize("given_", [["A", "B"], {"A": None, "B": None}])
def test_a_name_alone_has_the_value_of_the_contract_or_is_not_there(given_: Any) -> None:
    assert translate({"A": "of the contract"}, environment=given_).environment == {"A": "of the contract"}


@pytest.mark.parametrize("name", ["", "A B", "A=B", "A\nLD_PRELOAD", "#A", "A*", "1A", "é"])
def test_a_name_that_a_file_of_variables_would_read_as_something_else_is_refused(name: str) -> None:
    assert "environment" in refused(environment={name: "x"})


def test_a_key_or_certificate_of_several_lines_is_a_value() -> None:
    made = translate(environment={"TLS_CERT": "-----BEGIN\nabc\n"})
    assert made.environment == {"TLS_CERT": "-----BEGIN\nabc\n"}


def test_a_variable_that_nobody_gave_is_empty_and_noted_without_its_neighbours_values() -> None:
    document = {"services": {"app": {"image": IMAGE, "environment": {"A": "${SECRET}${MISSING}$MISSING"}}}}
    made = compose.translate(document, {"SECRET": "geheim"}, PLACES, problems := Problems())
    assert made.services[0].environment == {"A": "geheim"} and problems == []
    (note,) = map(str, problems.notes)
    assert note.startswith("services.app.environment.A: ") and "MISSING" not in note and "geheim" not in note


@pytest.mark.parametrize(
    "service",
    [
        {"environment": {"PASSWORD": "Tr0ub4dor$Battery_Staple9"}},
        {"environment": ["PASSWORD=Tr0ub4dor$Battery_Staple9"]},
        {"command": "run --token Tr0ub4dor$Battery_Staple9"},
        {"command": ["run", "Tr0ub4dor${Battery_Staple9}"]},
        {"env_file": "secret.env"},
        {"environment": {"PASSWORD": "${Tr0ub4dor-Battery$Staple9}"}},
    ],
)
def test_a_password_with_a_dollar_loses_its_end_as_with_compose_and_stands_in_no_note(service: dict[str, Any]) -> None:
    places = Places("/w/archive", "/w/scratch", {}, {"secret.env": b"PASSWORD=Tr0ub4dor$Battery_Staple9\n"})
    compose.translate({"services": {"app": {"image": IMAGE, **service}}}, {}, places, problems := Problems())
    (note,) = map(str, problems.notes)
    assert (
        not problems and "is empty" in note and "$$" in note and note.startswith(f"services.app.{next(iter(service))}")
    )
    assert "Battery" not in note and "Tr0ub4dor" not in note


def test_a_variable_that_must_be_there_or_stands_in_the_name_of_an_image_is_never_empty() -> None:
    assert "is not set" in problems_of({"services": {"a": {"image": IMAGE, "command": "${NONE:?must}"}}})[0]
    found = compose_images({"services": {"a": {"image": f"${{NONE}}{IMAGE}"}}}, {})
    assert "is not set" in str(found["a"])


# ------------------------------------------------------------------------------------------------- ports


@pytest.mark.parametrize(
    ("port", "option"),
    [
        ("5432:5432", "5432:5432/tcp"),
        ("80", "80:80/tcp"),
        (80, "80:80/tcp"),
        ("53:5353/udp", "53:5353/udp"),
        ({"target": 80, "published": "8080"}, "8080:80/tcp"),
        ({"target": 53, "protocol": "udp"}, "53:53/udp"),
        ("0.0.0.0:80:8080", "80:8080/tcp"),
        ("90-92:80-82", "90-92:80-82/tcp"),
        ("127.0.0.1:81:80", "127.0.0.1:81:80/tcp"),
        ("[::]:80:80", "80:80/tcp"),
        ({"target": 80, "host_ip": "127.0.0.1"}, "127.0.0.1:80:80/tcp"),
        ({"target": 80, "host_ip": "::"}, "80:80/tcp"),
    ],
)
def test_ports(port: Any, option: str) -> None:
    assert translate(ports=[port]).options == [f"--publish={option}"]


@pytest.mark.parametrize(
    "port",
    ["0:80", "80:65536", "192.0.2.1:80:80", "127.0.0.999:80:80", "80-90:80-91", "90-80", "80-90:80", "x", "80:80/sctp", "80:80\n",
     {}, {"target": True}, None],
)  # fmt: skip
def test_what_is_no_port_is_refused(port: Any) -> None:
    assert "ports" in refused(ports=[port])


# ------------------------------------------------------------------------------------------------- mounts


@pytest.mark.parametrize(
    ("mount", "option"),
    [
        ("./conf:/etc/conf", "/w/archive/conf:/etc/conf"),
        (".:/srv:ro", "/w/archive:/srv:ro"),
        ("./a/../b:/b", "/w/archive/b:/b"),
        ("/mnt/data:/var/lib/db", "/var/volumes/data:/var/lib/db"),
        ("/mnt/data/sub:/sub:rw", "/var/volumes/data/sub:/sub"),
        ("//mnt//data/:/db", "/var/volumes/data:/db"),
        ("/mnt/data/logs:/logs", "/var/volumes/logs:/logs"),
        ("/mnt/data/logs/x:/logs", "/var/volumes/logs/x:/logs"),
        ("/mnt/database:/db", "/w/scratch/mnt/database:/db"),
        ("/opt/cache:/cache", "/w/scratch/opt/cache:/cache"),
        ("/var/hyperprotect:/record", "/var/hyperprotect:/record:ro"),
        ("/var/hyperprotect/:/record:rw", "/var/hyperprotect:/record:ro"),
        ("/var/hyperprotect/se-version:/v", "/var/hyperprotect/se-version:/v:ro"),
        ("/etc/machine-id:/var/lib/app/machine-id", "/etc/machine-id:/var/lib/app/machine-id:ro"),
        ("named:/n", "named:/n"),
        ({"type": "bind", "source": "./conf", "target": "/conf", "read_only": True}, "/w/archive/conf:/conf:ro"),
        ({"source": "named", "target": "/n"}, "named:/n"),
        ({"type": "bind", "source": "conf", "target": "/conf"}, "/w/archive/conf:/conf"),
    ],
)
def test_where_a_mount_comes_from(mount: Any, option: str) -> None:
    document = {"services": {"app": {"image": IMAGE, "volumes": [mount]}}, "volumes": {"named": None}}
    (made,) = services(document, {}, PLACES)
    first, *below = made.options
    assert first == f"--volume={option}"
    assert below == (
        ["--volume=/var/volumes/logs:" + option.split(":")[1] + "/logs"] if option.startswith(DATA) else []
    )
    source = option.split(":")[0]
    assert made.mounts == ([source] if source.startswith("/") else []) + ["/var/volumes/logs"] * bool(below)


DATA = "/var/volumes/data:"


def test_volumes_below_a_path_are_mounted_with_it_as_a_bind_mount_does() -> None:
    """Otherwise the data would go to the root, and be gone at the next start."""
    places = Places(
        "/w/archive", "/w/scratch", {"/mnt/data": "/var/volumes/data", "/mnt/data/logs": "/var/volumes/logs"}
    )
    app = {"image": IMAGE, "volumes": ["/mnt:/store:ro", "/mnt/data:/store/data:ro"]}
    (made,) = services({"services": {"app": app}}, {}, places)
    assert made.options == [
        "--volume=/w/scratch/mnt:/store:ro",
        "--volume=/var/volumes/data:/store/data:ro",
        "--volume=/var/volumes/logs:/store/data/logs:ro",
    ]
    assert {"/w/scratch/mnt/data", "/var/volumes/data/logs"} <= set(made.directories)


def test_a_volume_may_be_named_as_a_directory_of_the_system_and_is_that_volume() -> None:
    places = Places(
        "/w/archive", "/w/scratch", {"/var/hyperprotect": "/var/volumes/a", "/usr/local/data": "/var/volumes/b"}
    )
    app = {"image": IMAGE, "volumes": ["/var/hyperprotect:/a", "/usr/local/data:/b"]}
    (made,) = services({"services": {"app": app}}, {}, places)
    assert made.options == ["--volume=/var/volumes/a:/a", "--volume=/var/volumes/b:/b"]


def test_what_compose_takes_for_granted_may_be_written() -> None:
    document = {
        "services": {"web": {"image": IMAGE, "networks": ["front"], "volumes": ["x:/x", "y:/y"]}},
        "networks": {"front": {"driver": "bridge", "external": False}},
        "volumes": {"x": {"driver": "local"}, "y": {"name": "other"}},
    }
    (made,) = services(document, {}, PLACES)
    assert made.options == ["--volume=x:/x", "--volume=other:/y"]
    for volume in ({"driver": "nfs"}, {"external": True}, {"driver_opts": {"type": "nfs", "o": "addr=192.0.2.1"}}):
        assert any("volumes.x" in told for told in problems_of({**document, "volumes": {"x": volume, "y": None}}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extra_hosts", ["a:b"]),
        ("pid", "service:b"),
        ("ipc", "service:b"),
        ("cpus", "abc"),
        ("shm_size", "a; rm"),
        ("mem_limit", "much"),
        ("tmpfs", "relative"),
        ("cap_add", ["FOO"]),
        ("dns", "foo"),
        ("sysctls", {"a": 1}),
        ("sysctls", {"kernel.panic": 1}),
        ("ulimits", {"nofil": 1}),
        ("stop_signal", "SIGFOO"),
        ("pids_limit", "1e3"),
        ("oom_score_adj", 1001),
        ("cpuset", "0-"),
        ("healthcheck", {"test": "a\0b"}),
    ],
)
def test_what_the_engine_would_not_take_is_told_with_its_place(key: str, value: Any) -> None:
    assert refused(**{key: value}).startswith(f"services.app.{key}")


def test_an_entry_point_is_taken_away_and_zeros_are_defaults() -> None:
    made = translate(entrypoint=[], command=["a"])
    assert (made.options, made.command) == (["--entrypoint="], ["a"])
    assert translate(entrypoint=["a"], command=[]).command == []
    assert translate(healthcheck={"test": "x", "interval": "0s", "retries": 0}).health == Health()


def test_a_policy_that_ends_ends() -> None:
    policy = translate(deploy={"restart_policy": {"condition": "any", "max_attempts": 2, "delay": "5s"}}).restart
    assert [policy.again(0, times) for times in range(4)] == [True, True, False, False]


def test_nobody_waits_for_the_health_of_what_is_not_asked() -> None:
    each = {"db": {"image": IMAGE, "healthcheck": {"disable": True}}, "web": {"image": IMAGE}}
    each["web"]["depends_on"] = {"db": {"condition": "service_healthy"}}
    assert "switched off" in problems_of({"services": each})[0]


def test_the_directory_of_the_file_may_be_named_in_mounts() -> None:
    assert translate(volumes=["${PWD}/install.sh:/home/install.sh"]).options == [
        "--volume=/w/archive/install.sh:/home/install.sh"
    ]


def test_a_secret_whose_file_is_not_there_is_no_empty_directory() -> None:
    document = {"services": {"app": {"image": IMAGE, "secrets": ["key"]}}, "secrets": {"key": {"file": "./lost"}}}
    assert "no such file" in problems_of(document)[0]


@pytest.mark.parametrize(
    "source",
    ["../x", "./../x", "./a/../../x", "..", "./..", "./a/b/../../../archived", "../archive2"],
)
def test_a_path_that_leaves_the_archive_is_refused(source: str) -> None:
    assert "leaves the archive" in refused(volumes=[f"{source}:/x"])


@pytest.mark.parametrize(
    "source",
    ["/", "//", "/.", "/proc", "/sys/kernel", "/dev/vda", "/run/casemate", "/etc", "/usr/bin", "/lib64", "/root", "/boot",
     "/var", "/var/lib/casemate", "/var/hyperprotect/../lib", "/mnt/data/../../etc", "//etc", "/x/../run/casemate", "/sbin"],
)  # fmt: skip
def test_a_directory_of_the_guest_is_refused(source: str) -> None:
    assert "directory of the system" in refused(volumes=[f"{source}:/x"])


@pytest.mark.parametrize(
    "mount",
    [
        "./a",
        "./a:relative",
        "./a:/b:shared",
        "./a:/b:ro,exec",
        "undeclared:/x",
        "na/me:/x",
        {"type": "cluster", "target": "/x"},
        {"type": "bind", "source": "./a", "target": "/x", "bind": {"propagation": "shared"}},
        {"source": "./a"},
        {"source": "./a,b", "target": "/x"},
        {"source": "./a", "target": "/x:y"},
        {"source": "./a", "target": "/x\n"},
        5,
    ],
)
def test_a_mount_of_another_form_is_refused(mount: Any) -> None:
    assert refused(volumes=[mount]).startswith("services.app.volumes")


@pytest.mark.parametrize("options", [{"driver_opts": {"type": "ext4", "device": "/dev/vdb"}}, {"external": True}, "x"])
def test_a_named_volume_with_options_is_refused(options: Any) -> None:
    with pytest.raises(WorkloadError, match="volumes"):
        services({"services": {"app": {"image": IMAGE}}, "volumes": {"named": options}}, {}, PLACES)


PATHS = st.text(st.sampled_from("./ab~mntdv\\"), max_size=30)


@given(PATHS)
@settings(max_examples=400)
def test_no_source_reaches_the_guest(source: str) -> None:
    try:
        made = translate(volumes=[f"{source}:/x"])
    except WorkloadError:
        return
    for path in made.mounts + made.directories:
        assert ".." not in path.split("/")
        allowed = ("/w/archive", "/w/scratch/", "/var/volumes/data", "/var/volumes/logs", "/var/hyperprotect")
        assert any(path == one.rstrip("/") or path.startswith(one.rstrip("/") + "/") for one in allowed)


# ------------------------------------------------------------------------------------------------- order


def order(**after: Any) -> list[str]:
    document = {"services": {name: {"image": IMAGE, "depends_on": needs} for name, needs in after.items()}}
    return [service.name for service in services(document, {}, PLACES)]


def test_a_service_starts_after_those_that_it_waits_for() -> None:
    assert order(web=["app"], app={"db": {"condition": "service_healthy"}}, db=[]) == ["db", "app", "web"]


@pytest.mark.parametrize(
    "after", [{"a": ["a"]}, {"a": ["b"], "b": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["a"], "d": []}]
)
def test_services_that_wait_for_each_other_are_refused(after: dict[str, list[str]]) -> None:
    with pytest.raises(WorkloadError, match="wait for each other"):
        order(**after)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3, unique=True)))
def test_the_order_keeps_every_wish_or_there_is_none(after: dict[str, list[str]]) -> None:
    if not after:
        return
    try:
        found = order(**after)
    except WorkloadError:
        return
    assert sorted(found) == sorted(after)
    assert all(found.index(other) < found.index(name) for name, needs in after.items() for other in needs)


# ------------------------------------------------------------------------------------------------- anything

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["user", "privileged", "cap_add", "command", "entrypoint", "environment", "ports", "volumes", "depends_on", "restart",
     "sysctls", "ulimits", "healthcheck", "networks", "container_name", "labels", "tmpfs", "image", "unknown",
     "network_mode", "links", "volumes_from", "profiles", "pid", "ipc", "extra_hosts", "secrets", "configs", "deploy"]
)  # fmt: skip


@given(
    st.dictionaries(KEYS, VALUES),
    st.dictionaries(st.sampled_from(["volumes", "networks", "name", "secrets", "configs"]), VALUES),
)
@settings(max_examples=500)
def test_any_values_are_translated_or_refused_and_nothing_else(service: dict[str, Any], top: dict[str, Any]) -> None:
    try:
        made = services({"services": {"app": {"image": IMAGE, **service}}, **top}, {}, PLACES)
    except WorkloadError:
        return
    for each in made:
        assert all(isinstance(option, str) and option.startswith("--") for option in each.options)


def test_a_whole_file_as_people_write_it() -> None:
    text = f"""
    services:
      db:
        image: {IMAGE}
        environment: {{POSTGRES_PASSWORD: "${{PASSWORD}}"}}
        volumes: ["/mnt/data:/var/lib/postgresql/data"]
        healthcheck: {{test: [CMD, pg_isready]}}
      web:
        image: {IMAGE}
        ports: ["8080:80"]
        depends_on: {{db: {{condition: service_healthy}}}}
        restart: unless-stopped
    """.encode()
    db, web = services(read_compose(text), {"PASSWORD": "geheim"}, PLACES)
    assert (db.name, web.name, web.after) == ("db", "web", {"db": "service_healthy"})
    assert db.options == [
        "--volume=/var/volumes/data:/var/lib/postgresql/data",
        "--volume=/var/volumes/logs:/var/lib/postgresql/data/logs",
        '--health-cmd=["pg_isready"]',
    ]
    assert db.environment == {"POSTGRES_PASSWORD": "geheim"} and db.health == Health()
    assert web.restart == Restart("always")


# ------------------------------------------------------------------------------------------------- every problem at once


def problems_of(document: dict[str, Any], env: dict[str, str] | None = None) -> list[str]:
    compose.translate(document, {} if env is None else env, PLACES, problems := Problems())
    return [str(problem) for problem in problems]


def test_every_problem_is_told_with_its_place_and_the_nearest_key() -> None:
    told = problems_of(
        {
            "services": {
                "a": {"image": IMAGE, "volums": [], "ports": ["x", "80:80", "y"], "volumes": ["../a:/b", "/etc:/c"]},
                "b": {"image": IMAGE, "restart": "sometimes", "environment": {"A": "${NONE"}, "depends_on": ["c"]},
            },
            "network": {},
        }
    )
    assert [line.partition(": ")[0] for line in told] == [
        "network",
        "services.a.volums",
        "services.a.ports[0]",
        "services.a.ports[2]",
        "services.a.volumes[0]",
        "services.a.volumes[1]",
        "services.b.environment.A",
        "services.b.restart",
        "services.b.depends_on",
    ]
    assert "did you mean volumes?" in told[1] and "did you mean networks?" in told[0]


def test_what_hangs_on_the_deployers_variables_is_left_open_and_the_rest_is_not() -> None:
    service = {"image": IMAGE, "ports": ["${PORT}:80"], "restart": "sometimes", "cpus": "${CPUS}"}
    told = problems_of({"services": {"a": service}}, Open({}))
    assert [line.partition(": ")[0] for line in told] == ["services.a.restart"]
    assert problems_of({"services": {"a": service}}, {"PORT": "x", "CPUS": "1"})[0].startswith("services.a.ports[0]")


def test_two_services_have_not_one_container_name() -> None:
    document = {
        "services": {"a": {"image": IMAGE, "container_name": "x"}, "b": {"image": IMAGE, "container_name": "x"}}
    }
    assert problems_of(document) == ["services.b.container_name: is that of a already"]


@pytest.mark.parametrize("other", ["80:81", "79-81:79-81", {"target": 1, "published": 80}])
def test_two_services_publish_not_one_port(other: Any) -> None:
    document = {"services": {"a": {"image": IMAGE, "ports": ["80:80"]}, "b": {"image": IMAGE, "ports": [other]}}}
    assert problems_of(document) == ["services.b.ports: 80 is published twice"]
    document["services"]["b"]["ports"] = ["80:80/udp"]
    assert problems_of(document) == []


def test_nobody_waits_for_the_end_of_one_that_always_starts_again() -> None:
    after = {"a": {"condition": "service_completed_successfully"}}
    document = {"services": {"a": {"image": IMAGE, "restart": "always"}, "b": {"image": IMAGE, "depends_on": after}}}
    assert problems_of(document) == ["services.b.depends_on: a is never complete, since it always starts again"]


# ------------------------------------------------------------------------------------------------- restart, health


@pytest.mark.parametrize(
    ("text", "restart"),
    [
        ("no", Restart("never")),
        ("always", Restart("always")),
        ("unless-stopped", Restart("always")),
        ("on-failure", Restart("failure")),
        ("on-failure:3", Restart("failure", 3)),
    ],
)
def test_restart_policies(text: str, restart: Restart) -> None:
    assert translate(restart=text).restart == restart
    assert translate().restart == Restart("never")


def test_a_restart_policy_of_deploy_counts_where_there_is_no_other() -> None:
    deploy = {"restart_policy": {"condition": "on-failure", "max_attempts": 2}}
    assert translate(deploy=deploy).restart == Restart("failure", 2)
    assert translate(deploy=deploy, restart="no").restart == Restart("never")


@pytest.mark.parametrize(
    ("restart", "ends"),
    [
        (Restart("never"), {(0, 0): False, (1, 0): False}),
        (Restart("always"), {(0, 0): True, (1, 99): True}),
        (Restart("failure"), {(0, 0): False, (1, 0): True, (1, 999): True}),
        (Restart("failure", 2), {(0, 0): False, (1, 0): True, (1, 1): True, (1, 2): False}),
    ],
)
def test_what_a_restart_policy_says(restart: Restart, ends: dict[tuple[int, int], bool]) -> None:
    assert {end: restart.again(*end) for end in ends} == ends


def test_one_that_is_waited_for_as_healthy_is_asked_by_what_its_image_says() -> None:
    each: dict[str, Any] = {
        "db": {"image": IMAGE},
        "web": {"image": IMAGE, "depends_on": {"db": {"condition": "service_healthy"}}},
    }
    db, web = services({"services": each}, {}, PLACES)
    assert db.health == Health() and web.health is None and db.options == []
    each["db"]["healthcheck"] = {"interval": "5s"}
    assert services({"services": each}, {}, PLACES)[0].health == Health(5.0)


def test_times_of_a_health_check() -> None:
    check = {"test": "true", "interval": "1m30s", "timeout": "500ms", "start_period": "1h", "retries": 5}
    assert translate(healthcheck=check).health == Health(90.0, 0.5, 3600.0, 5)


# ------------------------------------------------------------------------------------------------- files of the archive

ENV_FILE = b"""# a comment
A=one   # behind
export B='$A and # all'
C="two\\nlines $GIVEN"
D=
E= spaces
F=$GIVEN/x
"""


def with_files(env: dict[str, str] | None = None, files: dict[str, bytes] | None = None, **service: Any) -> Service:
    places = Places(
        "/w/archive", "/w/scratch", {}, {**(files or {"a.env": ENV_FILE, "conf/b.env": b"A=of b\n"}), "key.pem": b"k"}
    )
    document = {"services": {"app": {"image": IMAGE, **service}}, "secrets": {"key": {"file": "key.pem"}}}
    (made,) = services(document, env or {"GIVEN": "g"}, places)
    return made


def test_variables_of_a_file_of_the_archive() -> None:
    made = with_files(env_file="./a.env", environment={"A": "of the compose file"})
    assert made.environment == {
        **{"A": "of the compose file", "B": "$A and # all", "C": "two\nlines g", "D": "", "E": "spaces", "F": "g/x"},
    }
    assert with_files(env_file=["a.env", {"path": "conf/b.env"}]).environment["A"] == "of b"
    assert with_files(env_file=[{"path": "none.env", "required": False}]).environment == {}


@pytest.mark.parametrize("line", [b"A", b"A='x", b'A="x', b"=x", b"A B=x", b"A=${NONE", b"\xff=1", b"A='x'y"])
def test_a_file_of_variables_that_is_not_understood_is_refused(line: bytes) -> None:
    with pytest.raises(WorkloadError, match=r"env_file, a\.env"):
        with_files(files={"a.env": line}, env_file="a.env")


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_no_file_of_variables_raises_anything_else(content: bytes) -> None:
    try:
        found = read_env_file(content, {"A": "b"}, "x", Problems())
    except WorkloadError:
        return
    assert all(name and "=" not in name for name in found)


def test_a_secret_is_a_file_of_the_archive_mounted_read_only() -> None:
    assert with_files(secrets=["key"]).options == ["--volume=/w/archive/key.pem:/run/secrets/key:ro"]
    (option,) = with_files(secrets=[{"source": "key", "target": "/etc/key"}]).options
    assert option == "--volume=/w/archive/key.pem:/etc/key:ro"
