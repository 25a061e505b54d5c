"""What becomes of pods: what is understood, to the letter; everything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.contract import play
from casemate.contract import pod as pod_module
from casemate.contract.archive import write_archive
from casemate.contract.document import rewrite
from casemate.contract.errors import ImageError, WorkloadError
from casemate.contract.images import Open, Reference, workload_images
from casemate.contract.workload import Health, Network, Places, Probe, Problems, Restart, Service, Workload

IMAGE = "registry.example.com/app@sha256:" + "0" * 64
PLACES = Places("/w/archive", "/w/scratch", {"/mnt/data": "/var/volumes/data"}, {"www/index.html": b"x", "conf": b"y"})


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    main = {"name": "main", "image": IMAGE, **(container or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [main], **spec}}


def table(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def translated(*objects: dict[str, Any], env: dict[str, str] | None = None, kind: str = "resources") -> Workload:
    """As the machine does: the first problem stops it."""
    manifests, problems = play.read_play({kind: list(objects)}, env or {})
    made = play.translate(manifests, env or {}, PLACES, problems)
    for problem in problems:
        raise problem
    return made


def main(*objects: dict[str, Any], env: dict[str, str] | None = None) -> Service:
    return translated(*objects, env=env).services[-1]


def own(service: Service) -> list[str]:
    """The options beside those that every container of the pod has."""
    return [option for option in service.options if "container:web-infra" not in option]


def refused(*objects: dict[str, Any], env: dict[str, str] | None = None) -> str:
    with pytest.raises(WorkloadError) as error:
        translated(*objects, env=env)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- a pod


def test_a_pod_is_one_container_that_holds_its_network_and_its_containers() -> None:
    holder, one, two = translated(
        pod(
            {"ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "tcp"}, {"containerPort": 81}]},
            hostname="here",
        ),
        {
            **pod(),
            "metadata": {"name": "other"},
        },
    ).services[:3]
    assert holder.holds_pod and holder.container == "web-infra" and holder.image == ""
    assert holder.options == ["--hostname=here", "--publish=8080:80/tcp"]
    assert (one.name, one.container, one.image, one.pod) == ("web/main", "web-main", IMAGE, "web")
    assert one.options == [f"--{kind}=container:web-infra" for kind in ("network", "uts", "ipc")]
    assert one.after == {"web": "service_started"} and one.restart == Restart("always")
    assert two.holds_pod and two.name == "other"


def test_what_a_cluster_writes_into_a_pod_is_passed_over() -> None:
    written = pod(affinity={}, dnsPolicy="ClusterFirst", nodeName="n", priority=0)
    known = {"uid": "1", "resourceVersion": "2", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
    written["metadata"] |= known
    assert translated({**written, "status": {"phase": "Running"}}) == translated(pod())
    one = table("t", A="b")
    one["metadata"] |= known
    assert main(one, pod({"envFrom": [{"configMapRef": {"name": "t"}}]})).environment == {"A": "b"}


def test_init_containers_run_one_after_another_before_the_rest() -> None:
    made = translated(pod(initContainers=[{"name": "a", "image": IMAGE}, {"name": "b", "image": IMAGE}])).services
    assert [each.name for each in made] == ["web", "web/a", "web/b", "web/main"]
    assert made[2].after == {"web": "service_started", "web/a": "service_completed_successfully"}
    assert made[3].after == {**made[2].after, "web/b": "service_completed_successfully"}
    assert made[1].restart == Restart("failure")


@pytest.mark.parametrize(
    ("text", "restart", "init"),
    [("Always", "always", "failure"), ("OnFailure", "failure", "failure"), ("Never", "never", "never")],
)
def test_restart_policies(text: str, restart: str, init: str) -> None:
    made = translated(pod(restartPolicy=text, initContainers=[{"name": "a", "image": IMAGE}])).services
    assert (made[2].restart.when, made[1].restart.when) == (restart, init)


def test_names_of_fields_count_whatever_their_capitals_as_the_tools_take_them() -> None:
    assert main(pod(restartpolicy="Never")).restart == Restart("never")
    assert main(pod({"restartpolicy": "Never"})).restart == Restart("never")
    assert "stands twice" in refused(pod(restartpolicy="Never", restartPolicy="Always"))
    found = workload_images({"play": {"resources": [pod(initcontainers=[{"name": "a", "image": "b"}])]}}, {})
    assert [image.name for image in found.values() if isinstance(image, Reference)] == [
        "docker.io/library/b",
        "registry.example.com/app",
    ]


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ({"command": ["sh", "-c"], "args": ["x"]}, ['--entrypoint=["sh", "-c"]']),
        ({"workingDir": "/srv", "tty": True, "stdin": True}, ["--workdir=/srv", "--tty", "--interactive"]),
        ({"securityContext": {"runAsUser": 5, "runAsGroup": 6, "runAsNonRoot": True}}, ["--user=5:6"]),
        ({"securityContext": {"privileged": True, "readOnlyRootFilesystem": True}}, ["--privileged", "--read-only"]),
        ({"securityContext": {"allowPrivilegeEscalation": False}}, ["--security-opt=no-new-privileges"]),
        (
            {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}},
            ["--cap-drop=ALL", "--cap-add=CHOWN"],
        ),
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, ["--security-opt=seccomp=unconfined"]),
        ({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}, ["--cpus=0.5", "--memory=67108864b"]),
        ({"resources": {"requests": {"cpu": 1}}, "imagePullPolicy": "Always"}, []),
    ],
)
def test_what_is_understood_becomes_an_option(container: dict[str, Any], options: list[str]) -> None:
    assert own(main(pod(container))) == options


def test_each_probe_of_a_container_is_kept_with_its_times() -> None:
    times = {"periodSeconds": 5, "timeoutSeconds": 4, "failureThreshold": 2, "initialDelaySeconds": 7}
    made = main(
        pod(
            {
                "ports": [{"containerPort": 8080, "name": "web"}],
                "livenessProbe": {"exec": {"command": ["test", "-f", "/x"]}, **times, "successThreshold": 1},
                "startupProbe": {"tcpSocket": {"port": 80}},
                "readinessProbe": {
                    "httpGet": {
                        "path": "ready?now",
                        "port": "web",
                        "httpHeaders": [{"name": "X-A", "value": "b c"}],
                    }
                },
            }
        )
    )
    ours = {"delay": 7.0, "kills": True, "probe": Probe(("test", "-f", "/x"))}
    assert made.health == Health(5.0, 4.0, 0.0, 2, **ours)  # type: ignore[arg-type]
    assert made.startup == Health(10.0, 1.0, kills=True, delay=0.0, probe=Probe(port=80))
    page = Probe(port=8080, path="/ready?now", headers=(("X-A", "b c"),))
    assert made.ready == Health(10.0, 1.0, kills=False, delay=0.0, probe=page)


def test_volumes_are_given_to_the_group_of_the_pod_but_nothing_else_is() -> None:
    volumes = [
        *({"name": name, "hostPath": {"path": path}} for name, path in (("a", "/mnt/data/x"), ("b", "/other"))),
        *({"name": name, "hostPath": {"path": path}} for name, path in (("c", "/var/hyperprotect"), ("d", "./www"))),
        {"name": "e", "emptyDir": {}},
    ]
    mounts = [{"name": each["name"], "mountPath": f"/{each['name']}"} for each in volumes]
    made = main(pod({"volumeMounts": mounts}, volumes=volumes, securityContext={"fsGroup": 1000}))
    assert (made.group, made.regroup) == (1000, True) and "--group-add=1000" in made.options
    assert made.grouped == ["/var/volumes/data/x", "/w/scratch/.empty/web-e"]
    assert "--volume=/w/scratch/.empty/web-e:/e" in made.options and "/w/scratch/.empty/web-e" in made.directories
    rarely = {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}
    assert main(pod(securityContext=rarely)).regroup is False
    assert main(pod()).group is None


@pytest.mark.parametrize(
    ("container", "place"),
    [
        ({"livenessProbe": {"grpc": {"port": 80}}}, "livenessProbe.grpc"),
        ({"livenessProbe": {"exec": {"command": []}}}, "livenessProbe.exec"),
        ({"livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}}, "must have one of exec"),
        ({"startupProbe": {}}, "startupProbe"),
        ({"startupProbe": {"httpGet": {"port": "http"}}}, "startupProbe.httpGet.port"),
        ({"readinessProbe": {"x": 1}}, "readinessProbe.x"),
        ({"startupProbe": {"httpGet": {"port": 443, "scheme": "HTTPS"}}}, "startupProbe.httpGet.scheme"),
        ({"readinessProbe": {"httpGet": {"port": 80, "host": "10.0.2.2"}}}, "readinessProbe.httpGet.host"),
        ({"readinessProbe": {"httpGet": {"port": 80, "path": "/ HTTP/1.1\r\nX: y"}}}, "readinessProbe.httpGet"),
        (
            {"readinessProbe": {"httpGet": {"port": 80, "httpHeaders": [{"name": "A", "value": "b\r\nC: d"}]}}},
            "readinessProbe.httpGet.httpHeaders",
        ),
        ({"readinessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 2}}, "readinessProbe.successThreshold"),
        ({"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}, "runAsNonRoot"),
        ({"securityContext": {"seLinuxOptions": {}}}, "seLinuxOptions"),
        ({"resources": {"limits": {"memory": "much"}}}, "memory"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "nvidia"),
        ({"ports": [{"containerPort": 0}]}, "containerPort"),
        ({"ports": [{"containerPort": 80, "hostPort": 70000}]}, "hostPort"),
        ({"ports": [{"containerPort": 80, "protocol": "SCTP"}]}, "ports[0]"),
        ({"ports": [{"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.1"}]}, "ports[0]"),
        ({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}, "volumeMounts[0]"),
        ({"env": [{"name": "A B", "value": "x"}]}, "env"),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}, "secretKeyRef"),
        ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}]}, "configMapKeyRef"),
        ({"envFrom": [{"secretRef": {"name": "s"}}]}, "secretRef"),
        ({"envFrom": [{"configMapRef": {"name": "none"}}]}, "configMapRef"),
        ({"args": "a line"}, "args"),
        ({"name": "--privileged"}, "name"),
        ({"comand": []}, "comand: not supported; did you mean command?"),
        ({"restartPolicy": "Sometimes"}, "restartPolicy"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(container: dict[str, Any], place: str) -> None:
    said = refused(pod(container))
    assert said.startswith("play.resources[0].spec.containers[0].") and place in said


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"hostNetwork": "perhaps"}, "hostNetwork"),
        ({"containers": []}, "containers"),
        ({"ephemeralContainers": []}, "ephemeralContainers"),
        ({"dnsConfig": {"nameserver": []}}, "dnsConfig"),
        ({"dnsConfig": {"nameservers": ["8.8.8.8 --privileged"]}}, "dnsConfig.nameservers"),
        ({"dnsConfig": {"options": [{"name": ["ndots"]}]}}, "dnsConfig.options"),
        ({"securityContext": {"fsGroup": -1}}, "fsGroup"),
        ({"securityContext": {"fsGroup": 1, "fsGroupChangePolicy": "Never"}}, "fsGroupChangePolicy"),
        ({"volumes": [{"name": "a", "secret": {"secretName": "x"}}]}, "volumes[0]"),
        ({"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "x"}}]}, "hostPath at its mount point"),
        ({"volumes": [{"name": "a"}]}, "volumes[0]"),
        ({"volumes": [{"name": "a", "hostPath": {"path": "none", "type": "Directory"}}]}, "the archive has no such"),
        ({"dnsPolicy": "None"}, "spec.dnsPolicy: None needs a dnsConfig"),
        ({"dnsPolicy": "None", "dnsConfig": {"searches": ["example.com"]}}, "spec.dnsPolicy: None needs a dnsConfig"),
        ({"affinity": {"nodeAffinity": {}}}, "spec.affinity: not supported unless empty"),
        ({"affinity": []}, "spec.affinity: not supported unless empty"),
        ({"volumes": [{"name": "a", "hostPath": {"path": "/mnt", "type": "Socket"}}]}, "type"),
        ({"volumes": [{"name": "a", "hostPath": {"path": "/etc", "type": "CharDevice"}}]}, "below /dev"),
        ({"volumes": [{"name": "a", "hostPath": {"path": "/dev/../etc", "type": "BlockDevice"}}]}, "below /dev"),
        ({"volumes": [{"name": "../a", "emptyDir": {}}]}, "volumes[0].name"),
        ({"volumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]}, "stands twice"),
        ({"volumes": [{"name": "a", "configMap": {"name": "none"}}]}, "there is no ConfigMap"),
        ({"initContainers": [{"name": "a", "image": IMAGE, "restartPolicy": "Always"}]}, "restartPolicy"),
        ({"initContainers": [{"name": "main", "image": IMAGE}]}, "already"),
        ({"initContainers": [{"name": "infra", "image": IMAGE}]}, "already"),
    ],
)
def test_what_a_pod_may_not_ask_for(spec: dict[str, Any], place: str) -> None:
    assert place in refused(pod(**spec))


def test_two_pods_have_not_one_port_and_not_one_name() -> None:
    published = {"ports": [{"containerPort": 80, "hostPort": 80}]}
    other = {**pod(published), "metadata": {"name": "other"}}
    assert "is published at play.resources[0]" in refused(pod(published), other)
    assert "already" in refused(pod(), pod())


# ------------------------------------------------------------------------------------------------- variables


def test_the_contracts_variables_are_a_config_map() -> None:
    everything = {"envFrom": [{"configMapRef": {"name": "contract.config.map", "optional": False}}]}
    assert main(pod(everything), env={"A": "1", "B": "two\nlines"}).environment == {"A": "1", "B": "two\nlines"}
    assert "name of another ConfigMap" in refused(table("contract.config.map", A="mine"), pod())


def test_variables_of_config_maps_and_their_order() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "one"}}, {"configMapRef": {"name": "two"}, "prefix": "P_"}],
        "env": [
            {"name": "A", "value": "own"},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "two", "key": "x"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "two", "key": "none", "optional": True}}},
            {"name": "D", "value": "$(A)-$(B)-$(NONE)-$$(A)"},
            {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "args": ["$(A)", "$$(A)", "$A"],
    }
    made = main(table("one", A="of one", Z="z"), table("two", x="X"), pod(container))
    assert made.environment == {
        **{"A": "own", "Z": "z", "P_x": "X", "B": "X", "D": "own-X-$(NONE)-$(A)", "E": "web"},
    }
    assert made.command == ["own", "$(A)", "$A"]


# ------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("/mnt/data", "/var/volumes/data:/x"),
        ("/mnt/data/sub/", "/var/volumes/data/sub:/x"),
        ("/var/hyperprotect/", "/var/hyperprotect:/x:ro"),
        ("./www", "/w/archive/www:/x"),
        ("www", "/w/archive/www:/x"),
        ("/opt/cache", "/w/scratch/opt/cache:/x"),
    ],
)
def test_where_a_host_path_leads(path: str, option: str) -> None:
    made = main(
        pod({"volumeMounts": [{"name": "v", "mountPath": "/x"}]}, volumes=[{"name": "v", "hostPath": {"path": path}}])
    )
    assert own(made) == [f"--volume={option}"] and made.mounts == [option.split(":")[0]]


def test_names_and_mount_options_are_podmans() -> None:
    """So write the public contracts of the Offline Signing Orchestrator and the tutorials of Hyper Protect."""
    mounts = [
        {"name": "my_vol", "mountPath": "/x:Z,ro"},
        {"name": "card", "mountPath": "/dev/z90crypt"},
        {"name": "card", "mountPath": "/dev/card", "readOnly": True},
    ]
    volumes = [
        {"name": "my_vol", "hostPath": {"path": "/mnt/data"}},
        {"name": "card", "hostPath": {"path": "/dev/z90crypt", "type": "CharDevice"}},
    ]
    found = pod({"name": "my_app", "volumeMounts": mounts}, volumes=volumes, securityContext={"privileged": False})
    made = main(found)
    assert made.container == "web-my_app"
    devices = ["--device=/dev/z90crypt:/dev/z90crypt", "--device=/dev/z90crypt:/dev/card:r"]
    assert own(made) == ["--volume=/var/volumes/data:/x:ro", *devices]


def test_what_podman_passes_over_in_pods_is_noted() -> None:
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/x:Z,U"}]}
    found = pod(mounted, volumes=[{"name": "v", "emptyDir": {}}], securityContext={"privileged": True})
    manifests, problems = play.read_play({"resources": [found]}, {})
    made = play.translate(manifests, {}, PLACES, problems).services[-1]
    assert own(made) == ["--volume=web-v:/x"] and problems == []
    assert [each.where.rpartition(".")[2] for each in problems.notes] == ["privileged", "mountPath"]


@pytest.mark.parametrize("path", ["/", "/etc", "/run/casemate", "../x", "/var/lib/casemate", "/mnt/data/../../proc"])
def test_no_host_path_leads_to_the_guest(path: str) -> None:
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/x"}]}
    assert "volumeMounts[0]" in refused(pod(mounted, volumes=[{"name": "v", "hostPath": {"path": path}}]))


@pytest.mark.parametrize("below", ["../x", "/etc", "a/../../b"])
def test_a_sub_path_stays_below_its_volume(below: str) -> None:
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/x", "subPath": below}]}
    assert "subPath" in refused(pod(mounted, volumes=[{"name": "v", "hostPath": {"path": "/mnt/data"}}]))


def test_a_config_map_becomes_files_and_an_empty_directory_is_the_engines() -> None:
    mounts = [
        {"name": "conf", "mountPath": "/etc/app"},
        {"name": "one", "mountPath": "/run.sh", "subPath": "bin/run.sh"},
        {"name": "empty", "mountPath": "/tmp"},
        {"name": "data", "mountPath": "/data", "subPath": "a/b", "readOnly": True},
    ]
    volumes = [
        {"name": "conf", "configMap": {"name": "files"}},
        {"name": "one", "configMap": {"name": "files", "items": [{"key": "b", "path": "bin/run.sh", "mode": 0o755}]}},
        {"name": "empty", "emptyDir": {}},
        {"name": "data", "hostPath": {"path": "/mnt/data"}},
    ]
    made = translated(table("files", a="A", b="B"), pod({"volumeMounts": mounts}, volumes=volumes))
    base = "/w/scratch/.configmaps/web"
    assert made.files == {
        f"{base}/conf/a": (0o644, b"A"),
        f"{base}/conf/b": (0o644, b"B"),
        f"{base}/one/bin/run.sh": (0o755, b"B"),
    }
    assert own(made.services[-1]) == [
        f"--volume={base}/conf:/etc/app:ro",
        f"--volume={base}/one/bin/run.sh:/run.sh:ro",
        "--volume=web-empty:/tmp",
        "--volume=/var/volumes/data/a/b:/data:ro",
    ]


# ------------------------------------------------------------------------------------------------- the three forms


def test_templates_are_filled_and_their_errors_have_a_place() -> None:
    template = pod({"image": "{{ .Env.REGISTRY }}/app@sha256:" + "1" * 64})
    template["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": '{{ .Env.PORT | default "81" }}'}]
    holder, made = translated(template, env={"REGISTRY": "r.example.com"}, kind="templates").services
    assert made.image.startswith("r.example.com/app@") and holder.options[-1] == "--publish=81:80/tcp"
    manifests, problems = play.read_play({"templates": [template]}, {})
    assert manifests == []
    assert str(problems[0]).startswith(
        "play.templates[0].spec.containers[0].image, column 1 of the template: the variable REGISTRY is not set"
    )


def test_resources_are_no_templates() -> None:
    assert main(pod({"args": ["{{ .Env.A }}"]})).command == ["{{ .Env.A }}"]


def test_an_archive_has_objects_at_its_top_and_other_files_beside() -> None:
    files = {
        "pod.yaml": rewrite(pod()).encode(),
        "two.yml": f"{rewrite(table('one', A='1'))}\n---\n{rewrite(table('two', A='1'))}\n".encode(),
        "www/pod.yaml": b"not: an object",
        "._pod.yaml": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X",
        "readme.txt": b"{",
    }
    manifests, problems = play.read_play({"archive": write_archive(files)}, {})
    assert not problems
    assert [(each.place, each.kind) for each in manifests] == [
        ("play.archive, pod.yaml", "Pod"),
        ("play.archive, two.yml, document 1", "ConfigMap"),
        ("play.archive, two.yml, document 2", "ConfigMap"),
    ]


@pytest.mark.parametrize(
    ("section", "cause"),
    [
        ({"archive": "AAAA"}, "not gzip"),
        ({"archive": write_archive({"a.yaml": b"{"})}, "not YAML"),
        ({"archive": write_archive({"a.yaml": b"kind: Deployment"})}, "must be Pod or ConfigMap"),
        ({"archive": write_archive({"values.yaml": b"a: 1"})}, "must be Pod or ConfigMap"),
        ({"archive": write_archive({"._a.yaml": rewrite(pod()).encode()})}, "has no Pod"),
        ({"archive": write_archive({"sub/a.yaml": b"kind: Pod"})}, "has no Pod"),
        ({"resources": [{"apiVersion": "v2", "kind": "Pod"}]}, "must be v1"),
        ({"resources": ["x"]}, "must be Pod or ConfigMap"),
        ({"resources": [table("a", b="c")]}, "has no Pod"),
        ({"resources": "x"}, "must be a list"),
        ({"templates": [{"{{ .Env.A }}": 1}]}, "key can't be a template"),
        ({}, "has no Pod"),
        (None, "has no Pod"),
    ],
)
def test_what_is_no_play_section_is_refused_with_its_place(section: Any, cause: str) -> None:
    _, problems = play.read_play(section, {})
    assert cause in str(problems[0]) and problems[0].where.startswith("play")
    (found,) = [each for each in workload_images({"play": section}, {}).values() if isinstance(each, ImageError)][:1]
    assert cause in found.cause


def test_every_problem_is_told_at_once() -> None:
    bad = pod({"comand": 1}, initContainers=[{"name": "a", "image": IMAGE, "args": 1, "env": 2}], hostNetwork=1)
    manifests, problems = play.read_play({"resources": [bad, table("x/y", a="b")]}, {})
    play.translate(manifests, {}, PLACES, problems)
    assert len(problems) == 5


def test_a_pod_on_the_machines_network_publishes_nothing() -> None:
    port = {"ports": [{"containerPort": 80, "hostPort": 80}]}
    pods = [pod(port, hostNetwork=True), pod(), pod()]
    for name, each in zip("abc", pods, strict=True):
        each["metadata"]["name"] = name
    manifests, problems = play.read_play({"resources": pods}, {})
    made = play.translate(manifests, {}, PLACES, problems)
    first, *others = [each for each in made.services if each.holds_pod]
    assert not problems and first.networks == {}
    assert "--network=host" in first.options and not any("--publish" in option for option in first.options)
    assert [each.networks for each in others] == [{"workload": ("alias=b",)}, {"workload": ("alias=c",)}]
    assert made.networks == [Network("workload")]


def test_name_servers_of_a_pod() -> None:
    dns = {
        "nameservers": ["192.0.2.1"],
        "searches": ["example.com"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "x"}],
    }
    manifests, problems = play.read_play({"resources": [pod(dnsPolicy="None", dnsConfig=dns)]}, {})
    made = play.translate(manifests, {}, PLACES, problems)
    assert not problems and made.networks == []
    assert made.services[0].options[1:] == [
        *("--dns=192.0.2.1", "--dns-search=example.com", "--dns-option=ndots:2", "--dns-option=x"),
    ]


def test_what_podman_passes_over_is_passed_over_and_noted() -> None:
    written = pod(
        {"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}}, subdomain="a", priorityClassName="high"
    )
    manifests, problems = play.read_play({"resources": [written]}, {})
    play.translate(manifests, {}, PLACES, problems)
    assert not problems and [note.where.rpartition(".")[2] for note in problems.notes] == ["subdomain", "lifecycle"]


def test_what_a_pod_says_of_itself_is_a_variable() -> None:
    fields = ("metadata.labels['app']", "metadata.annotations['a/b']", "metadata.namespace", "metadata.labels['none']")
    variables = [{"name": f"V{n}", "valueFrom": {"fieldRef": {"fieldPath": path}}} for n, path in enumerate(fields)]
    written = pod({"env": variables})
    written["metadata"] |= {"labels": {"app": "shop"}, "annotations": {"a/b": "c"}}
    manifests, problems = play.read_play({"resources": [written]}, {})
    made = play.translate(manifests, {}, PLACES, problems)
    assert not problems
    assert made.services[-1].environment == {"V0": "shop", "V1": "c", "V2": "default", "V3": ""}
    variables[0]["valueFrom"] = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    play.translate(manifests, {}, PLACES, problems)
    assert "must be metadata.name" in str(problems[0])


def test_images_of_both_kinds_by_their_place() -> None:
    found = workload_images({"play": {"resources": [pod({"image": "a@x"}), pod()]}}, {})
    assert {place: isinstance(image, Reference) for place, image in found.items()} == {
        "play.resources[0].spec.containers[0].image": False,
        "play.resources[1].spec.containers[0].image": True,
    }
    files = {"docker-compose.yaml": f"services: {{a: {{image: '{IMAGE}'}}, b: {{build: .}}}}".encode()}
    found = workload_images({"compose": {"archive": write_archive(files)}}, {})
    assert {place: isinstance(image, Reference) for place, image in found.items()} == {
        "compose.archive, docker-compose.yaml, services.a.image": True,
        "compose.archive, docker-compose.yaml, services.b.build": False,
    }
    (place,) = workload_images({"compose": {"archive": "AAAA"}}, {})
    assert place == "compose.archive"


# ------------------------------------------------------------------------------------------------- as people write them

WITH_FILES = """
apiVersion: v1
kind: Pod
metadata: {name: nginx-with-busybox}
spec:
  containers:
    - image: IMAGE
      name: frontend
      ports: [{containerPort: 80, hostPort: 80}]
      volumeMounts: [{mountPath: /etc/nginx, name: local, readOnly: true}]
    - command: [httpd, -f, -p, "8080", -h, /www]
      image: IMAGE
      name: backend
      volumeMounts: [{mountPath: /www, name: local, readOnly: true}]
  volumes:
    - {hostPath: {path: ./www, type: Directory}, name: local}
  restartpolicy: Always
