"""Mounts that engines make are known by what they are for this engine, on this host, for this
container: wherever the host keeps them, and nothing else.

The hosts are those of the case kubernetes-default-mounts, with what the agent measures there.
"""

import copy
import json
import posixpath
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.verifier.appraised import Box, image

from cima_runc.measure.config_summary import summarize
from cima_runc.ml.contents import Engine, ShapeError
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import ImageReference
from cima_runc.verifier.rules.mounts import EngineMounts
from cima_runc.verifier.suggest import suggest

ID = "c" * 64
OTHER = "d" * 64
SANDBOX = "e" * 64
CLAIM = "pvc-44444444-2222-3333-4444-555555555555"
POD = "11111111-2222-3333-4444-555555555555"
CONTAINERD = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-id": SANDBOX,
    "io.kubernetes.cri.sandbox-uid": POD,
    "io.kubernetes.cri.container-name": "app",
}
CRIO = {
    "io.kubernetes.cri-o.SandboxID": SANDBOX,
    "io.kubernetes.pod.uid": POD,
    "io.kubernetes.container.name": "app",
}


def bind(destination: str, source: str) -> dict[str, Any]:
    options = ["rbind", "rprivate"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def docker(root: str) -> list[dict[str, Any]]:
    own = f"{root}/containers/{ID}"
    return [
        bind("/etc/resolv.conf", f"{own}/resolv.conf"),
        bind("/etc/hostname", f"{own}/hostname"),
        bind("/etc/hosts", f"{own}/hosts"),
        bind("/dev/shm", f"{own}/mounts/shm"),
        bind("/run/secrets/token", f"{own}/mounts/secrets/abc"),
        bind("/cnf", f"{own}/mounts/secrets/def"),
    ]


def podman(data: str, state: str) -> list[dict[str, Any]]:
    kept = f"{data}/overlay-containers/{ID}/userdata"
    own = f"{state}/overlay-containers/{ID}/userdata"
    return [
        bind("/etc/resolv.conf", f"{own}/resolv.conf"),
        bind("/etc/hosts", f"{own}/hosts"),
        bind("/etc/hostname", f"{own}/hostname"),
        bind("/etc/localtime", f"{own}/localtime"),
        bind("/run/.containerenv", f"{own}/.containerenv"),
        bind("/dev/shm", f"{kept}/shm"),
        bind("/run/secrets", f"{own}/run/secrets"),
        bind("/run/secrets/token", f"{kept}/secrets/token"),
        bind("/run/notify", f"{kept}/notify"),
    ]


def pod(kubelet: str) -> list[dict[str, Any]]:
    own = f"{kubelet}/pods/{POD}"
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    return [
        bind("/etc/hosts", f"{own}/etc-hosts"),
        bind("/dev/termination-log", f"{own}/containers/app/0a1b2c3d"),
        bind(account, f"{own}/volumes/kubernetes.io~projected/kube-api-access-abcde"),
        bind("/etc/podinfo", f"{own}/volumes/kubernetes.io~downward-api/podinfo"),
        bind("/projected-volume", f"{own}/volumes/kubernetes.io~projected/all-in-one"),
    ]


def cri(data: str, state: str, kubelet: str) -> list[dict[str, Any]]:
    place = f"io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}"
    return [
        *pod(kubelet),
        bind("/etc/hostname", f"{data}/{place}/hostname"),
        bind("/etc/resolv.conf", f"{data}/{place}/resolv.conf"),
        bind("/dev/shm", f"{state}/{place}/shm"),
    ]


def crio(state: str, kubelet: str) -> list[dict[str, Any]]:
    own = f"{state}/overlay-containers/{SANDBOX}/userdata"
    return [
        *pod(kubelet),
        bind("/etc/hostname", f"{own}/hostname"),
        bind("/etc/resolv.conf", f"{own}/resolv.conf"),
        bind("/dev/shm", f"{own}/shm"),
        bind("/run/.containerenv", f"{own}/.containerenv"),
        bind("/run/secrets", f"{state}/overlay-containers/{ID}/userdata/run/secrets"),
        bind("/etc/passwd", f"{state}/overlay-containers/{ID}/userdata/passwd"),
        bind("/etc/group", f"{state}/overlay-containers/{ID}/userdata/group"),
        bind("/etc/localtime", f"{state}/overlay-containers/{ID}/userdata/localtime"),
    ]


def nerdctl() -> list[dict[str, Any]]:
    own = f"/var/lib/nerdctl/1935db59/containers/default/{ID}"
    return [
        bind("/etc/hosts", f"/var/lib/nerdctl/1935db59/etchosts/default/{ID}/hosts"),
        bind("/etc/hostname", f"{own}/hostname"),
        bind("/etc/resolv.conf", f"{own}/resolv.conf"),
    ]


@dataclass(frozen=True)
class Host:
    """An engine as it is set up, and what it mounts into each container."""

    engine: Engine
    mounts: list[dict[str, Any]]
    annotations: dict[str, str]


def of_docker(root: str) -> Host:
    return Host(Engine(name="docker", roots=(root,)), docker(root), {})


def of_podman(data: str, state: str) -> Host:
    engine = Engine(name="podman", roots=(data,), states=(state,))
    return Host(engine, podman(data, state), {})


def of_containerd(data: str, state: str, kubelet: str) -> Host:
    engine = Engine(
        name="containerd", cri=True, roots=(data,), states=(state,), kubelets=(kubelet,)
    )
    return Host(engine, cri(data, state, kubelet), CONTAINERD)


def of_crio(state: str, kubelet: str) -> Host:
    engine = Engine(name="cri-o", cri=True, states=(state,), kubelets=(kubelet,))
    return Host(engine, crio(state, kubelet), CRIO)


HOSTS = {
    "docker": of_docker("/var/lib/docker"),
    "docker data-root": of_docker("/srv/docker"),
    "docker userns-remap": of_docker("/var/lib/docker/165536.165536"),
    "docker snap": of_docker("/var/snap/docker/common/var-lib-docker"),
    "docker rootless": of_docker("/home/user/.local/share/docker"),
    "docker with a star": of_docker("/srv/*/docker\\x41"),
    "kubernetes": of_containerd("/var/lib/containerd", "/run/containerd", "/var/lib/kubelet"),
    "k3s": of_containerd(
        "/var/lib/rancher/k3s/agent/containerd", "/run/k3s/containerd", "/var/lib/kubelet"
    ),
    "microk8s": of_containerd(
        "/var/snap/microk8s/common/var/lib/containerd",
        "/var/snap/microk8s/common/run/containerd",
        "/var/snap/microk8s/common/var/lib/kubelet",
    ),
    "k0s": of_containerd("/var/lib/k0s/containerd", "/run/k0s/containerd", "/var/lib/k0s/kubelet"),
    "podman": of_podman("/var/lib/containers/storage", "/run/containers/storage"),
    "podman elsewhere": of_podman("/srv/containers", "/run/elsewhere"),
    "podman rootless": of_podman(
        "/home/user/.local/share/containers/storage", "/run/user/1000/containers"
    ),
    "cri-o": of_crio("/run/containers/storage", "/var/lib/kubelet"),
    "nerdctl": Host(
        Engine(name="containerd", roots=("/var/lib/containerd",), states=("/run/containerd",)),
        nerdctl(),
        {},
    ),
}


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


def box_on(host: Host, reference: ImageReference, *more: dict[str, Any]) -> Box:
    box = Box.honest(reference)
    box.register = {"id": ID, "engine": host.engine.model_dump(mode="json")}
    box.config["annotations"] = dict(host.annotations)
    mounts = [each for each in box.config["mounts"] if each["type"] != "bind"]
    box.config["mounts"] = [*mounts, *copy.deepcopy(host.mounts), *more]
    return box


def refused(box: Box, policy: str = "") -> set[str]:
    return {each.path for each in box.failed(policy) if each.rule == "config.mount"}


ALL = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


@ALL
def test_an_engine_wherever_it_keeps_its_things(host: Host, reference: ImageReference) -> None:
    box = box_on(host, reference)
    assert box.failed() == []
    assert box.appraise().verdict == Verdict.TRUSTED
    text = suggest(box.records(), References(reference))
    assert parse_policy(text.encode()) == Policy()


@ALL
def test_the_same_paths_on_a_host_that_keeps_its_things_elsewhere(
    host: Host, reference: ImageReference
) -> None:
    """What a container's owner calls an engine's directory is none."""
    for other in HOSTS.values():
        where = {*other.engine.roots, *other.engine.states, *other.engine.kubelets}
        stranger = Host(other.engine, host.mounts, host.annotations)
        if other.engine.name == "containerd":
            where.add("/var/lib/nerdctl")
        shown = {
            each["destination"]
            for each in host.mounts
            if not any(each["source"].startswith(f"{directory}/") for directory in where)
        }
        assert shown <= refused(box_on(stranger, reference))
    by_hand = Host(Engine(name=None), host.mounts, host.annotations)
    assert refused(box_on(by_hand, reference)) == {each["destination"] for each in host.mounts}


def changed_sources(source: str) -> list[str]:
    """What the container's owner could name in place of a path of the engine's."""
    directory, name = posixpath.split(source)
    return [
        *(source.replace(own, OTHER) for own in (ID, SANDBOX) if own in source),
        *([source.replace(POD, POD.replace("1", "9"))] if POD in source else []),
        f"{directory}/../{posixpath.basename(directory)}/{name}",
        f"{directory}/./{name}",
        f"{directory}//{name}",
        f"{source}/",
        f"{source}/..",
        f"{source}/../../../../etc/shadow",
        f"/proc/self/root{source}",
        f"{directory}\n/{name}",
        f"{directory}/",
        f"{directory}/.",
        f"{source}x/y",
        f"{directory}/../../{OTHER}/{name}",
        directory,
        f"/mnt{source}",
        source.upper(),
    ]


def test_what_podman_mounts_for_a_systemd(reference: ImageReference) -> None:
    """They are empty: nothing that runs can come from there."""
    host = HOSTS["podman"]
    empty = {"type": "tmpfs", "source": "tmpfs", "options": ["rw", "nosuid", "nodev"]}
    places = ("/run", "/run/lock", "/tmp", "/var/log/journal", "/var/lib/journal")
    mounts = [empty | {"destination": place} for place in places]
    assert refused(box_on(replace(host, mounts=[*host.mounts, *mounts]), reference)) == set()
    mounts = [bind("/var/log/journal", "/srv/x"), empty | {"destination": "/usr/bin"}]
    found = box_on(replace(host, mounts=[*host.mounts, *mounts]), reference)
    assert refused(found) == {"/var/log/journal", "/usr/bin"}


def test_nothing_looks_for_code_in_what_an_earlier_run_left(reference: ImageReference) -> None:
    """Podman makes a container's /run/notify once, and keeps what is written there."""
    box = box_on(HOSTS["podman"], reference)
    for cwd in ("/run", "/run/notify", "/run/notify/x"):
        box.config["process"]["cwd"] = cwd
        assert "/run/notify" in refused(box), cwd
    box.config["process"]["cwd"] = "/"
    assert refused(box) == set()


@ALL
def test_nothing_beside_an_engines_own_path(host: Host, reference: ImageReference) -> None:
    for mount in host.mounts:
        for source in changed_sources(mount["source"]):
            if source == mount["source"]:
                continue
            found = box_on(host, reference)
            found.config["mounts"] = [
                each | {"source": source} if each["destination"] == mount["destination"] else each
                for each in found.config["mounts"]
            ]
            assert mount["destination"] in refused(found), source


@ALL
def test_no_other_place_for_an_engines_file(host: Host, reference: ImageReference) -> None:
    """Its source may be as it is: what it would replace in the container counts too."""
    for place in ("/etc/ld.so.preload", "/usr/bin/sh", "/app", "/bin", "/", "/app/script", "/lib"):
        for mount in host.mounts:
            found = box_on(host, reference, mount | {"destination": place})
            assert place in refused(found), (place, mount["source"])


@pytest.mark.parametrize(
    "host",
    # nerdctl's have a name of their host's and of a namespace in them, which are not measured.
    (named := {key: host for key, host in HOSTS.items() if key != "nerdctl"}).values(),
    ids=named,
)
@given(data=st.data())
def test_any_other_source_is_refused(host: Host, data: st.DataObject) -> None:
    """Parts of the engine's own paths in another order are no path of the engine's."""
    parts = sorted({part for each in host.mounts for part in each["source"].split("/") if part})
    source = "/" + "/".join(data.draw(st.lists(st.sampled_from([*parts, "..", "*", "**"]))))
    destination = data.draw(st.sampled_from([each["destination"] for each in host.mounts]))
    honest = {(each["destination"], each["source"]) for each in host.mounts}
    config = {"annotations": host.annotations, "mounts": [bind(destination, source)]}
    summary = summarize(config)
    register = {"id": ID, "engine": host.engine.model_dump(mode="json")}
    makes = EngineMounts(register, summary).makes(summary.mounts[0])
    last = posixpath.basename(source)
    if "containers/app/" in source and destination == "/dev/termination-log":
        assert makes is (posixpath.dirname(source) in {posixpath.dirname(s) for _, s in honest})
    else:
        assert not makes or (destination, source) in honest, last


@ALL
def test_a_symbolic_link_in_place_of_an_engines_file(host: Host, reference: ImageReference) -> None:
    engine = host.engine.model_copy(update={"redirected": ("/etc/hosts",)})
    linked = Host(engine, host.mounts, host.annotations)
    assert refused(box_on(linked, reference)) == {"/etc/hosts"}


def test_the_files_of_a_container_whose_namespaces_it_shares(reference: ImageReference) -> None:
    host = HOSTS["podman"]
    mounts = [each | {"source": each["source"].replace(ID, OTHER)} for each in host.mounts[:2]]
    joined = Host(host.engine.model_copy(update={"shares": (OTHER,)}), mounts, {})
    assert box_on(joined, reference).failed() == []
    assert len(refused(box_on(Host(host.engine, mounts, {}), reference))) == 2


def test_containerd_that_does_not_tell_the_pods_uid(reference: ImageReference) -> None:
    """containerd 1.6: all that is kubelet's must then be of one pod."""
    host = HOSTS["kubernetes"]
    annotations = {key: value for key, value in CONTAINERD.items() if not key.endswith("-uid")}
    old = Host(host.engine, host.mounts, annotations)
    assert box_on(old, reference).failed() == []
    foreign = bind("/data", host.mounts[0]["source"].replace("1111", "9999"))
    assert "/etc/hosts" in refused(box_on(old, reference, foreign))


def test_an_engine_that_cannot_be_read_is_refused(reference: ImageReference) -> None:
    host = HOSTS["docker"]
    for wrong in ({}, {"name": "docker"} | {"more": 1}, "docker", {"roots": "/var/lib/docker"}, []):
        box = box_on(host, reference)
        box.register["engine"] = wrong
        with pytest.raises(ShapeError, match="engine"):
            refused(box)


def test_mounts_from_the_host_in_version_1(reference: ImageReference) -> None:
    box = Box.honest(reference)
    box.config["mounts"] += [bind("/data", "/srv/data"), bind("/dev/shm", "/run/docker/../../etc")]
    assert refused(box) == {"/data", "/dev/shm"}


# -- the next container of the same kind -----------------------------------------------------------


def the_next(text: str) -> str:
    """The same of another container: it has other ids."""
    return (
        text.replace(ID, "1" * 64)
        .replace(SANDBOX, "2" * 64)
        .replace(POD, "99999999-2222-3333-4444-555555555555")
        .replace("0a1b2c3d", "99aabbcc")
        .replace("abcde", "vwxyz")
        .replace(WRITTEN, WRITTEN.replace("2024", "2025"))
        .replace(CLAIM, CLAIM.replace("4", "7"))
    )


VOLUMES = f"/var/lib/kubelet/pods/{POD}/volumes"
WRITTEN = "..2024_01_31_10_20_30.1234567890"
EXTRA = {
    "docker": [
        bind("/data", f"/var/lib/docker/volumes/{'a' * 64}/_data"),
        bind("/usr/share", f"/var/lib/docker/containers/{ID}/mounts/secrets/x"),
        # A pod of cri-dockerd's.
        bind("/opt/token", f"{VOLUMES}/kubernetes.io~projected/kube-api-access-abcde"),
        bind("/dev/termination-log", f"/var/lib/kubelet/pods/{POD}/containers/app/0a1b2c3d"),
    ],
    "podman elsewhere": [bind("/data", f"/srv/containers/volumes/{'b' * 64}/_data")],
    "kubernetes": [
        bind("/cache", f"/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~empty-dir/cache"),
        bind("/usr/end", f"/var/lib/kubelet/pods/{POD}/containers/app/0a1b2c3d"),
        bind("/db", f"/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/{CLAIM}/mount"),
        bind("/etc/app.conf", f"{VOLUMES}/kubernetes.io~configmap/conf/{WRITTEN}/app.conf"),
        bind("/sub", f"/var/lib/kubelet/pods/{POD}/volume-subpaths/{CLAIM}/app/0"),
        bind(
            "/opt/token",
            f"/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~projected/kube-api-access-abcde",
        ),
    ],
    "k0s": [bind("/data*", f"/srv/of {ID}/it's")],
    "k3s": [
        bind("/db", f"/var/lib/rancher/k3s/storage/{CLAIM}_shop_db-0"),
        bind(
            "/models",
            f"/run/k3s/containerd/io.containerd.grpc.v1.cri/image-volumes/{SANDBOX}/{'f' * 64}",
        ),
    ],
    "nerdctl": [bind("/data", f"/var/lib/nerdctl/1935db59/volumes/default/{'a' * 64}/_data")],
}


@pytest.mark.parametrize("name", EXTRA)
def test_a_policy_serves_the_next_container_too(name: str, reference: ImageReference) -> None:
    box = box_on(HOSTS[name], reference, *EXTRA[name])
    assert len(refused(box)) == len(EXTRA[name])
    text = suggest(box.records(), References(reference))
    hints = " ".join(each.next for each in box.failed())
    for unique in (ID, SANDBOX, POD, CLAIM, WRITTEN, "a" * 64, "b" * 64, "abcde'", "0a1b2c3d"):
        assert unique not in text, text
        assert unique not in hints, hints
    assert box.failed(text) == []
    following = box_on(HOSTS[name], reference)
    following.register = json.loads(the_next(json.dumps(box.register)))
    following.config = json.loads(the_next(json.dumps(box.config)))
    assert following.failed(text) == []
    following.config["mounts"].append(bind("/more", "/srv/more"))
    assert refused(following, text) == {"/more"}


def started(host: str, reference: ImageReference, **process: Any) -> Box:
    box = box_on(HOSTS[host], reference)
    box.config["process"] |= process
    return box


def test_a_user_that_openshift_chose(reference: ImageReference) -> None:
    user = {"uid": 1000660000, "gid": 0, "additionalGids": [0, 1000660000]}
    line = "[config]\nusers = ['1000660000:0']\n"
    box = started("cri-o", reference, user=user)
    assert [each.rule for each in box.failed()] == ["config.user"]
    assert line.splitlines()[1] in suggest(box.records(), References(reference))
    assert box.failed(line) == []
    for change in ({"uid": 1000660001}, {"gid": 1000660000}, {"uid": 1000}):
        found = started("cri-o", reference, user=user | change).failed(line)
        assert [each.rule for each in found] == ["config.user"], change


def in_a_user_namespace(reference: ImageReference, sys: dict[str, Any]) -> Box:
    """A container of a Podman pod with --userns=auto."""
    box = box_on(HOSTS["podman"], reference, sys)
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "/sys/fs/cgroup"}
    box.config["mounts"].append(cgroup)
    joined = ("network", "ipc", "uts", "user")
    own = [{"type": each, "path": f"/proc/77/ns/{each}"} for each in joined]
    box.config["linux"]["namespaces"] = [*own, {"type": "mount"}, {"type": "pid"}]
    del box.config["linux"]["resources"]
    box.namespaces = {**box.namespaces, "user": 4026533333}
    return box


