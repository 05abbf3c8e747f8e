"""The size limit of every input, in one place.

Each limit is far above what an honest peer sends and far below what would hurt the agent.
Standard library only, and nothing of it: the shim and the hook client import this module.
"""

KIB = 1024
MIB = 1024 * KIB

CONFIG_JSON = 8 * MIB
"""Bytes of a bundle's config.json. Kubernetes pods with thousands of mounts stay below 1 MiB."""

HOOK_STATE = 2 * MIB
"""Bytes of the state JSON that a runtime hands to a hook; annotations are most of it. Kubernetes
takes 256 KiB of them for a pod, and CRI-O hands on each twice, once as JSON in a string."""

REQUEST = 4 * MIB
"""Bytes of one request to the agent's socket."""

USER_REQUEST = 288 * KIB
"""The same where it is of a user other than root: 256 KiB of a hook's state, and three paths."""

REPLY = 1024 * MIB
"""Bytes of one answer of the agent: a partition's records may be many."""

CONTAINER_ID = 1024
"""Characters of a container id, as in runc."""

SETTINGS = 1 * MIB
"""Bytes of /etc/cima/config.toml."""

ENGINE_SETTINGS = 1 * MIB
"""Bytes of an engine's settings file."""

PATH = 4096
"""Bytes of one path in the kernel, the NUL counted (PATH_MAX in linux/limits.h)."""

FINDING_TEXT = 4 * PATH
"""Characters of one text of a finding: all of a path, each of its bytes escaped."""

IMA_LINE = 64 * KIB
"""Bytes of one line of the kernel's ascii log, or of one record's template data."""

JSON_DEPTH = 64
"""Levels of nesting in any JSON that comes from outside."""

CONFIG_DEPTH = 32
"""The same in a bundle's config.json: it stands some levels down in records, evidence and reports,
which whoever reads them must take. OCI knows of nine."""

READ_SOON = 1 * MIB
"""Bytes read at a time from a stream whose end is not known."""

RECORD = 16 * MIB
"""Bytes of one stored record; a ``config`` record holds the whole OCI configuration."""

JOURNAL_ENTRIES = 1024
"""Lines of the binding journal, of some 250 bytes each, before one line takes their place."""

JOURNAL_ENTRY = 8 * KIB
"""Bytes of one line of the binding journal."""

ENDED_RUNS = 65_536
"""Runs of lines that ended in this boot, whose late events the agent can place."""

LINES = 1 << 18
"""Lines of root's containers that are remembered, in files that take 1 GiB on most file systems;
above it those go of which nothing else is kept and whose last run is the longest ago. Of each other
user's a part of so many (USER_PART) is."""

REMOVED_FILE = 4 * MIB
"""Bytes of ``removed.jsonl``, some 14,000 lines; above it only the number of the oldest is kept,
and of those of a user other than root that have more than a part (USER_PART)."""

UNMEASURED = 10_000
"""Notes of containers that started unmeasured, of each of which there is a file."""

LINE_STATE = 16 * KIB
"""Bytes of the file that holds what is known of one line of containers."""

CONTAINER_NOTE = 64 * KIB
"""Bytes of the file that holds what is known of one container."""

VERDICT = 64 * KIB
"""Bytes of the file that holds the last verdict on one container."""

EVENT_BATCH = 8192
"""Sensor events that become records together; the sensor's buffer holds the rest."""

KNOWN_DIGESTS = 65_536
"""Files of services whose digests are remembered. A host's daemons map some hundred; more are
hashed for each partition that holds them."""

KNOWN_DIGESTS_FILE = 16 * MIB
"""Bytes of the file of those: below 200 each."""

NAME_PATTERNS = 16
"""Patterns of names in ``sensor.measure_reads`` (NAME_PATTERNS_MAX in sensor.h)."""

NAME = 255
"""Bytes of one path component (NAME_MAX in linux/limits.h)."""

LINK_TARGET = PATH - 1
"""Bytes of a symbolic link's target: symlink(2) refuses more."""

USER_LOOKS = 4
"""Containers of one user that are looked at side by side before they start; more wait."""

USER_LOOK_GRACE = 3
"""Seconds that a helper may take beyond its own limit, to start and to answer."""

USER_REQUESTS = 64
"""Connections of one user to the agent's socket for users; more are refused."""

USERS_REQUESTS = 512
"""Connections of all users to that socket; more are refused."""

USER_ANSWERS = 4
"""Questions of one user that are answered at a time, from being asked until the answer is read;
more wait their turn. An answer of ``ps`` is below 2 MiB, that of ``log`` is read as it is sent."""

