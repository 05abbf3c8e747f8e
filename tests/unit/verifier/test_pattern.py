import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.verifier.pattern import PatternError, compile_pattern, exactly, matches

paths = st.binary(max_size=40).map(lambda raw: b"/" + raw) | st.binary(min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("pattern", "path", "does"),
    [
        ("/bin/sh", b"/bin/sh", True),
        ("/bin/sh", b"/bin/sh2", False),
        ("/bin/sh", b"/x/bin/sh", False),
        ("/bin/*", b"/bin/sh", True),
        ("/bin/*", b"/bin/a/b", False),
        ("/bin/*", b"/bin/a\nb", True),
        ("/opt/**", b"/opt/a/b", True),
        ("/opt/**.so", b"/opt/a\n/b.so", True),
        ("/opt/**.so", b"/opt/a/bXso", False),
        ("**", b"memfd:x", True),
        (r"/a\*", b"/a*", True),
        (r"/a\*", b"/ab", False),
        (r"/a\\b", b"/a\\b", True),
        (r"/a\xff", b"/a\xff", True),
        ("/é", "/é".encode(), True),
        ("/a.[b]?+", b"/a.[b]?+", True),
        ("/a.b", b"/axb", False),
        (r"\x6bexec-cmdline", b"kexec-cmdline", True),
        (r"\x28unreachable)/bin/*", b"(unreachable)/bin/sh", True),
        (r"\x2fbin/sh", b"/bin/sh", True),
        (r"/v/\i/x", b"/v/" + b"a0" * 32 + b"/x", True),
        (r"/v/\i/x", b"/v/01234567-89ab-cdef-0123-456789abcdef/x", True),
        (r"/v/\i/x", b"/v/eve/x", False),
        (r"/v/\i/x", b"/v/" + b"a" * 63 + b"/x", False),
        (r"/v/\i/x", b"/v/" + b"A" * 64 + b"/x", False),
        (r"/v/\i/x", b"/v/i/x", False),
        (r"/v/\\i", b"/v/\\i", True),
    ],
)
def test_matches(pattern: str, path: bytes, does: bool) -> None:
    assert matches(pattern, path) is does


@pytest.mark.parametrize("pattern", ["", "a", "bin/sh", "*", "/a\\b", "/\\", "/*" * 9, "/\\xF"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(pattern)


@given(paths, paths)
def test_exactly_one_path(path: bytes, other: bytes) -> None:
    assert exactly(path).isprintable()
    assert matches(exactly(path), path)
    assert matches(exactly(path), other) is (path == other)


@given(
    st.lists(st.sampled_from(["*", "**", r"\i", "a", "ab", "/", "/a", r"\x61", r"\*"]), max_size=9),
    st.lists(st.sampled_from([b"a", b"b", b"/", b"ab", b"*", b"0" * 64, b"0" * 32]), max_size=9),
)
def test_it_is_what_the_regular_expression_says(pattern: list[str], path: list[bytes]) -> None:
    text, raw = "/" + "".join(pattern), b"/" + b"".join(path)
    try:
        expected = compile_pattern(text).fullmatch(raw) is not None
    except PatternError:
        return
    assert matches(text, raw) is expected


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/**/a/**/a/**/a/**/a/**/b", b"/a" * 2_000),
        ("/*a*a*a*a*a*a*b", b"/" + b"a" * 250),
        ("/**a**a**a**b", b"/" + b"a" * 4_000),
    ],
)
def test_many_wildcards_take_no_power_of_a_paths_length(pattern: str, path: bytes) -> None:
    # The path is the tenant's, who knows what a policy allows.
    began = time.process_time()
    assert not matches(pattern, path)
    assert matches(pattern, path + b"/b" if pattern.endswith("/b") else path + b"b")
    assert time.process_time() - began < 1
