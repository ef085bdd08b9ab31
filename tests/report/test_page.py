"""The page of an evaluation as a file: complete in itself, escaped, with every number; in a browser: tests/browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from small_comparisons import comparison_of, params_with

from pipeline.report.page.evaluation import MEANINGS, evaluation_page
from pipeline.report.tables import COLUMNS

EVIL = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"'&{{ 7*7 }}")


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):  # noqa: ARG002
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("script", "style", "title"):
            self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(names=("control", "gain_ext"), classes=("cat", "dog", "fox"), **options) -> str:
    params = params_with(names, num_page_images=options.pop("shown", 6))
    return evaluation_page(comparison_of(params, classes, **options), params)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of()


def test_page_loads_nothing_and_runs_only_its_own_script(page):
    parsed = Parsed(page)
    sources = [attributes[key] for _, attributes in parsed.tags for key in ("src", "href") if key in attributes]
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.texts[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [key for _, attributes in parsed.tags for key in attributes if key == "style" or key.startswith("on")]


def test_page_shows_every_pair_with_every_model(page):
    parsed = Parsed(page)
    cards = [a for a in parsed.all("article") if a.get("class") == "card"]
    assert len(cards) == 6 + 2 * 6
    figures = [a.get("data-model") for a in parsed.all("figure") if a.get("data-kind") == "attention"]
    assert figures == ["pretrained", "control", "gain_ext"] * len(cards)
    assert all(a.get("alt") for a in parsed.all("img"))
    assert {a["data-set"] for a in cards} == {"test", "mixed_rand", "no_object_mean"}


def test_page_is_the_same_each_time(page):
    assert page_of() == page


def test_every_score_of_the_table_is_explained():
    assert set(MEANINGS) == set(COLUMNS.values())


def test_class_names_are_text(page):
    evil = page_of(classes=EVIL)
    assert [name for name, _ in Parsed(evil).tags if name == "script"] == ["script"]
    assert not [a for a in Parsed(evil).all("img") if "onerror" in a]
    assert "{{ 7*7 }}" in evil


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"empty": True}, "No image of any set shows a class"),
        ({"empty": True}, "No test image shows an object with a mask"),
        ({"names": ()}, "There is no model to compare with pretrained"),
        ({"names": ("gain_ext",)}, "gain_ext, compared with pretrained"),
        ({"classes": ("cat",)}, "<b>cat</b>"),
        ({"classes": tuple(f"class{i}" for i in range(254)), "num_images": 8}, "class253"),
        ({"size": (32, 600)}, "x5"),
        ({"num_images": 1}, "x0"),
    ],
)
def test_odd_data_has_a_page_or_a_sentence(options, sentence):
    page = page_of(**options)
    assert sentence in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().replace("content-", "")


def test_page_stays_small():
    page = page_of(size=(128, 128), num_images=60, shown=60)
    assert page.count('<article class="card"') == 60 + 2 * 6
    assert len(page) < 5e6 * 72 / 130  # of 60 images that show a class or two, and of more sets, there are 130 cards
