"""A host that is rebooted."""

from tests.vm.boots import *  # noqa: F403
