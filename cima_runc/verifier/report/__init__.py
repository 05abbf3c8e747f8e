"""Verification of a host's reports, against what is kept of the host. Pure."""
