"""A record as it is read from outside, and its content, which has the record's digest."""

import hashlib
from typing import Any

from cima_runc.evidence.fields import decode_base64
from cima_runc.ima.template import CIMA_NG, TemplateError, unpack_cima_ng
from cima_runc.ml import contents
from cima_runc.ml.contents import AnyContent, File
from cima_runc.ml.records import FIELDS, IMA_TEMPLATE, Record, RecordError, parse_fields
from cima_runc.verifier import errors
from cima_runc.verifier.steps.hints import REPORT


def read_record(value: Any) -> Record:
    """Return a record. Raises RecordFormatError."""
    try:
        return parse_fields(value)
    except RecordError as error:
        raise errors.RecordFormatError(error.what, hint=REPORT) from error


def file_at_once(value: Any, number: int, name: str) -> tuple[File, bytes] | None:
    """Return the file of the record ``number`` of ``name``, and the record's digest (32 bytes).

    None for a record of anything else, and for all that is wrong: :func:`read_record` and
    :func:`content_of` say what. Evidence may have hundreds of thousands of files.
    """
    try:
        content, digests, recnum = value["content"], value["digests"], value["recnum"]
        (only,) = digests
        # One comparison after the other: tuples of them take twice the time.
        if not (type(value) is type(content) is type(value["meta"]) is type(only) is dict):
            return None
        if len(value) != len(FIELDS) or len(content) != 2 or len(only) != 2:
            return None
        if type(digests) is not list or type(recnum) is not int or recnum != number:
            return None
        if value["cpcr"] != name or value["content_type"] != IMA_TEMPLATE:
            return None
        if content["template_name"] != CIMA_NG or only["hashAlg"] != "sha256":
            return None
        data = decode_base64(content["template_data"])
        digest = hashlib.sha256(data)
        if digest.hexdigest() != only["digest"]:
            return None
        return File._make(unpack_cima_ng(data)), digest.digest()
    except (KeyError, TypeError, ValueError, TemplateError):
        return None


def content_of(record: Record) -> AnyContent:
    """Return a record's content, which has the record's digest.

    Raises:
        RecordTypeError, RecordShapeError, RecordDigestError: it is not known, or not so.
    """
    try:
        content, digest = contents.read_with_digest(record)
    except contents.UnknownTypeError as error:
        what = f"record {record.recnum}: {error.what}"
        raise errors.RecordTypeError(what, hint=error.hint) from error
    except (contents.ShapeError, RecordError) as error:
        raise errors.RecordShapeError(
            f"record {record.recnum}: {error.what}", hint=REPORT
        ) from error
    if digest != record.digest:
        raise errors.RecordDigestError(
            f"the content of record {record.recnum} is not what was measured",
            expected=record.digest.hex(),
            found=digest.hex(),
            hint=REPORT,
        )
    return content