def test_the_hosts_sys_in_a_pods_user_namespace(reference: ImageReference) -> None:
    sys = bind("/sys", "/sys")
    sys["options"] = ["rprivate", "nosuid", "noexec", "nodev", "ro", "rbind"]
    box = in_a_user_namespace(reference, sys)
    assert [each.path for each in box.failed()] == ["/sys"]
    line = "{destination = '/sys', source = '/sys', read_only = true}"
    assert line in suggest(box.records(), References(reference))
    line = f"[config]\nmounts = [{line}]\n"
    assert box.failed(line) == []
    writable = [each for each in sys["options"] if each != "ro"]
    for change in (
        {"options": writable},
        {"options": [*sys["options"], "rw"]},
        {"source": "/srv/sys"},
        {"source": "/"},
        {"destination": "/app"},
    ):
        assert refused(in_a_user_namespace(reference, sys | change), line)


# -- what is honest, at other places ---------------------------------------------------------------


LOG = f"/var/lib/kubelet/pods/{POD}/containers/app/0a1b2c3d"


@pytest.mark.parametrize("name", ["kubernetes", "cri-o"])
def test_a_termination_message_elsewhere(name: str, reference: ImageReference) -> None:
    """A new, empty file of kubelet's counts where it hides nothing and nothing looks for code."""
    for place in ("/tmp/my-log", "/var/log/app/end", "/var/tmp/x", "/termination-info"):
        assert refused(box_on(HOSTS[name], reference, bind(place, LOG))) == set(), place
    hiding = ("/app/script", "/etc/ld.so.preload", "/dev/urandom", "/app/x.py", "/email", "/tmp/..")
    for place in hiding:
        assert refused(box_on(HOSTS[name], reference, bind(place, LOG))) == {place}
    foreign = LOG.replace("/app/", "/other/")
    assert refused(box_on(HOSTS[name], reference, bind("/tmp/x", foreign))) == {"/tmp/x"}
    configmap = f"{VOLUMES}/kubernetes.io~configmap/x"
    assert refused(box_on(HOSTS[name], reference, bind("/tmp/x", configmap))) == {"/tmp/x"}
    box = box_on(HOSTS[name], reference, bind("/tmp/app/my-log", LOG))
    box.config["process"]["cwd"] = "/tmp/app"
    assert "/tmp/app/my-log" in refused(box)
    box.config["process"]["cwd"] = "/"
    own = reference.files["/app/script"]
    files = {**reference.files, "/tmp/app/my-log": own}
    box.image = reference.model_copy(update={"files": files})
    assert "/tmp/app/my-log" in refused(box)