"""


def test_a_pod_with_files_of_the_archive() -> None:
    files = {"pod.yml": WITH_FILES.replace("IMAGE", IMAGE).encode(), "www/index.html": b"x"}
    manifests, problems = play.read_play({"archive": write_archive(files)}, {})
    made = play.translate(manifests, {}, PLACES, problems)
    assert not problems and [each.name.rpartition("/")[2] for each in made.services] == [
        *("nginx-with-busybox", "frontend", "backend"),
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(pod_module._CONTAINER), VALUES, max_size=5),
    st.dictionaries(st.sampled_from(pod_module._POD), VALUES, max_size=5),
    st.booleans(),
)
@settings(max_examples=600, deadline=None)
def test_any_values_are_translated_or_refused_and_nothing_else(
    container: dict[str, Any], spec: dict[str, Any], is_open: bool
) -> None:
    env = Open({}) if is_open else {}
    manifests, problems = play.read_play({"templates": [pod(container, **spec)]}, env)
    made = play.translate(manifests, env, PLACES, problems)
    for each in made.services:
        assert all(isinstance(option, str) and option.startswith("--") for option in each.options)
        assert all(isinstance(word, str) and "\0" not in word for word in each.command + each.options)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_file_of_an_archive_is_read_or_refused(content: bytes) -> None:
    manifests, problems = play.read_play({"archive": write_archive({"a.yaml": content})}, {})
    play.translate(manifests, {}, PLACES, problems)
    assert isinstance(problems, Problems) and problems


def test_what_must_not_be_root_is_left_to_its_image_where_no_user_is_given() -> None:
    found = {each.name: each.not_root for each in translated(pod(securityContext={"runAsNonRoot": True})).services}
    assert list(found.values()).count(True) == 1, found
    with_user = pod({"securityContext": {"runAsUser": 5}}, securityContext={"runAsNonRoot": True})
    assert not any(each.not_root for each in translated(with_user).services)
