"""What a relying party insists on, as a TOML file."""

import tomllib
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from cima_runc import limits
from cima_runc.errors import CimaError
from cima_runc.evidence.fields import Digest, Model, PcrNumber
from cima_runc.evidence.models import first_of


class PolicyError(CimaError):
    """The policy file has a key or a value that is not allowed."""


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Pcrs = Annotated[tuple[PcrNumber, ...], BeforeValidator(_to_tuple), Field(min_length=1)]
_Names = Annotated[tuple[str, ...], BeforeValidator(_to_tuple)]
_Digests = Annotated[tuple[Digest, ...], BeforeValidator(_to_tuple)]


class Policy(Model):
    """A policy; every key has a default."""

    boot_pcrs: _Pcrs = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    """The PCRs of firmware, loader and kernel that must be quoted beside the binding PCR."""
    binding_pcr: PcrNumber = 12
    """The PCR that registers are bound into; never 16 or 23, which anybody can reset."""
    host_pcr: PcrNumber = 10
    """The PCR of the host's log: quoted where any of that log is shown."""
    require_safe_clock: bool = True
    """Whether a clock that the TPM does not vouch for (after a power cut) is refused."""
    allow_lost: bool = False
    """Whether events that the sensor lost are tolerated."""
    allow_violations: bool = False
    """Whether files that ran without a digest or a path are tolerated."""
    allow_missing: _Names = ()
    """Sources of measurement that may be missing: ``ima``, ``sensor``."""
    allow_foreign_extends: bool = True
    """Whether the binding PCR may have been extended by somebody else; it is shown anyhow."""
    pcr_values: dict[str, _Digests] = Field(default_factory=dict)
    """Allowed values (hexadecimal) of a boot PCR, by its number."""

    def selection(self, host: str) -> tuple[int, ...]:
        """Return the PCRs that a quote must show at this disclosure of the host's log."""
        shown = {*self.boot_pcrs, self.binding_pcr}
        return tuple(sorted(shown | {self.host_pcr} if host != "none" else shown))


def parse_policy(raw: bytes) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: names the key and what is wrong with it.
    """
    if len(raw) > limits.VERIFIER_INPUT:
        raise PolicyError(f"the policy has more than {limits.VERIFIER_INPUT} bytes")
    try:
        policy = Policy.model_validate(tomllib.loads(raw.decode("utf-8")))
    except ValidationError as error:
        allowed = ", ".join(sorted(Policy.model_fields))
        raise PolicyError(f"the policy: {first_of(error)}", hint=f"keys are {allowed}") from error
    except ValueError as error:
        raise PolicyError(f"the policy is not TOML: {error}") from error
    if policy.binding_pcr in {*policy.boot_pcrs, policy.host_pcr, 16, 23}:
        raise PolicyError(f"binding_pcr = {policy.binding_pcr} is not a PCR of its own")
    return policy