def linked(reference: ImageReference, **links: str) -> ImageReference:
    link = next(file for file in reference.files.values() if file.type == "link")
    more = {f"/{at}": link.model_copy(update={"link": to}) for at, to in links.items()}
    return reference.model_copy(update={"files": {**reference.files, **more}})


def test_an_empty_place_by_another_name(reference: ImageReference) -> None:
    """Kind: a path as configured is compared with a path as it is. /var/run is /run."""
    empty = {"type": "tmpfs", "source": "tmpfs", "destination": "/var/run"}
    host = HOSTS["docker"]
    directory = next(file for file in reference.files.values() if file.type == "dir")
    files = {**reference.files, "/var": directory}
    image_ = reference.model_copy(update={"files": files})
    assert refused(box_on(host, linked(image_, **{"var/run": "../run"}), empty)) == set()
    assert refused(box_on(host, image_, empty)) == {"/var/run"}
    assert refused(box_on(host, linked(image_, **{"var/run": "/app"}), empty)) == {"/var/run"}
    other_way = linked(image_, run="/var/run")
    assert refused(box_on(host, other_way, empty)) == set()
    assert refused(box_on(host, other_way, empty | {"destination": "/run"})) == set()
    assert refused(box_on(host, other_way, bind("/var/run", "/srv"))) == {"/var/run"}
    up = empty | {"destination": "/var/run/../tmp"}
    assert refused(box_on(host, image_, up)) == {"/var/run/../tmp"}


