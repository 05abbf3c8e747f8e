"""Files of the host by the names that the kernel's log has for them."""

import pytest

from cima_runc.ima.template import Func
from cima_runc.measure.mtree import escape
from cima_runc.ml.contents import File, Measured
from cima_runc.verifier.kernel_line import HostFile
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import HostReference, format_reference, parse_reference
from cima_runc.verifier.rules.host_log import check_host_log
from cima_runc.verifier.rules.host_services import check_host_services
from cima_runc.verifier.steps.explained import HostLog

GOOD, OTHER = b"g" * 32, b"o" * 32
PATHS = [b"/opt/my app/bin/run it", b"/opt/a_b", b"/opt/a b", b"/opt/\xff \n", b"/usr/sbin/runc"]


def reference(**files: bytes) -> HostReference:
    named = {path.encode("latin-1"): digest for path, digest in files.items()}
    return HostReference(files={escape(path): (found.hex(),) for path, found in named.items()})


def of(path: bytes) -> HostReference:
    return reference(**{path.decode("latin-1"): GOOD})


def failed_in_log(path: bytes, digest: bytes, host: HostReference) -> set[str]:
    """Of a line as the kernel writes it, a space as an underscore."""
    name = path.replace(b" ", b"_")
    files = (HostFile("sha256", b"a" * 32, b"boot_aggregate"), HostFile("sha256", digest, name))
    log = HostLog("full", 2, "equal", 0, files, ())
    found = check_host_log(log, None, host, Policy())
    return {finding.rule for finding in found if finding.severity == "fail"}


def failed_in_records(path: bytes, digest: bytes, host: HostReference) -> set[str]:
    records = [Measured(0, File(digest, path, 7, Func.BPRM_CHECK))]
    found = check_host_services(records, host, Policy())
    return {finding.rule for finding in found if finding.severity == "fail"}


@pytest.mark.parametrize("path", PATHS)
def test_a_file_with_spaces_in_its_name(path: bytes) -> None:
    """Kind: two spellings of one name, the kernel's and the file system's."""
    host = of(path)
    assert parse_reference(format_reference(host)) == host
    assert failed_in_log(path, GOOD, host) == failed_in_records(path, GOOD, host) == set()
    assert failed_in_log(path, OTHER, host) == {"host.changed"}
    assert failed_in_records(path, OTHER, host) == {"dependency.changed"}


def test_values_from_a_log_of_the_kernels() -> None:
    """As Keylime's policies have them."""
    host = of(b"/opt/my_app")
    assert failed_in_records(b"/opt/my app", GOOD, host) == set()
    assert failed_in_records(b"/opt/my app", OTHER, host) == {"dependency.changed"}


def test_two_files_of_one_name() -> None:
    host = reference(**{"/opt/a b": GOOD, "/opt/a_b": OTHER})
    for digest in (GOOD, OTHER):
        assert failed_in_log(b"/opt/a b", digest, host) == set()
    assert failed_in_log(b"/opt/a b", b"x" * 32, host) == {"host.changed"}
    # What the agent names by its path is the one and not the other.
    assert failed_in_records(b"/opt/a b", OTHER, host) == {"dependency.changed"}
    assert failed_in_records(b"/opt/a_b", GOOD, host) == {"dependency.changed"}


@pytest.mark.parametrize("path", PATHS)
def test_no_other_content_is_let_in_by_what_a_finding_offers(path: bytes) -> None:
    """Kind: a key is wider than what it was offered for."""
    files = (HostFile("sha256", b"a" * 32, b"boot_aggregate"), HostFile("sha256", OTHER, path))
    log = HostLog("full", 2, "equal", 0, files, ())
    records = [Measured(0, File(OTHER, path, 7, Func.BPRM_CHECK))]
    for found in (
        check_host_log(log, None, of(path), Policy()),
        check_host_services(records, of(path), Policy()),
    ):
        hints = [one.next for one in found if one.severity == "fail"]
        for hint in hints:
            keys = hint.partition("[[dependencies.files]] ")[2].replace(", sha256", "\nsha256")
            (allowed,) = parse_policy(f"[[dependencies.files]]\n{keys}".encode()).dependencies.files
            assert allowed.allows(path, OTHER)
            assert not allowed.allows(path, b"x" * 32)
    weak = (files[0], HostFile("sha1", b"s" * 20, path))
    (finding,) = check_host_log(HostLog("full", 2, "equal", 0, weak, ()), None, of(path), Policy())
    assert "policy" not in finding.next  # which compares SHA-256
