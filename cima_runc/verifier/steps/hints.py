"""What to do next, where several checks say the same."""

ANEW = "ask for new evidence with a new nonce"
REPORT = "the host or somebody on the way changed it: do not rely on this host"
WHOLE = "ask for the whole of it, without what is remembered"
CLEARED = "the TPM was cleared, or is a copy of an earlier one: enrol the host again"