FIPS = "/usr/share/crypto-policies/back-ends/FIPS"
ROOT = "/var/lib/containers/storage/overlay/aa/merged"


def on_fips(name: str, reference: ImageReference) -> Box:
    state = HOSTS[name].engine.states[0]
    userdata = f"{state}/overlay-containers/{ID}/userdata"
    box = box_on(
        HOSTS[name],
        reference,
        bind("/etc/crypto-policies/back-ends", ROOT + FIPS),
        bind("/etc/crypto-policies/config", f"{userdata}/fips-config"),
    )
    box.config["root"] = {"path": ROOT}
    return box


def with_policies(reference: ImageReference) -> ImageReference:
    directory = next(file for file in reference.files.values() if file.type == "dir")
    parts = FIPS.split("/")
    more = {"/".join(parts[:at]): directory for at in range(2, len(parts) + 1)}
    own = reference.files["/usr/lib/lib.so"]
    more |= {f"{FIPS}/x.config": own, "/etc/crypto-policies/back-ends/x.config": own}
    return reference.model_copy(update={"files": {**reference.files, **more}})


@pytest.mark.parametrize("name", ["podman", "podman rootless", "cri-o"])
def test_a_host_in_fips_mode(name: str, reference: ImageReference) -> None:
    """What is bound there is the image's own, out of the root filesystem that was measured."""
    both = {"/etc/crypto-policies/back-ends", "/etc/crypto-policies/config"}
    image_ = with_policies(reference)
    assert refused(on_fips(name, image_)) == set()
    box = on_fips(name, image_)
    box.config["mounts"][-2] = bind(
        "/etc/crypto-policies/config", f"{ROOT}/usr/share/crypto-policies/default-fips-config"
    )
    own = reference.files["/usr/lib/lib.so"]
    policy = {"/usr/share/crypto-policies/default-fips-config": own}
    box.image = image_.model_copy(update={"files": {**image_.files, **policy}})
    assert refused(box) == set()
    for root in ("/srv/x/merged", "rootfs", "/", ROOT + "/", f"{ROOT}/../merged"):
        box = on_fips(name, image_)
        box.config["root"] = {"path": root}
        assert refused(box) == {"/etc/crypto-policies/back-ends"}, root
    # Where the image has a link, something else of the host's could be bound.
    assert refused(on_fips(name, reference)) == {"/etc/crypto-policies/back-ends"}
    for at in (FIPS, "/usr/share"):
        by_link = linked(image_, **{at.lstrip("/"): "/srv"})
        assert refused(on_fips(name, by_link)) == {"/etc/crypto-policies/back-ends"}, at
    box = on_fips(name, image_)
    box.register["engine"] = HOSTS["docker"].engine.model_dump(mode="json")
    assert both <= refused(box)


