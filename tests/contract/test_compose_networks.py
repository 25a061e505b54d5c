"""Networks of compose files, what containers share, profiles, and volumes and files that the file itself describes."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.contract import compose
from casemate.contract.workload import Network, Places, Problems, Service, Workload

IMAGE = "registry.example.com/app@sha256:" + "0" * 64
PLACES = Places("/w/archive", "/w/scratch", {"/mnt/data": "/var/volumes/data"}, {"key.pem": b"k"})


def translated(document: dict[str, Any], env: dict[str, str] | None = None) -> tuple[Workload, Problems]:
    for service in document["services"].values():
        service.setdefault("image", IMAGE)
    made = compose.translate(document, env or {}, PLACES, problems := Problems())
    return made, problems


def workload(document: dict[str, Any], env: dict[str, str] | None = None) -> Workload:
    made, problems = translated(document, env)
    assert problems == []
    return made


def named(made: Workload) -> dict[str, Service]:
    return {each.name: each for each in made.services}


def refused(document: dict[str, Any]) -> str:
    return str(translated(document)[1][0])


# ------------------------------------------------------------------------------------------------- networks


def test_one_container_needs_no_network_of_its_own() -> None:
    for app in ({}, {"networks": ["front"]}, {"networks": {"front": None}}, {"network_mode": "bridge"}):
        made = workload({"services": {"app": app}, "networks": {"front": None}})
        assert made.networks == [] and made.services[0].networks == {} and made.services[0].options == []


def test_containers_on_one_network_know_each_other_by_name() -> None:
    made = workload({"services": {"web": {}, "db": {"networks": {"default": {"aliases": ["store", "db"]}}}}})
    assert made.networks == [Network("workload")]
    assert named(made)["web"].networks == {"workload": ("alias=web",)}
    assert named(made)["db"].networks == {"workload": ("alias=db", "alias=store")}


def test_networks_of_a_file_are_kept_apart_and_one_that_is_internal_leads_nowhere() -> None:
    networks = {
        "front": {"driver": "bridge", "attachable": True},
        "back": {"internal": True, "ipam": {"config": [{"subnet": "10.9.0.0/24", "gateway": "10.9.0.1"}]}},
        "unused": {"internal": True},
    }
    services: dict[str, Any] = {
        "web": {"networks": ["front"]},
        "app": {"networks": {"front": None, "back": {"ipv4_address": "10.9.0.7", "aliases": ["api"]}}},
        "db": {"networks": ["back"]},
        "none": {"network_mode": "none"},
    }
    made = workload({"services": services, "networks": networks})
    assert made.networks == [
        Network("workload-front"),
        Network("workload-back", ("--subnet=10.9.0.0/24", "--gateway=10.9.0.1"), internal=True),
    ]
    assert {name: each.networks for name, each in named(made).items()} == {
        "web": {"workload-front": ("alias=web",)},
        "app": {"workload-front": ("alias=app",), "workload-back": ("alias=app", "alias=api", "ip=10.9.0.7")},
        "db": {"workload-back": ("alias=db",)},
        "none": {},
    }


def test_a_single_container_has_what_its_network_says() -> None:
    made = workload({"services": {"app": {"networks": ["back"]}}, "networks": {"back": {"internal": True}}})
    assert made.networks == [Network("workload-back", internal=True)]


@pytest.mark.parametrize(
    "item",
    [
        {"driver": "host"},
        {"driver": "macvlan"},
        {"external": True},
        {"enable_ipv6": True},
        {"driver_opts": {"com.docker.network.bridge.name": "br0"}},
        {"internal": "perhaps"},
        {"ipam": {"driver": "dhcp"}},
        {"ipam": {"config": [{"gateway": "10.9.0.1"}]}},
        {"ipam": {"config": [{"subnet": "fd00::/64"}]}},
        {"ipam": {"config": [{"subnet": "10.9.0.0/24,alias=db"}]}},
        {"ipam": {"config": [{"subnet": "10.9.0.0/24"}, {"subnet": "10.10.0.0/24"}]}},
        {"nmae": "x"},
        "text",
    ],
)
def test_a_network_of_another_kind_is_refused(item: Any) -> None:
    document = {"services": {"app": {"networks": ["front"]}}, "networks": {"front": item}}
    assert refused(document).startswith("networks.front")


@pytest.mark.parametrize(
    "networks",
    [
        ["other"],
        {"front": {"ipv4_address": "10.9.0.7,alias=db"}},
        {"front": {"aliases": ["a,ip=10.0.0.1"]}},
        {"front": {"mac": "x"}},
        {"front": ["a"]},
        "front",
        [["front"]],
    ],
)
def test_what_a_container_asks_of_a_network_can_be_no_option_of_another_kind(networks: Any) -> None:
    document = {"services": {"app": {"networks": networks}}, "networks": {"front": {}}}
    assert refused(document).startswith("services.app.networks")


@pytest.mark.parametrize("name", ["a,ip=10.0.0.1", "a:b", "a b", ""])
def test_the_name_of_a_network_can_be_no_option(name: str) -> None:
    assert refused({"services": {"app": {}}, "networks": {name: {}}}).startswith("networks")


# ------------------------------------------------------------------------------------------------- what is shared


def test_a_container_shares_what_another_has_and_starts_behind_it() -> None:
    services: dict[str, Any] = {
        "side": {
            "network_mode": "service:main",
            "pid": "container:the-main",
            "ipc": "service:main",
            "volumes_from": ["main:ro"],
        },
        "main": {"container_name": "the-main"},
    }
    made = workload({"services": services})
    assert [each.name for each in made.services] == ["main", "side"] and made.networks == []
    side = made.services[1]
    assert side.networks == {} and side.after == {"main": "service_started"}
    assert side.options == [
        *("--network=container:the-main", "--pid=container:the-main", "--ipc=container:the-main"),
        "--volumes-from=the-main:ro",
    ]


def test_a_link_is_a_name_and_an_order() -> None:
    made = workload({"services": {"web": {"links": ["db:database", "cache"]}, "db": {}, "cache": {}}})
    assert named(made)["web"].after == {"db": "service_started", "cache": "service_started"}
    assert named(made)["db"].networks == {"workload": ("alias=db", "alias=database")}
    assert named(made)["cache"].networks == {"workload": ("alias=cache",)}


def test_ports_are_published_by_whose_network_it_is() -> None:
    services: dict[str, Any] = {"main": {}, "side": {"network_mode": "service:main", "ports": ["80:80"]}}
    assert "published by the service whose network it is" in refused({"services": services})


def test_on_the_machines_network_ports_are_no_option_and_that_is_noted() -> None:
    made, problems = translated({"services": {"app": {"network_mode": "host", "ports": ["80:80"]}}})
    assert made.services[0].options == ["--network=host"] and problems == []
    assert [note.where for note in problems.notes] == ["services.app.ports"]


# ------------------------------------------------------------------------------------------------- profiles


def test_a_service_of_a_profile_starts_where_it_is_wanted() -> None:
    services: dict[str, Any] = {
        "app": {"depends_on": {"debug": {"condition": "service_started", "required": False}}},
        "debug": {"profiles": ["debug", "all"], "privileged": "perhaps"},
    }
    made = workload({"services": services})
    assert [each.name for each in made.services] == ["app"] and made.services[0].after == {}
    services["debug"]["privileged"] = False
    for wanted in ("debug", "other,all", "*"):
        made = workload({"services": services}, {"COMPOSE_PROFILES": wanted})
        assert [each.name for each in made.services] == ["debug", "app"]
    services["app"]["depends_on"] = ["debug"]
    assert "no service debug" in refused({"services": services})


# ------------------------------------------------------------------------------------------------- volumes and files


def test_a_named_volume_that_is_another_path_is_that_path() -> None:
    volumes = {
        "data": {"driver_opts": {"type": "none", "o": "bind", "device": "/mnt/data/db"}},
        "conf": {"driver": "local", "driver_opts": {"o": "bind", "device": "${PWD}/conf"}},
        "cache": {"driver_opts": {"type": "tmpfs", "device": "tmpfs", "o": "size=64m,mode=1777"}},
    }
    made = workload({"services": {"app": {"volumes": ["data:/d", "conf:/c:ro", "cache:/t"]}}, "volumes": volumes})
    assert made.services[0].options == [
        *("--volume=/var/volumes/data/db:/d", "--volume=/w/archive/conf:/c:ro", "--tmpfs=/t:size=64m,mode=1777"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"type": "none", "o": "bind", "device": "/etc"},
        {"type": "none", "o": "bind", "device": "../up"},
        {"type": "ext4", "device": "/dev/vdb"},
        {"type": "nfs", "o": "addr=192.0.2.1,rw", "device": ":/x"},
        {"type": "none", "o": "bind,exec", "device": "/mnt/data"},
        {"type": "tmpfs", "o": "size=1m:rw"},
        {"mountpoint": "/x"},
    ],
)
def test_options_of_a_volume_reach_nothing_that_a_mount_may_not(options: dict[str, str]) -> None:
    document = {"services": {"app": {"volumes": ["x:/x"]}}, "volumes": {"x": {"driver_opts": options}}}
    assert "volumes" in refused(document)


def test_a_secret_of_a_variable_and_a_config_in_the_file_are_written_for_the_container() -> None:
    document: dict[str, Any] = {
        "services": {"app": {"secrets": ["password"], "configs": [{"source": "conf", "target": "/etc/app.conf"}]}},
        "secrets": {"password": {"environment": "PASSWORD"}},
        "configs": {"conf": {"content": "level=${LEVEL}\n"}},
    }
    made = workload(document, {"PASSWORD": "geheim", "LEVEL": "info"})
    assert made.services[0].options == [
        "--volume=/w/scratch/.secrets/password:/run/secrets/password:ro",
        "--volume=/w/scratch/.configs/conf:/etc/app.conf:ro",
    ]
    assert made.files == {
        "/w/scratch/.secrets/password": (0o444, b"geheim"),
        "/w/scratch/.configs/conf": (0o444, b"level=info\n"),
    }
    assert made.services[0].mounts == list(made.files)
    assert "neither section gives" in refused(document)


def test_rights_of_a_secret_are_passed_over_and_that_is_noted() -> None:
    document = {
        "services": {"app": {"secrets": [{"source": "key", "mode": 0o400, "uid": "7"}]}},
        "secrets": {"key": {"file": "key.pem"}},
    }
    made, problems = translated(document)
    assert made.services[0].options == ["--volume=/w/archive/key.pem:/run/secrets/key:ro"] and problems == []
    assert "passed over" in str(problems.notes[0])


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"file": "a", "environment": "B"},
        {"content": "x"},
        {"external": True},
        {"file": "/etc/shadow"},
        {"file": ""},
    ],
)
def test_a_secret_comes_from_the_archive_or_a_variable(item: dict[str, Any]) -> None:
    assert refused({"services": {"app": {}}, "secrets": {"key": item}}).startswith("secrets.key")
