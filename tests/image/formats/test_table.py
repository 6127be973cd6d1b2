"""The documented table of formats is the code's."""

import runpy
from pathlib import Path

from wirt.image.registry import FORMATS

ROOT = Path(__file__).parents[3]


def test_the_documented_table_is_what_the_code_can_do():
    page = runpy.run_path(str(ROOT / "tools" / "formats.py"))["page"]()
    written = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    assert written == page, "run: python tools/formats.py docs/reference/formats.md"


def test_every_format_says_what_it_opens():
    assert all(known.images for known in FORMATS)
