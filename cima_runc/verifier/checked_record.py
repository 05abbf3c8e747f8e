"""A record as it is read from outside, and its content, which has the record's digest."""

from typing import Any

from cima_runc.ml import contents
from cima_runc.ml.contents import AnyContent
from cima_runc.ml.records import Record, RecordError, parse_fields
from cima_runc.verifier import errors
from cima_runc.verifier.steps.hints import REPORT


def read_record(value: Any) -> Record:
    """Return a record. Raises RecordFormatError."""
    try:
        return parse_fields(value)
    except RecordError as error:
        raise errors.RecordFormatError(error.what, hint=REPORT) from error


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
