"""The container's leaf, and the host's status, are in the binding PCR."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cima_runc.cpcr.bind import Bind, bind_digest
from cima_runc.cpcr.tree import root_from_path
from cima_runc.verifier import errors
from cima_runc.verifier.steps.hints import ANEW, REPORT
from cima_runc.verifier.steps.quoted import Quoted


@dataclass(frozen=True)
class Bound:
    """A quote that shows a bind with the container's leaf, and the host's status as it was then."""

    quoted: Quoted


def check_bound(quoted: Quoted) -> Bound:
    """The root follows from leaf and path; the PCR from history, status, host and root."""
    binding = quoted.evidence.binding
    check_path(binding.leaf, binding.slot, binding.path, binding.root, error=errors.TreePathError)
    digest = bind_digest(binding.status.digest(), binding.host, binding.root)
    expected = Bind(binding.history, digest).expected
    value = quoted.values[binding.pcr]
    if value == expected:
        return Bound(quoted)
    if value == binding.history:
        raise errors.QuoteBeforeBindingError(
            "the quote is older than the binding",
            expected=expected.hex(),
            found=f"{value.hex()}, the value before the bind",
            hint=ANEW,
        )
    raise errors.BindingError(
        f"PCR {binding.pcr} is not the history extended with status, host and root",
        expected=expected.hex(),
        found=value.hex(),
        hint=REPORT,
    )


def check_path(
    leaf: bytes, slot: int, path: Sequence[bytes], root: bytes, *, error: Callable[..., Exception]
) -> None:
    """The path leads from the leaf in its slot to the root; ``error`` says where it does not."""
    led = root_from_path(leaf, slot, path)
    if led != root:
        raise error(
            "the path does not lead from the leaf to the root",
            expected=root.hex(),
            found=led.hex(),
            hint=REPORT,
        )
