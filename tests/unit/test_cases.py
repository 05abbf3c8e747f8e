"""Each input that was handed over as an example has a test of its kind, with the right outcome.

The inputs stand beside the checkout, in ../shared/cases; some tests read them from there, others
make inputs of the same kind.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CASES = TESTS.parents[1] / "shared/cases"
TESTED = {
    "archive-member-twice": "unit/verifier/reference/test_image.py::test_what_tools_have_written",
    "attestation-without-annotations": (
        "unit/verifier/reference/test_image.py::test_what_tools_have_written"
    ),
    "containerd-nvidia-drop-in": (
        "unit/engines/test_engines.py::test_nvidias_drop_in_stays_as_it_is"
    ),
    "containerd-v4": "unit/engines/test_engines.py::test_containerds_version_4",
    "cosign-save-layout": "unit/verifier/reference/test_image.py::test_what_tools_have_written",
    "docker-buildkit-run": "unit/cli/test_configure.py::test_what_is_not_covered_is_said",
    "docker-daemon-bom": "unit/engines/test_engines.py::test_a_byte_order_mark",
    "docker-data-root": "vm/test_hosts_of_others.py::test_docker",
    "docker-default-runtime-flag": "unit/engines/test_engines.py::test_dockerds_own_flags",
    "ek-certificates": "unit/verifier/test_ek_certificate.py::test_recorded_requests",
    "ima-log-other-hash": "unit/ima/test_templates.py::test_recorded_logs_of_other_hashes",
    "ima-template-modsig": "unit/ima/test_templates.py::test_each_template_is_read",
    "image-archive-of-crane": "unit/verifier/reference/test_image.py::test_what_tools_have_written",
    "keylime-signed-policy": "unit/verifier/reference/test_keylime.py::test_a_signed_policy",
    "kubernetes-default-mounts": (
        "unit/verifier/test_engine_mounts.py::test_an_engine_wherever_it_keeps_its_things"
    ),
    "podman-append": "unit/engines/test_engines.py::test_podmans_appending_lists",
    "podman-metacopy": "unit/measure/test_metacopy.py::test_as_the_kernel_makes_it",
    "tpm-ek-only-high-range": ("integration/test_tpms.py::test_every_kind_of_key_is_enrolled"),
    "tpm-foreign-nv-index": "integration/test_tpms.py::test_foreign_index_costs_nothing",
    "variant-in-index-only": (
        "unit/verifier/reference/test_image.py::test_variants_as_containerd_takes_them"
    ),
}


def test_none_is_forgotten() -> None:
    if not CASES.is_dir():
        pytest.skip("no ../shared")
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == TESTED.keys()


@pytest.mark.parametrize("case", TESTED)
def test_there_is_such_a_test(case: str) -> None:
    file, _, name = TESTED[case].partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
