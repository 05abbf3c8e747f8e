"""Every reason that our models can give is in words for people."""

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from cima_runc.validation import first_of, first_of_request


class Of(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["a", "b"] = "a"
    number: Annotated[int, Field(ge=1, lt=5)] = 1
    names: Annotated[tuple[str, ...], Field(max_length=2, strict=False)] = ()
    text: Annotated[str, Field(pattern="^x+$", max_length=3)] = "x"
    forms: tuple[Annotated[str, AfterValidator(str.strip)] | Literal[2], ...] = ()

    @field_validator("text")
    @classmethod
    def _check(cls, value: str) -> str:
        if value == "xx":
            raise ValueError("two of them are one too many")
        return value


def told(value: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Of).validate_python(value)
    return first_of(refused.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "c"}, "kind is none of 'a' or 'b'"),
        ({"number": 0}, "number is below 1"),
        ({"number": 5}, "number is not below 5"),
        ({"number": "1"}, "number is not a whole number"),
        ({"names": 7}, "names is not a list"),
        ({"names": ["a", "b", "c"]}, "names has more than 2 entries"),
        ({"text": "y"}, "text has not the form that it should have"),
        ({"text": "xxxx"}, "text is too long"),
        ({"text": "xx"}, "text is not allowed: two of them are one too many"),
        ({"forms": ("a", 3)}, "forms.1 is not a text"),
        ({"more": 1}, "more is not known"),
        ([], "the whole is not an object with keys"),
    ],
)
def test_words(value: Any, words: str) -> None:
    assert told(value) == words


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Of).validate_json(b"\x1b[31m")
    assert first_of(refused.value) == "it is not JSON"


@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=3))
def test_names_of_the_sender_are_escaped_and_short(value: dict[str, str]) -> None:
    try:
        TypeAdapter(Of).validate_python(value)
    except ValidationError as error:
        shown = first_of(error)
        assert shown.isprintable() and len(shown) < 2000


@given(st.lists(st.text(st.characters(categories=None))), st.text(st.characters(categories=None)))
def test_what_is_wrong_with_a_request_can_be_said_in_json(place: list[str], told: str) -> None:
    """Of lone surrogates, too, none can be made: the service answered with a fault of its own."""
    shown = first_of_request([{"loc": ("body", *place), "msg": told}])
    assert shown.isprintable() and shown.encode("utf-8").startswith(b"body")