USER_CONTAINERS = 4096
"""Containers of one user that the agent knows, ended ones within their retention time counted."""

USER_BYTES = 512 * MIB
"""Bytes of records of all those containers; what they do then is lost, and no more start."""

USER_PART = 8
"""What part of all that is kept of containers that have ended one user's may take, as a divisor;
and of lines."""

LAYER_ENTRIES = 2_000_000
"""Files, directories and others in one layer. A full Debian desktop has some 300,000."""

LAYER_DEPTH = 256
"""Levels of directories in one layer; the walk holds one file descriptor for each of them."""

LAYER_NAMES = 64 * MIB
"""Memory for the names of the directories that one walk is in, which it must sort: about
500,000 names in one directory."""

LAYER_BYTES = 1024 * 1024 * MIB
"""Apparent bytes of all files of one layer of an image archive: 1 TiB."""

MANIFEST_LINE = 128 * KIB
"""Bytes of one line of a layer's manifest: a path and a link target of 4 KiB each, each byte of
which may take four, and the extended attributes."""

WRITTEN_MANIFEST = 256 * KIB
"""Bytes of the manifest of a layer that is of no image, as the ``rootfs`` record holds it: some
2,000 entries. Engines make about ten; more is what a container wrote before it was restarted."""

MANIFESTS = 4096 * MIB
"""Bytes of all manifests that are kept of layers; those used the longest ago go first. An image's
layers take a few MiB."""

XATTR = 16 * KIB
"""Bytes of one extended attribute that a manifest holds. A capability is 24 bytes, an access
control list of 2,000 entries 16 KiB."""

LAYERS = 1024
"""Layers of one root filesystem. The kernel takes 500, Docker 128."""

MOUNTINFO = 64 * MIB
"""Bytes of /proc/PID/mountinfo: 100,000 mounts (sysctl fs.mount-max) of some 600 bytes."""

MOUNTINFO_IN_TURN = 4 * MIB
"""The same where all containers wait meanwhile: 7,000 such mounts, in a tenth of a second."""

TAR_HEADER = 1 * MIB
"""Bytes of one extended header or long name in a tar archive (as in Go's archive/tar)."""

NAMES_FILE = 256 * KIB
"""Of an image's /etc/passwd or /etc/group, in which its user is looked up."""

IMAGE_JSON = 8 * MIB
"""Bytes of an image's index, manifest or configuration (as in containerd)."""

IMAGE_INDEX_DEPTH = 8
"""Levels of indexes in indexes. Docker and containerd write at most two."""

IMAGE_RATIO = 200
"""How many times larger than its compressed form a layer may become, once it has given
IMAGE_RATIO_FROM bytes. Source code is packed some 10 times, a gzip bomb 1,030 times."""

IMAGE_RATIO_FROM = 16 * 1024 * MIB
"""Bytes that a layer may give before its compression ratio is looked at: a minute or two. Honest
layers have empty databases and swap files of some GiB, and /var/log/lastlog, which has 292 bytes
for each number up to the highest user's."""

ARCHIVE_ENTRIES = 100_000
"""Members of the outer tar of a saved image: a few for each layer."""

ZSTD_WINDOW = 128 * MIB
"""Memory that a zstd frame may ask of its reader (`zstd --long=27`, the default maximum)."""

REFERENCE = 1024 * MIB
"""Bytes of a file of reference values: some 250 bytes for each file of the image."""

KEY_FILE = 64 * KIB
"""Bytes of a PEM file with one key."""

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

WAITING_FOR_ONE_CONTAINER = 8
"""Requests for evidence of one container that may wait."""

WAITING_FROM_ONE_SOURCE = 4
"""Requests for evidence of one source, an address or a user, that may wait."""

SHOWN_RECORDS = 128 * MIB
"""Bytes of records, of all runs, in one evidence; of the runs before these it is said that they are
missing."""

WAITING_REQUESTS = 1024
"""Requests for evidence that may share one quote; more are refused."""

STATUS_SHOWN = 8
"""Changes of the binding PCR by somebody else, and gaps in recording, that a status object names;
all are counted."""

AGGREGATION_PLACES = 1024
"""Places under one quote, always: how many of them are requests does not show."""

TREE_DEPTH = 32
"""Levels of a tree at most, so that a path has an end."""

HTTPS_CONNECTIONS = 256
"""Connections to the HTTPS endpoint, from accept(2) on; more are closed."""

HTTPS_CONNECTIONS_EACH = 16
"""Of these, from one address (a /64 of IPv6)."""

