"""A golden snapshot of a host: the files that its services run, from partitions of dependencies."""

from collections.abc import Iterable

from cima_runc.ima.template import unpack_cima_ng
from cima_runc.ml.records import IMA_TEMPLATE, Record, RecordError, template_data


def files_of_services(records: Iterable[Record]) -> dict[bytes, set[bytes]]:
    """Return the SHA-256 digests (32 bytes) of each path in partitions of dependencies.

    Files that the kernel did not measure are in it too, with the digest that the agent found:
    whether such a file may be there is another question than which one it is. A path without a
    digest is left out.

    Raises:
        RecordError, TemplateError: a record is not what it claims to be.
    """
    found: dict[bytes, set[bytes]] = {}
    for record in records:
        if record.content_type == IMA_TEMPLATE:
            digest, path, _, _ = unpack_cima_ng(template_data(record.content))
            found.setdefault(path, set()).add(digest)
            continue
        content = record.content
        path_hex, digest_hex = content.get("path_hex"), content.get("digest")
        if content.get("type") != "unmeasured":
            continue
        if isinstance(path_hex, str) and isinstance(digest_hex, str):
            try:
                path, digest = bytes.fromhex(path_hex), bytes.fromhex(digest_hex)
            except ValueError as error:
                raise RecordError(f"record {record.recnum}: not hexadecimal") from error
            found.setdefault(path, set()).add(digest)
    return found
