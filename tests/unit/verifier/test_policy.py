from typing import get_args

import pytest

from cima_runc.ml.contents import ViolationKind
from cima_runc.verifier.policy import Policy, PolicyError, parse_policy


def test_defaults() -> None:
    assert parse_policy(b"") == Policy()
    assert Policy().selection("none") == (*range(10), 12, 14)
    assert Policy().selection("redacted") == (*range(11), 12, 14)


def test_all_keys() -> None:
    text = """
boot_pcrs = [0, 7]
binding_pcr = 13
host_pcr = 10
require_safe_clock = false
allow_lost = true
allow_violations = true
allow_missing = ["ima"]
allow_foreign_extends = false
[pcr_values]
7 = ["%s"]
"""
    policy = parse_policy((text % ("ab" * 32)).encode())
    assert policy.selection("full") == (0, 7, 10, 13)
    assert policy.pcr_values == {"7": (b"\xab" * 32,)}


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "unknown = 1",
        "boot_pcrs = []",
        "boot_pcrs = [24]",
        "boot_pcrs = [12]",
        "binding_pcr = 16",
        "binding_pcr = 23",
        "binding_pcr = 10",
        'binding_pcr = "12"',
        "allow_lost = 1",
        '[pcr_values]\n7 = ["ab"]',
        "\udcff",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(text.encode("utf-8", "surrogateescape"))


def test_a_byte_order_mark_says_nothing() -> None:
    assert parse_policy(b"\xef\xbb\xbfallow_lost = true\r\n") == Policy(allow_lost=True)


def test_kinds_of_violations() -> None:
    every = set(get_args(ViolationKind))
    for text, allowed in (
        ("true", every),
        ("false", set()),
        ("['guard']", {"guard"}),
        ("[]", set()),
    ):
        policy = parse_policy(f"allow_violations = {text}".encode())
        assert {kind for kind in every if policy.allows_violation(kind)} == allowed
    for text, said in (("['gard']", "'guard'"), ("'guard'", "not a list"), ("1", "not a list")):
        with pytest.raises(PolicyError, match=said):
            parse_policy(f"allow_violations = {text}".encode())
