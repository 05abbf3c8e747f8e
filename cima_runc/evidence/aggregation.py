"""The requests that share one quote: a tree of always the same size, which a quote is made for.

Each request has a random place; all others hold random bytes, also where there is one request
only. So nothing in a path tells how many others asked. Source: design, section 7.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cima_runc.base import limits
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.tree import node_hash

DEPTH = limits.AGGREGATION_PLACES.bit_length() - 1
"""Siblings on a path."""


@dataclass(frozen=True)
class Place:
    """Where a request's leaf is."""

    index: int
    """Number of the place, from 0; bit 0 chooses the side at the lowest level."""
    path: tuple[bytes, ...]
    """The siblings, lowest first: :data:`DEPTH` of 32 bytes each."""


def aggregate(leaves: Sequence[bytes]) -> tuple[bytes, list[Place]]:
    """Return the root over ``leaves`` (32 bytes each) in random places, and where each of them is.

    Raises:
        ValueError: there are more of them than places.
    """
    chosen = secrets.SystemRandom().sample(range(limits.AGGREGATION_PLACES), len(leaves))
    random = secrets.token_bytes(limits.AGGREGATION_PLACES * DIGEST_SIZE)
    level = [random[at : at + DIGEST_SIZE] for at in range(0, len(random), DIGEST_SIZE)]
    for index, leaf in zip(chosen, leaves, strict=True):
        level[index] = leaf
    levels = []
    while len(level) > 1:
        levels.append(level)
        level = [node_hash(*level[at : at + 2]) for at in range(0, len(level), 2)]
    places = [
        Place(index, tuple(each[index >> height ^ 1] for height, each in enumerate(levels)))
        for index in chosen
    ]
    return level[0], places
