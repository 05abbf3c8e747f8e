"""A real TPM interface (swtpm) in the place of the software key: what it signs, it means."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cima_runc.tpm.device import Tpm
from cima_runc.tpm.keys import load_ak
from cima_runc.tpm.quote import quote
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm


class SwtpmAk:
    """As :class:`tests.support.software_tpm.SoftwareTpm`, but that its counters are its own."""

    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm
        self._ak = load_ak(tpm, None)
        self.ak_public = self._ak.public
        self.ak_name = parse_public(self.ak_public).name

    @property
    def pcrs(self) -> dict[int, bytes]:
        """The SHA-256 bank as it is."""
        return self._tpm.read_pcrs(range(24))

    @pcrs.setter
    def pcrs(self, _: object) -> None:
        # A TPM that has just been started has them as a host's boot wants them.
        pass

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR of the SHA-256 bank."""
        self._tpm.extend(pcr, digest)

    def quote(self, pcrs: Iterable[int], qualifying: bytes) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST and TPMT_SIGNATURE."""
        made = quote(self._tpm, self._ak, sorted(pcrs), qualifying)
        return made.attest, made.signature


@contextmanager
def swtpm_ak() -> Iterator[SwtpmAk]:
    """Start a TPM."""
    with software_tpm() as tcti:
        tpm = Tpm.open(tcti)
        try:
            yield SwtpmAk(tpm)
        finally:
            tpm.close()
