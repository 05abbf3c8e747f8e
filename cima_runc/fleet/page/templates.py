"""How views become HTML: everything is escaped, for HTML and for eyes."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cima_runc.base.text import printable

_SYMBOLS = {"TRUSTED": "✓", "UNTRUSTED": "✗", "STALE": "◷", "UNKNOWN": "?"}
_LONG = 100_000


def visible(value: Any) -> str:
    """Return text in which each character is seen: control and format characters are escaped.

    What is printable stays as it is, for it was escaped where it was read.
    """
    text = str(value)
    return "".join(one if one.isprintable() else printable(one) for one in text)


def pretty(value: Any) -> Markup:
    """Return JSON on lines of its own: ASCII, and not more than a page holds."""
    text = json.dumps(value, indent=1, sort_keys=True)
    cut = "" if len(text) <= _LONG else "\n… (cut: the API has all)"
    # Its line ends are ours: JSON escapes those of others.
    return escape(text[:_LONG] + cut)


def compact(value: Any) -> str:
    """Return JSON on one line."""
    return short(json.dumps(value, sort_keys=True), 2_000)


def short(value: Any, length: int = 12) -> str:
    """Return the beginning of an identifier."""
    text = visible(value)
    return text if len(text) <= length else text[:length] + "…"


def _finalize(value: Any) -> Any:
    # Markup is what templates make themselves; all else goes through here.
    return visible(value) if type(value) is str else value


ENVIRONMENT = Environment(
    loader=PackageLoader("cima_runc.fleet.page", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalize,
)
ENVIRONMENT.filters |= {"pretty": pretty, "compact": compact, "short": short}
ENVIRONMENT.globals |= {"symbols": _SYMBOLS}


def render(name: str, **values: Any) -> str:
    """Return a template as HTML."""
    return ENVIRONMENT.get_template(f"{name}.html").render(**values)
