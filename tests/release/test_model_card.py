"""What a model card makes of class names that a user chose."""

import re
from html import unescape

import pytest
from checkouts import REPOSITORY
from markdown_it import MarkdownIt

from pipeline.base.params import load_params
from pipeline.release.model_card import literal, model_card

NAMES = (
    "<script>alert(1)</script>",
    "<img/src=x/onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "**bold**",
    "_a_",
    "`code`",
    "a|b",
    "~~gone~~",
    "&lt;b&gt;",
    "back\\slash",
    "https://example.org",
    "a@example.org",
    "#tv_monitor-2.0",
    "chien-été",
)


def shown(html: str) -> str:
    """The text of a page without its tags."""
    return unescape(re.sub(r"<[^>]*>", "", html))


@pytest.mark.parametrize("dialect", ["commonmark", "js-default"])  # the second with tables, strikethrough
@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_as_it_is(name, dialect):
    assert MarkdownIt(dialect).render(f"Classes: {literal(name)}.") == MarkdownIt("zero").render(f"Classes: {name}.")


def test_card_shows_class_names_as_they_are():
    params = load_params(REPOSITORY / "params.yaml")
    card = model_card(params, "gain", NAMES, {"test": 8}, {"mean_iou": (0.5, 0.4, 0.6)}, "mean_iou 50.0")
    html = MarkdownIt("commonmark", {"html": True}).render(card)
    assert f"Classes: {', '.join(NAMES)}." in shown(html)
    assert {tag.strip("</>") for tag in re.findall(r"<[^>]*>", html)} == {"h1", "p", "strong"}


def test_usual_names_stay_readable_in_the_source():
    assert [literal(name) for name in ("cat", "dining-table", "tv/monitor", "v2.0")] == [
        "cat", "dining-table", "tv/monitor", "v2.0",
    ]  # fmt: skip
