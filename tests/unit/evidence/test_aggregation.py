import os

import pytest

from cima_runc.cpcr.tree import root_from_path
from cima_runc.evidence.aggregation import DEPTH, aggregate


@pytest.mark.parametrize("count", [1, 2, 7, 300, 1024])
def test_every_request_leads_to_the_root(count: int) -> None:
    leaves = [os.urandom(32) for _ in range(count)]
    root, places = aggregate(leaves)
    assert len({place.index for place in places}) == count
    for leaf, place in zip(leaves, places, strict=True):
        assert len(place.path) == DEPTH == 10
        assert root_from_path(leaf, place.index, place.path) == root


def test_places_and_the_rest_are_random() -> None:
    leaf = os.urandom(32)
    made = [aggregate([leaf]) for _ in range(20)]
    assert len({root for root, _ in made}) == 20
    assert len({places[0].index for _, places in made}) > 10
    nodes = [node for _, places in made for node in places[0].path]
    assert len(set(nodes)) == len(nodes)


def test_more_than_there_are_places() -> None:
    with pytest.raises(ValueError, match="larger"):
        aggregate([bytes(32)] * 1025)
