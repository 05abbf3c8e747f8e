"""What a bind and a quote say of the host: its binding PCR, gaps, and the PCRs of its boot."""

from collections.abc import Iterator, Mapping

from cima_runc.cpcr.status import Status
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Finding


def check_status(status: Status, policy: Policy) -> Iterator[Finding]:
    """Yield what was not in order in this boot."""
    foreign, gaps = status.foreign, status.gaps
    if foreign.count:
        kinds = ", ".join(sorted({one.kind for one in foreign.last}))
        yield Finding(
            severity="warn" if policy.allow_foreign_extends else "fail",
            rule="host.foreign",
            what=f"PCR {policy.binding_pcr} was not as the host had made it, {foreign.count} "
            f"times in this boot (latest kinds: {kinds})",
        )
    if gaps.count:
        last = "".join(f"; last from {one.since} to {one.until}" for one in gaps.last[-1:])
        what = f"for a time the host could not write records or bind them, {gaps.count} times"
        yield Finding(severity="warn", rule="host.gaps", what=what + last)


def check_pcrs(values: Mapping[int, bytes], policy: Policy) -> Iterator[Finding]:
    """Yield which PCRs of the boot have values that are not allowed, or not known."""
    for name, allowed in policy.pcr_values.items():
        found = values.get(int(name))
        if found not in allowed:
            shown = found.hex() if found is not None else "not quoted"
            what = f"PCR {name} is {shown}, which is not allowed"
            yield Finding(severity="fail", rule="host.pcr", what=what)
    unseen = [pcr for pcr in policy.boot_pcrs if str(pcr) not in policy.pcr_values]
    if unseen:
        numbers = " ".join(map(str, unseen))
        what = f"no reference values for PCRs {numbers}: firmware and kernel not appraised"
        yield Finding(severity="warn", rule="host.pcrs_unknown", what=what)
