"""A policy from a run that is known to be good: what it needs beside the image and the defaults.

Every line of the file is explained, so that a person can decide on each.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from cima_runc.base.text import printable
from cima_runc.ima.template import unpack_cima_ng
from cima_runc.measure.config_summary import ConfigSummary, summarize
from cima_runc.measure.mtree import Entry, MtreeError, parse_manifest
from cima_runc.ml.contents import (
    Memory,
    RegisterV1,
    ViolationKind,
    ViolationV1,
    measured,
    read,
)
from cima_runc.ml.records import CIMA, IMA_TEMPLATE, Record, template_data
from cima_runc.verifier.appraisal import References, appraise
from cima_runc.verifier.completeness import violation_rule
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.policy import ConfigPolicy, Policy
from cima_runc.verifier.reference.file import ImageReference, ReferenceConfig
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules.config import (
    as_root,
    capability_names,
    command_of,
    device_key,
    device_rules_beyond,
    hook_command,
    masked_beyond,
    privilege_keys,
    shared_with_host,
    steered,
)
from cima_runc.verifier.rules.engines import HOOK_STAGES_INSIDE
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.mounts import EngineMounts
from cima_runc.verifier.rules.rootfs import path_of, written_keys
from cima_runc.verifier.rules.unstable import (
    UnknownFile,
    UnstableFile,
    unknown_file,
    unstable_file,
)
from cima_runc.verifier.toml import array, quoted

_HEAD = """\
# A policy for cima appraise and cima verify, suggested from what one container did.
# It allows all that this run did, good or bad: read each line, and remove what should not be.
# Keys that are not here have their defaults, which refuse.
"""

_NOTHING = ImageReference(
    platform="linux",
    image_id="sha256:" + "0" * 64,
    config=ReferenceConfig(),
    layers=(),
    files={},
)


def suggest(records: Sequence[Record], references: References, secret: bytes | None = None) -> str:
    """Return a policy (TOML) by which the container of these records is trusted.

    With the container's ``secret`` the values of its environment are compared, as a verifier does:
    without it a ``HOME`` may lead anywhere, and what it could lead to is listed.
    Without an image's reference values every file that ran is listed, since none is known to be
    of the image. What no policy can allow, such as a layer of another image, is said in a comment.

    Raises:
        RecordError, TemplateError: a record is not what it claims to be.
    """
    image = references.image or _NOTHING
    known = References(image, references.host)
    found = appraise(records, known, Policy(), secret=secret).findings
    rules = {finding.rule for finding in found if finding.severity == "fail"}
    config, mounts = _config_of(records, image, secret)
    lines = [_HEAD]
    for rule, key, why in _TOP:
        if rule in rules:
            lines.append(f"# {why}\n{key}\n")
    if missing := _missing(records):
        why = "It was measured without a part of the measurement."
        if "memory" in missing:
            why += " Its memory came from a checkpoint: whoever could write that chose what runs."
        lines.append(f"# {why}\nallow_missing = {array(missing)}\n")
    unstable = _unstable_files(records)
    unknown = {
        number: file
        for number, content in map(measured, records)
        if isinstance(content, ViolationV1) and (file := unknown_file(content)) is not None
    }
    wanting = {finding.record for finding in found if finding.severity == "fail"}
    unknown = {number: file for number, file in unknown.items() if number in wanting}
    named = unstable.keys() | unknown.keys()
    others = [
        finding for finding in found if finding.severity == "fail" and finding.record not in named
    ]
    # Where there is a path, the whole kind is more than what was seen.
    strange = [one for one in others if one.rule == "records.unstable" and one.path]
    lines += [f"# Not allowed here: {printable(one.what)}\n" for one in strange]
    violations = {one.rule for one in others if one not in strange} & _VIOLATIONS.keys()
    if violations:
        kinds = sorted(_VIOLATIONS[each] for each in violations)
        lines.append(
            "# Something ran that its records do not vouch for, of these kinds."
            f"\nallow_violations = {array(kinds)}\n"
        )
    written = {x.path for x in found if x.rule == "rootfs.written"}
    lines += _rootfs(records, rules, written, ImageFiles(image))
    if config is not None and mounts is not None:
        failed = [finding for finding in found if finding.severity == "fail"]
        lines += _config(config, image.config, mounts, rules, failed)
    wanted = {
        finding.record
        for finding in found
        if finding.severity == "fail" and finding.rule.startswith("file.")
    }
    lines += _files(records, wanted, unstable)
    lines += _unstable(unstable)
    lines += _unknown(unknown.values())
    lines += _memory(records, rules)
    for finding in found:
        if finding.severity == "fail" and finding.rule in _NEVER and references.image is not None:
            lines.append(f"# Not allowed by any policy: {printable(finding.what)}\n")
    return "\n".join(lines)


_TOP = (("records.lost", "allow_lost = true", "Events were lost: something may have run unseen."),)


def _missing(records: Sequence[Record]) -> list[str]:
    contents = (content for _, content in map(measured, records))
    return sorted(
        {one for each in contents if isinstance(each, RegisterV1) for one in each.missing}
    )


_VIOLATIONS = {violation_rule(kind): kind for kind in get_args(ViolationKind)}
_NEVER = frozenset({"rootfs.layer", "rootfs.layers", "rootfs.image", "rootfs.format"})


def _rootfs(
    records: Sequence[Record], rules: set[str], written: set[str], image: ImageFiles
) -> Iterator[str]:
    keys = []
    if "rootfs.off" in rules:
        keys.append("# The root filesystem was not measured.\nallow_unmeasured = true")
    if "rootfs.tree" in rules:
        keys.append("# It is no overlay, so that layers cannot be compared.\nallow_tree = true")
    if "rootfs.changing" in rules:
        keys.append("# Files changed while they were measured.\nallow_changing = true")
    if written:
        found = [
            key
            for entry in _written(records)
            if printable(path_of(entry)) in written
            for key in written_keys(entry, image)
        ]
        body = "".join(f"  {each},\n" for each in dict.fromkeys(found or [quoted("**")]))
        keys.append(
            "# The container's own layer held these when it started: it was restarted, or changed"
            "\n# from outside. Without sha256 they may have any content. `*` is any name, `**` any"
            f"\n# path.\nallow_written = [\n{body}]"
        )
    if keys:
        yield "[rootfs]\n" + "\n".join(keys) + "\n"


def _written(records: Sequence[Record]) -> Iterator[Entry]:
    for record in records:
        layers = record.content.get("layers") if record.content_type == CIMA else None
        for layer in layers if isinstance(layers, list) else []:
            text = layer.get("manifest") if isinstance(layer, dict) else None
            try:
                entries = parse_manifest(text.encode("ascii")) if isinstance(text, str) else []
            except (MtreeError, UnicodeEncodeError):
                entries = []
            yield from entries


def _config(
    config: ConfigSummary,
    image: ReferenceConfig,
    engine: EngineMounts,
    rules: set[str],
    failed: Sequence[Finding],
) -> Iterator[str]:
    keys: list[str] = []
    variables = [finding for finding in failed if finding.rule == "config.env"]
    names = [(finding.got.partition("=")[0], finding.path) for finding in variables]
    loading = {name for name, path in names if path == "process.env"}
    of_hooks = {name for name, path in names if path != "process.env"}
    groups = {int(finding.got) for finding in failed if finding.rule == "config.groups"}
    defaults = ConfigPolicy()
    if not rules.isdisjoint({"config.privileged", "config.kernel_settings"}):
        keys += _privileged(config)
    if "config.masked" in rules:
        exact = array([exactly(path) for path in masked_beyond(config)])
        keys.append(
            "# What of the image may be hidden from it: something empty is there instead."
            f"\nmasked_paths = {exact}"
        )
    if "config.seccomp" in rules:
        keys.append(
            "# Its filter, or a program of the host's, may answer system calls as it likes."
            "\nallow_seccomp_answers = true"
        )
    if not rules.isdisjoint({"config.joined", "config.namespace"}):
        others = {"mount"} if "config.joined" in rules else set()
        shared = sorted({*defaults.host_namespaces, *shared_with_host(config), *others})
        keys.append(
            "# Namespaces that it may share with the host, or mount with others; cgroup, time and"
            "\n# user are the default."
            f"\nhost_namespaces = {array(shared)}"
        )
    if "config.capabilities" in rules:
        keys.append(
            "# All capabilities that it may have; engines' default is there without this line."
            f"\ncapabilities = {array(sorted(capability_names(config)))}"
        )
    if "config.ambient" in rules:
        keys.append(
            "# What its user may do as root does, though it is not root."
            f"\nambient = {array(sorted(as_root(config)))}"
        )
    mounts = [mount for mount in config.mounts if not engine.makes(mount)]
    if mounts:
        body = "".join(f"  {each},\n" for each in dict.fromkeys(map(engine.allowing, mounts)))
        keys.append(
            "# Mounts beside those that engines make. What is in them is not measured, but for the"
            "\n# files that run. `*` stands for ids of this container, which the next has not."
            f"\nmounts = [\n{body}]"
        )
    if "config.device" in rules:
        body = "".join(f"  {device_key(each)},\n" for each in config.devices)
        if body:
            keys.append(f"# Devices of the host, by path and numbers.\ndevices = [\n{body}]")
        more = [str(rule) for rule in device_rules_beyond(config)]
        if more:
            keys.append(
                "# Devices that it may use by their numbers, of which it can make nodes itself."
                f"\ndevice_rules = {array(more)}"
            )
    if "config.args" in rules:
        own = " ".join(image.command) or "none"
        keys.append(
            f"# Commands beside the image's own, which is: {printable(own)}."
            f"\nargs = [{array(command_of(config))}]"
        )
    if "config.user" in rules:
        user = f"{config.user.uid}:{config.user.gid}"
        shown = printable(image.user) or "root"
        keys.append(f"# Users beside the image's own, which is: {shown}.\nusers = [{quoted(user)}]")
    if groups:
        keys.append(
            "# Groups beside those of its user in the image, by which it may do more, or less, with"
            f"\n# the image's files.\ngroups = [{', '.join(map(str, sorted(groups)))}]"
        )
    if "config.cwd" in rules:
        keys.append(
            f"# Working directories beside the image's own.\nworking_dirs = [{quoted(config.cwd)}]"
        )
    if loading:
        keys.append(
            "# Variables that make programs load other code; their values are not looked at."
            f"\nenv = {array(sorted(loading))}"
        )
    if "config.hook" in rules:
        hooks = dict.fromkeys(
            hook_command(hook) for hook in config.hooks if hook.stage in HOOK_STAGES_INSIDE
        )
        body = "".join(f"  {array(hook)},\n" for hook in hooks)
        keys.append(f"# Hooks that run in the container before its command.\nhooks = [\n{body}]")
    if of_hooks:
        keys.append(
            "# Variables of those hooks that make programs load other code."
            f"\nhook_env = {array(sorted(of_hooks))}"
        )
    if "config.annotation" in rules:
        found = [steered(name, value) for name, value in config.steering]
        keys.append(
            "# Annotations by which crun does otherwise than the configuration says: what runs in a"
            f"\n# virtual machine or an interpreter is not measured.\nannotations = {array(found)}"
        )
    if keys:
        yield "[config]\n" + "\n".join(keys) + "\n"


def _privileged(config: ConfigSummary) -> Iterator[str]:
    why = {
        "allow_privileged": "It is privileged: nothing keeps it from the host.",
        "allow_unmasked": "What of /proc and /sys is the host's is not hidden, or writable.",
        "device_rules": "It may use all devices of the host.",
    }
    for key in privilege_keys(config):
        yield f"# {why[key.partition(' ')[0]]}\n{key}"


def _unstable_files(records: Sequence[Record]) -> dict[int, UnstableFile]:
    """Return the files that ran by a digest that nothing vouches for, by their records' numbers."""
    found = {}
    for number, content in map(measured, records):
        file = unstable_file(content) if isinstance(content, ViolationV1) else None
        if file is not None:
            found[number] = file
    return found