HTTPS_ANSWERS_EACH = 4
"""Requests of one address that are answered at a time; more wait."""

HTTPS_ANSWERS = 512 * MIB
"""Bytes of answers that are being read at a time, of all addresses; more are refused, but for small
ones."""

HTTPS_SMALL_ANSWER = 1 * MIB
"""Bytes of an answer that is given all the same."""

HTTP_REQUEST = 64 * KIB
"""Bytes of a request to the HTTPS endpoint; the largest holds a credential of an enrolment."""

VERIFIER_INPUT = 1 * MIB
"""Bytes of a key, a certificate, a policy or a state file that the verifier reads."""

COMMAND_LINE = 2 * MIB
"""Bytes of a process's command line or environment: execve(2) takes a quarter of the stack's limit,
which is 8 MiB."""

PROC_MAPS = 16 * MIB
"""Bytes of one process's maps: 65530 mappings (vm.max_map_count) of 256 bytes."""

ENGINE_ANSWER = 1 * MIB
"""Bytes of dockerd's answer to GET /info; some 5 KiB on a host with many plugins."""

PROC_NET_UNIX = 64 * MIB
"""Bytes of /proc/net/unix: some 500,000 sockets."""

HOST_SERVICE_FILE = 1024 * MIB
"""Bytes of one executable or library of a service; dockerd has 100 MiB."""

HOST_SERVICE_FILES = 4096
"""Executables and libraries of one service, or files of our own."""

NV_CERTIFICATES = 256 * KIB
"""Bytes that are read of a TPM's NV indices for certificates. One has at most 64 KiB; real chains
have below 8."""

EK_CHAIN = 8
"""Certificates of a TPM's issuers that a host hands on. Intel's on-die authorities take four."""

REPORT = 32 * MIB
"""Bytes of a host's report, after decompression. One on which nothing has changed has below 4 KiB;
the host's log of 100,000 lines, redacted, 7 MiB."""

REPORT_PIECE = 4 * MIB
"""Bytes of records in one report; more come in further reports."""

FLEET_LOG = 1 << 18
"""Entries of one host's log that the service keeps of a boot, 32 bytes each and what they say where
the host shows it; what host services run by later lines is not proved any more. A host that is up
for months has some 20,000."""

FLEET_LOG_SHOWN = 64 * MIB
"""Bytes that the service keeps of what the entries of one boot say, compressed: above 64 for each
of as many entries as are kept. Of more it has the hashes."""

FLEET_BOOTS = 64
"""Boots of one host of which the service keeps what they proved; above it the oldest goes."""

REPORT_SLOTS = 1 << 20
"""Slots of a table that a report may speak of: more containers than any host holds."""

REPORT_CONTAINERS = 65_536
"""Containers that one report lists."""

REPORT_ANSWER = 16 * MIB
"""Bytes of the service's answer to a report: after a resync, 30 for each container it knows."""

TENANTS_REQUESTS = 64
"""Tenants' requests for evidence that come with one nonce."""

HOST_NAME = 253
"""Characters of a host's own name (DNS, RFC 1035)."""

LABELS = 64
"""Labels of one host."""

LABEL = 253
"""Characters of a label's name or value (Kubernetes takes 253 and 63)."""

JOIN_TOKEN = 1024
"""Characters of a join token, or of a session's."""

REPORT_WINDOW = 8 * MIB
"""Memory that a report's zstd frame may ask of its reader (RFC 8878, 3.1.1.1.2 recommends it)."""

FLEET_NOTE = 64 * MIB
"""Bytes of the file that holds what the fleet's service has confirmed: 30 for each container."""

ENROLMENTS_WAITING = 1_000
"""Hosts without a join token that try to join a fleet, or wait for a person: as many as are shown.
"""

WEBHOOKS = 32
"""Webhooks of one tenant, and of the operator."""

STRANGERS_BODIES = 128 * MIB
"""Bytes of reports that are in the service's memory at a time, of hosts behind one address that it
does not know yet; of all of these, eight times as much."""

STRANGERS_ENROLMENTS = 8 * MIB
"""The same for what they send to join."""

FLEET_REFERENCE = 256 * MIB
"""Bytes of a file of reference values that is sent to a fleet's service."""

PROVIDER_ANSWER = 1 * MIB
"""Bytes of what an OpenID provider answers: its description, its keys, a token. Real ones have
below 64 KiB."""

TOKEN = 64 * KIB
"""Bytes of what a token says. Ours have below 2 KiB."""
