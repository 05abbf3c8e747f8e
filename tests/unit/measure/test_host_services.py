import hashlib
import os
import sys
from pathlib import Path

import pytest
from support import process_tree as tree

from cima_runc.ima.template import Func
from cima_runc.measure.file_digest import open_regular, sha256
from cima_runc.measure.host_services import (
    Finder,
    HostServiceError,
    Role,
    Service,
    own_code,
    start_ticks,
    walk,
)


def only(services: tuple[Service, ...], role: Role) -> Service:
    (found,) = (service for service in services if service.role == role)
    return found


def digest_of(service: Service) -> str:
    handle = open_regular(service.files[0].open_as)
    try:
        return sha256(handle)[0].hex()
    finally:
        os.close(handle)


def test_this_process() -> None:
    service = walk("agent", os.getpid(), own_code())
    assert service.path == os.fsencode(os.path.realpath(sys.executable))
    assert service.start_ticks == start_ticks(os.getpid())
    assert service.files[0].func == Func.BPRM_CHECK
    mapped = {file.path for file in service.files if file.func == Func.MMAP_CHECK}
    assert any(b"/libc.so" in path for path in mapped)
    assert service.path not in mapped
    read = {file.path for file in service.files if file.func == Func.FILE_CHECK}
    assert any(b"psutil" in path for path in read)
    assert all(file.identity is not None for file in service.files)


def test_a_process_that_is_gone() -> None:
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    with pytest.raises(HostServiceError):
        walk("ancestor", gone)
    with pytest.raises(HostServiceError):
        Finder().find(gone)


def test_containerd_and_dockerd_are_behind_a_docker_shim(tmp_path: Path) -> None:
    address = tmp_path / "containerd.sock"
    arguments = ("-namespace", "moby", "-address", str(address))
    dockerd = tree.program(tmp_path, "dockerd")
    with (
        tree.listening(address) as containerd,
        tree.running(dockerd, "read x", "--containerd", str(address)) as engine,
        tree.running(dockerd, "read x", "--containerd=/run/another.sock"),
        tree.container(tmp_path, "containerd-shim-runc-v2", *arguments) as box,
    ):
        chain = Finder().find(box.first)
    assert {missing.role for missing in chain.not_found} <= {"init"}
    assert only(chain.services, "runtime").path == bytes(tmp_path / "runc")
    assert only(chain.services, "shim").path == bytes(tmp_path / "containerd-shim-runc-v2")
    assert only(chain.services, "containerd").pid == containerd
    assert only(chain.services, "dockerd").pid == engine.pid
    assert only(chain.services, "agent").pid == os.getpid()
    assert os.getpid() in {s.pid for s in chain.services if s.role == "ancestor"}
    assert ("dockerd", bytes(dockerd)) in chain.key


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    arguments = ("-namespace", "moby", "-address", str(tmp_path / "none.sock"))
    with tree.container(tmp_path, "containerd-shim-runc-v2", *arguments) as box:
        chain = Finder().find(box.first)
    reasons = {missing.role: missing.reason for missing in chain.not_found}
    assert "no process listens on" in reasons["containerd"]
    assert "no dockerd" in reasons["dockerd"]
    assert ("containerd", b"") in chain.key


def test_a_shim_that_names_no_containerd(tmp_path: Path) -> None:
    with tree.container(tmp_path, "containerd-shim-runc-v2") as box:
        chain = Finder().find(box.first)
    assert {"containerd"} == {m.role for m in chain.not_found} - {"init"}


def test_a_restarted_containerd_is_found_again(tmp_path: Path) -> None:
    address = tmp_path / "containerd.sock"
    finder = Finder()
    with tree.container(tmp_path, "containerd-shim-runc-v2", f"-address={address}") as box:
        found = []
        for _ in range(2):
            with tree.listening(address) as containerd:
                for _ in range(2):
                    service = only(finder.find(box.first).services, "containerd")
                    assert service.pid == containerd
                found.append(containerd)
    assert found[0] != found[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
def test_a_containers_socket_of_the_same_name_is_none_of_containerds(tmp_path: Path) -> None:
    address = tmp_path / "containerd.sock"
    with (
        tree.listening(address, "unshare", "--pid", "--fork", "--kill-child"),
        tree.container(tmp_path, "containerd-shim-runc-v2", "-address", str(address)) as box,
    ):
        chain = Finder().find(box.first)
        assert "containerd" in {missing.role for missing in chain.not_found}
        address.rename(tmp_path / "hidden")
        with tree.listening(address) as containerd:
            assert only(Finder().find(box.first).services, "containerd").pid == containerd


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
@pytest.mark.parametrize(("wrapper", "uid"), [((), 4321), (("unshare", "--mount"), 0)])
def test_who_listens_on_a_name_of_containerds_is_not_it(
    wrapper: tuple[str, ...], uid: int, tmp_path: Path
) -> None:
    """A socket's name is one below the root of who made it: any user can have one of that name, and
    so can a container with the host's network and its numbers of processes."""
    address = tmp_path / "containerd.sock"
    arguments = ("-namespace", "moby", "-address", str(address))
    dockerd = tree.program(tmp_path, "dockerd")
    posing = ("--containerd", str(address)) if wrapper else ()
    with (
        tree.listening(address, *wrapper, uid=uid),
        tree.running(dockerd, "read x", *posing, wrapper=wrapper),
        tree.container(tmp_path, "containerd-shim-runc-v2", *arguments) as box,
    ):
        address.rename(tmp_path / "hidden")
        with (
            tree.listening(address) as containerd,
            tree.running(dockerd, "read x", "--containerd", str(address)) as engine,
        ):
            chain = Finder().find(box.first)
    assert only(chain.services, "containerd").pid == containerd
    assert only(chain.services, "dockerd").pid == engine.pid


def test_podman_is_behind_conmon(tmp_path: Path) -> None:
    podman = tree.program(tmp_path, "podman")
    with tree.container(tmp_path, "conmon", "--exit-command", str(podman)) as box:
        alone = only(Finder().find(box.first).services, "podman")
        assert [file.path for file in alone.files] == [bytes(podman)]
        with tree.running(podman, "read x") as process:
            running = only(Finder().find(box.first).services, "podman")
    assert running.pid == process.pid
    assert len(running.files) > 1
    assert running.files[0].identity == alone.files[0].identity


def test_a_replaced_program_is_the_one_that_runs(tmp_path: Path) -> None:
    with tree.container(tmp_path, "some-parent") as box:
        before = tree.replace(tmp_path / "runc")
        runc = only(Finder().find(box.first).services, "runtime")
        assert runc.path == bytes(tmp_path / "runc")
        assert digest_of(runc) == hashlib.sha256(before).hexdigest()
        assert digest_of(runc) != hashlib.sha256((tmp_path / "runc").read_bytes()).hexdigest()


def test_a_container_that_runs_has_no_runtime_any_more(tmp_path: Path) -> None:
    with tree.container(tmp_path, "some-parent") as box:
        chain = Finder().find(box.first, runs=True)
    assert "runtime" not in {service.role for service in chain.services}