def _unstable(files: Mapping[int, UnstableFile]) -> Iterator[str]:
    reasons: dict[bytes, set[str]] = {}
    for file in files.values():
        reasons.setdefault(file.path, set()).add(file.why)
    for number, path in enumerate(sorted(reasons)):
        why = (
            "# Files that ran though their digest, which is compared, may not be of what ran, and"
            "\n# for what reasons.\n"
        )
        yield (
            f"{why if not number else ''}[[unstable]]\npath = {quoted(exactly(path))}\n"
            f"why = {array(sorted(reasons[path]))}\n"
        )


def _unknown(files: Iterable[UnknownFile]) -> Iterator[str]:
    keys = sorted({file.key for file in files})
    for number, key in enumerate(keys):
        why = (
            "# Files that were used, of whose content nothing is known: whoever can write there, or"
            "\n# could before the container started, chose it.\n"
        )
        yield f"{why if not number else ''}[[unstable]]\n{key}"


def _files(
    records: Sequence[Record], wanted: set[int | None], unstable: Mapping[int, UnstableFile]
) -> Iterator[str]:
    digests: dict[bytes, list[str]] = {}
    for record in records:
        if record.content_type == IMA_TEMPLATE and record.recnum in wanted:
            digest, path, _, _ = unpack_cima_ng(template_data(record.content))
            digests.setdefault(path, []).append(digest.hex())
    for recnum, file in unstable.items():
        if recnum in wanted:
            digests.setdefault(file.path, []).append(file.digest.hex())
    for number, path in enumerate(sorted(digests)):
        why = (
            "# Files that ran and are not the image's, each with its SHA-256. Without sha256 the\n"
            "# path alone counts, whatever the content.\n"
            if not number
            else ""
        )
        yield (
            f"{why}[[files]]\npath = {quoted(exactly(path))}\n"
            f"sha256 = {array(sorted(set(digests[path])))}\n"
        )