REFUSED = {
    "volume": ("docker", "/data", f"/var/lib/docker/volumes/{'a' * 64}/_data", "a volume"),
    "of podman's": (
        "podman rootless",
        "/data",
        "/home/user/.local/share/containers/storage/volumes/x/_data",
        "a volume",
    ),
    "of the image's, with containerd": (
        "kubernetes",
        "/data",
        f"/var/lib/containerd/io.containerd.grpc.v1.cri/containers/{ID}/volumes/{'b' * 64}",
        "a volume",
    ),
    "of nerdctl's": (
        "nerdctl",
        "/data",
        "/var/lib/nerdctl/1935db59/volumes/default/x/_data",
        "a volume",
    ),
    "emptyDir": ("cri-o", "/cache", f"{VOLUMES}/kubernetes.io~empty-dir/cache", "a volume"),
    "subPath": (
        "kubernetes",
        "/run/secrets/x",
        f"/var/lib/kubelet/pods/{POD}/volume-subpaths/conf/app/0",
        "a volume",
    ),
    "podman --read-only": (
        "podman",
        "/etc/passwd",
        f"/var/lib/containers/storage/overlay-containers/{ID}/userdata/passwd",
        "--passwd-entry",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_intention_says_why(name: str, reference: ImageReference) -> None:
    on, at, source, why = REFUSED[name]
    (found,) = box_on(HOSTS[on], reference, bind(at, source)).failed()
    assert why in found.what and "[config] mounts = [" in found.next
