"""The size limit of every input, in one place.

Each limit is far above what an honest peer sends and far below what would hurt the agent.
Standard library only, and nothing of it: the shim and the hook client import this module.
"""

KIB = 1024
MIB = 1024 * KIB

CONFIG_JSON = 8 * MIB
"""Bytes of a bundle's config.json. Kubernetes pods with thousands of mounts stay below 1 MiB."""

HOOK_STATE = 256 * KIB
"""Bytes of the state JSON that a runtime hands to a hook; annotations are most of it."""

REQUEST = 1 * MIB
"""Bytes of one request to the agent's socket."""

REPLY = 1024 * MIB
"""Bytes of one answer of the agent: a partition's records may be many."""

CONTAINER_ID = 1024
"""Characters of a container id, as in runc."""

SETTINGS = 1 * MIB
"""Bytes of /etc/cima/config.toml."""

PATH = 4096
"""Bytes of one path in the kernel, the NUL counted (PATH_MAX in linux/limits.h)."""

IMA_LINE = 64 * KIB
"""Bytes of one line of the kernel's ascii log, or of one record's template data."""

JSON_DEPTH = 64
"""Levels of nesting in any JSON that comes from outside."""

READ_SOON = 1 * MIB
"""Bytes read at a time from a stream whose end is not known."""

RECORD = 16 * MIB
"""Bytes of one stored record; a ``config`` record holds the whole OCI configuration."""

JOURNAL_ENTRY = 4 * KIB
"""Bytes of one line of the binding journal."""

CONTAINER_NOTE = 64 * KIB
"""Bytes of the file that holds what is known of one container."""

PENDING_EVENTS = 100_000
"""Sensor events waiting to become records; above it the kernel's buffer fills, which counts."""

TPM_STRUCTURE = 4 * KIB
"""Bytes of one marshalled TPM structure; the largest RSA key stays far below."""

EVIDENCE = 256 * MIB
"""Bytes of one evidence: a partition's records, the host's log and the boot event log."""

EVENT_LOG = 4 * MIB
"""Bytes of the firmware's event log."""

NONCE_MIN = 16
"""Bytes of a verifier's nonce at least, so that none comes twice."""

NONCE_MAX = 64
"""Bytes of a verifier's nonce at most, as in an EAT (RFC 9711, 4.1)."""

OWNERS = 8
"""Owner keys of one container."""

OWNER_FILE = 16 * KIB
"""Bytes of a file of owner keys."""

WAITING_REQUESTS = 1024
"""Requests for evidence that may share one quote; more are refused."""

FOREIGN_SHOWN = 16
"""Changes of the binding PCR by somebody else that are kept in full; all are counted."""

TREE_DEPTH = 32
"""Levels of a tree at most, so that a path has an end."""

HTTP_REQUEST = 64 * KIB
"""Bytes of a request to the HTTPS endpoint; the largest holds a credential of an enrolment."""

VERIFIER_INPUT = 1 * MIB
"""Bytes of a key, a certificate, a policy or a state file that the verifier reads."""