def _memory(records: Sequence[Record], rules: set[str]) -> Iterator[str]:
    if "records.memory" not in rules:
        return
    found: dict[bytes, set[str]] = {}
    for record in records:
        content = read(record)
        if isinstance(content, Memory) and not content.denied:
            found.setdefault(content.program_path_hex or b"", set()).add(content.kind)
    if b"" in found:
        del found[b""]
        yield "# Not allowed here: a program without a path made memory executable.\n"
    for number, program in enumerate(sorted(found)):
        why = "# Programs that make memory executable, as those do that compile as they run.\n"
        yield (
            f"{why if not number else ''}[[memory]]\nprogram = {quoted(exactly(program))}\n"
            f"kinds = {array(sorted(found[program]))}\n"
        )


def _config_of(
    records: Sequence[Record], image: ImageReference, secret: bytes | None
) -> tuple[ConfigSummary | None, EngineMounts | None]:
    register: Mapping[str, Any] = {}
    for record in records:
        content = record.content
        if content.get("type") == "register":
            register = content
        if content.get("type") == "config" and isinstance(content.get("config"), dict):
            config = summarize(content["config"], register.get("namespaces"))
            files = ImageFiles(image)
            return config, EngineMounts(register, config, files, values=image.config, secret=secret)
    return None, None
