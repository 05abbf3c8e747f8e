from cima_runc.agent.index import Container, Index
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote


def container(registration: int, **changes: object) -> Container:
    fields = {
        "registration": registration,
        "id": f"box{registration}",
        "boot_id": "boot",
        "mntns": 100 + registration,
        "cgroup": "/",
        "pid": 3,
        "start_ticks": 4,
        "bundle": "/b",
        "started": "now",
        "state": "created",
    }
    note = ContainerNote.model_validate({**fields, **changes})
    return Container(note, bytes(32), Partition(note.id))


def test_the_latest_of_an_id_is_the_last_that_was_registered() -> None:
    index = Index()
    for registration in (9, 3, 5):
        index.add(container(registration, id="same", bundle=f"/{registration}"))
    index.update(3, state="stopped")
    index.update(9, state="stopped")
    latest = index.ids.latest("same")
    assert latest is not None and latest.number == 5
    index.remove(5)
    latest = index.ids.latest("same")
    assert latest is not None and latest.number == 3


def test_what_ended_is_found_in_the_order_of_the_ends() -> None:
    index = Index()
    for registration in (1, 2, 3):
        index.add(container(registration))
    for registration in (2, 1):
        index.update(registration, state="stopped")
    assert [one.number for one in index.states.all("stopped")] == [2, 1]
    assert index.living.latest(("box1", "/b")) is None
    assert index.namespaces.latest(102) is None
    assert index.namespaces.latest(103) is index[3]


def test_services_have_no_namespace_of_their_own() -> None:
    index = Index()
    index.add(container(1, kind="dependencies"))
    assert index.namespaces.latest(101) is None
