import pytest

from cima_runc.ima.template import Func
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import RecordError
from cima_runc.verifier.reference.host import files_of_services


def test_digests_by_path() -> None:
    partition = Partition("dependencies:1")
    records = [
        partition.add({"type": "register"}, {}),
        partition.add_file(b"\1" * 32, b"/bin/a\n\xff", 7, Func.BPRM_CHECK, {}),
        partition.add_file(b"\2" * 32, b"/bin/a\n\xff", 7, Func.MMAP_CHECK, {}),
        partition.add({"type": "unmeasured", "path_hex": "2f62", "digest": "03" * 32}, {}),
        partition.add({"type": "unmeasured", "path_hex": "2f63", "digest": None}, {}),
        partition.add({"type": "unmeasured", "path_hex": None, "digest": None}, {}),
        partition.add({"type": "service", "path_hex": "2f64", "digest": "04" * 32}, {}),
    ]
    assert files_of_services(records) == {
        b"/bin/a\n\xff": {b"\1" * 32, b"\2" * 32},
        b"/b": {b"\3" * 32},
    }
    assert files_of_services([]) == {}


def test_what_is_no_path() -> None:
    content = {"type": "unmeasured", "path_hex": "zz", "digest": "00"}
    with pytest.raises(RecordError):
        files_of_services([Partition("dependencies:1").add(content, {})])
