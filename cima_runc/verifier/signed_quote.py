"""A quote that an attestation key has signed, and that its TPM made."""

from cima_runc.evidence.models import QuotePart
from cima_runc.tpm.structures import (
    NotAQuoteError,
    NotGeneratedError,
    PublicArea,
    QuoteBody,
    StructureError,
    parse_quote,
    parse_signature,
    signed_by,
)
from cima_runc.verifier import errors
from cima_runc.verifier.steps.hints import REPORT


def signed_quote(quote: QuotePart, public: PublicArea) -> QuoteBody:
    """Return what was quoted; first of all it is signed by the key, of the endorsement hierarchy.

    Raises:
        SignatureError, QuoteMagicError, QuoteTypeError, QuoteFormatError, AkHierarchyError: it is
            not.
    """
    try:
        signature = parse_signature(quote.signature)
    except StructureError as error:
        raise errors.SignatureError(error.what, hint=error.hint) from error
    if not signed_by(public.key, signature, quote.attest):
        raise errors.SignatureError(
            "the quote is not signed by the attestation key",
            expected=f"a signature of {public.name.hex()}",
            found="another signature",
            hint=REPORT,
        )
    try:
        body = parse_quote(quote.attest)
    except NotGeneratedError as error:
        raise errors.QuoteMagicError(error.what, hint=REPORT) from error
    except NotAQuoteError as error:
        raise errors.QuoteTypeError(error.what, hint=REPORT) from error
    except StructureError as error:
        raise errors.QuoteFormatError(error.what, hint=REPORT) from error
    if body.qualified_signer != public.endorsement_qualified_name:
        raise errors.AkHierarchyError(
            "the attestation key is no primary key of the endorsement hierarchy",
            expected=public.endorsement_qualified_name.hex(),
            found=body.qualified_signer.hex(),
            hint="other hierarchies obscure resetCount: enrol a key made by cima-agent",
        )
    return body
