"""The verifier as a library: make a request, send it to the host, verify what comes back."""

import secrets
from collections.abc import Sequence

from cima_runc.evidence.owner import parse_private
from cima_runc.evidence.request import Disclosure, Request
from cima_runc.verifier.ak_certificate import AkAuthority
from cima_runc.verifier.enrolled import EnrolledAk
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.result import Result
from cima_runc.verifier.state import StateDirectory
from cima_runc.verifier.values import Values, read_values
from cima_runc.verifier.verify import verify

_NONCE = 32
"""Bytes."""


class Verifier:
    """Verifies evidence of containers on one host, or on all hosts that an authority has enrolled.

    It may be used by several threads, and for any number of requests.
    """

    def __init__(
        self,
        ak: EnrolledAk | AkAuthority,
        *,
        references: Sequence[bytes] = (),
        policy: bytes | None = None,
        owner_key: bytes | None = None,
        memory: StateDirectory | None = None,
    ) -> None:
        """Take what does not change from request to request.

        ``ak`` is what ``cima enroll accept`` wrote (:func:`parse_enrolled_ak`), or who enrols keys
        (:func:`parse_authority`). ``references`` are files of ``cima reference image`` and, if it
        is known what the host should be, ``cima reference host``; without any nothing is TRUSTED.
        ``policy`` is a TOML file, ``owner_key`` the PEM file of ``cima keygen``. ``memory`` is
        where to remember; without it restarts and rollbacks between two requests go unseen.

        Raises:
            CimaError: a file is not what it should be.
        """
        self._ak = ak
        self._values: Values = read_values(references, policy)
        self._appraisal = self._values.appraisal
        self._owner_key = parse_private(owner_key) if owner_key is not None else None
        self._memory = memory

    def request(
        self, container: str, *, host: Disclosure = "none", boot_log: bool = False
    ) -> Request:
        """Return a request with a fresh nonce, for what is not known yet of a container.

        ``container`` is its whole id, ``host`` how much of the host's log is wanted, ``boot_log``
        whether the firmware's is. Send :meth:`Request.to_json` to ``/v1/evidence`` of the agent.

        Raises:
            StateError: what is remembered cannot be read.
        """
        since = self._memory.since_of(container) if self._memory is not None else None
        return Request(
            boot_log=boot_log,
            container=container,
            host=host,
            nonce=secrets.token_bytes(_NONCE),
            since=since,
        )

    def verify(self, evidence: bytes, request: Request) -> Result:
        """Return the verdict on the answer to ``request``, and what it rests on.

        Never raises: whatever is wrong with the evidence is in the result, and what nobody thought
        of is UNKNOWN. A request is to be verified once, soon: its nonce is what makes it fresh.
        """
        return self._verify(
            evidence,
            Expectation(
                nonce=request.nonce,
                ak=self._ak,
                container=request.container,
                owner_key=self._owner_key,
                host=request.host,
                boot_log=request.boot_log,
                since=request.since,
                policy=self._values.policy,
            ),
        )

    def verify_nonce(
        self,
        evidence: bytes,
        nonce: bytes,
        *,
        container: str | None = None,
        host: Disclosure = "none",
        boot_log: bool = False,
    ) -> Result:
        """The same where the request was made elsewhere: all that was asked must be said here.

        ``container`` None takes the evidence's word for which container it is of; the result says
        so. Records may begin with what is remembered, or with the first.
        """
        return self._verify(
            evidence,
            Expectation(
                nonce=nonce,
                ak=self._ak,
                container=container,
                owner_key=self._owner_key,
                host=host,
                boot_log=boot_log,
                policy=self._values.policy,
            ),
        )

    def _verify(self, evidence: bytes, expectation: Expectation) -> Result:
        return verify(
            evidence,
            expectation,
            memory=self._memory,
            appraisal=self._appraisal,
            sources=self._values.sources,
        )
