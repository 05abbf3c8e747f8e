"""Verification and appraisal of evidence; ``docs/library.md`` shows how to use it.

from cima_runc.verifier import StateDirectory, Verdict, Verifier, parse_enrolled_ak

verifier = Verifier(
    parse_enrolled_ak(Path("ak.pem").read_bytes()),
    references=[Path("image.json").read_bytes()],
    memory=StateDirectory(Path("state")),
)
request = verifier.request(container_id)
...  # request.to_json() to the host's agent, which answers with evidence
result = verifier.verify(evidence, request)
if result.verdict is Verdict.TRUSTED: ...
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cima_runc.evidence.request import Request
    from cima_runc.verifier.ak_certificate import AkAuthority, parse_authority
    from cima_runc.verifier.enrolled import EnrolledAk, parse_enrolled_ak
    from cima_runc.verifier.errors import Verdict
    from cima_runc.verifier.result import Finding, Refusal, Result
    from cima_runc.verifier.state import StateDirectory
    from cima_runc.verifier.verifier import Verifier

__all__ = [
    "AkAuthority",
    "EnrolledAk",
    "Finding",
    "Refusal",
    "Request",
    "Result",
    "StateDirectory",
    "Verdict",
    "Verifier",
    "parse_authority",
    "parse_enrolled_ak",
]

_HOMES = {
    "AkAuthority": "cima_runc.verifier.ak_certificate",
    "EnrolledAk": "cima_runc.verifier.enrolled",
    "Finding": "cima_runc.verifier.result",
    "Refusal": "cima_runc.verifier.result",
    "Request": "cima_runc.evidence.request",
    "Result": "cima_runc.verifier.result",
    "StateDirectory": "cima_runc.verifier.state",
    "Verdict": "cima_runc.verifier.errors",
    "Verifier": "cima_runc.verifier.verifier",
    "parse_authority": "cima_runc.verifier.ak_certificate",
    "parse_enrolled_ak": "cima_runc.verifier.enrolled",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is wanted: commands that use one room need not load the others."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
