import hashlib

import pytest

from cima_runc.cpcr.bind import NO_ROOT, Bind, bind_digest
from cima_runc.cpcr.register import extend


def test_digest() -> None:
    made = bind_digest(b"s" * 32, b"h" * 32, b"r" * 32)
    text = b"cima-bind-v2\0" + b"s" * 32 + b"h" * 32 + b"r" * 32
    assert made == hashlib.sha256(text).digest()
    with pytest.raises(ValueError, match="32"):
        bind_digest(b"s" * 31, b"h" * 33, NO_ROOT)


def test_without_a_veil_the_history_is_what_was_before() -> None:
    bind = Bind(b"b" * 32, b"d" * 32)
    assert bind.history == bind.before
    assert bind.expected == extend(b"b" * 32, b"d" * 32)


def test_with_a_veil() -> None:
    bind = Bind(b"b" * 32, b"d" * 32, b"v" * 32)
    assert bind.history == hashlib.sha256(b"b" * 32 + b"v" * 32).digest()
    assert bind.expected == hashlib.sha256(bind.history + b"d" * 32).digest()
