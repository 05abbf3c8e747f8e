"""Settings and pages: each setting says what it is for, and what a page shows can be set."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cima_runc import config
from cima_runc.fleet import settings as fleet_settings
from cima_runc.runtime import shim_settings
from cima_runc.verifier.policy import parse_policy

TOP = Path(__file__).resolve().parents[3]
PAGES = [*TOP.glob("*.md"), *(TOP / "docs").rglob("*.md"), *(TOP / "examples").rglob("*.md")]
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("module", [config, shim_settings])
def test_every_setting_says_what_it_is_for(module: Any) -> None:
    for tree in ast.parse(Path(module.__file__).read_text()).body:
        if not isinstance(tree, ast.ClassDef):
            continue
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and not ast.unparse(node).endswith("Settings()"):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert told, f"{tree.name}: {ast.unparse(node)}"


def test_every_section_is_on_the_page() -> None:
    sys.path.insert(0, str(TOP / "docs"))
    import generated

    page = generated.settings_page()
    assert isinstance(page, str)
    for key in (*fleet_settings.Settings.model_fields, *fleet_settings.Oidc.model_fields):
        assert f"| `{key}` |" in page, key


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page.stem}-{at}" for at, (page, _) in enumerate(BLOCKS)]
)
def test_what_a_page_shows_can_be_set(page: Path, block: str) -> None:
    block = block.replace("'…'", f"'{'0' * 64}'")
    if page.name == "policies.md":
        parse_policy(block.encode())
    elif page.name == "operate.md":
        fleet_settings.Settings.model_validate(tomllib.loads(block))
    else:
        config.parse_settings(tomllib.loads(block))


def test_there_are_blocks() -> None:
    assert len(BLOCKS) > 8
