"""A host without cima-runc, on which it is installed."""

from tests.vm.boots import *  # noqa: F403
