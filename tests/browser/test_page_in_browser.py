"""The page of an evaluation as a reader uses it: sorted, filtered, compared, by keyboard, narrow, dark, offline."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from small_comparisons import comparison_of, params_with

from pipeline.report.page.evaluation import evaluation_page

pytestmark = pytest.mark.system

EVIL = ("<img src=x onerror=document.title='evil'>", "</script><script>document.title='evil'</script>", "a\"'&b")
MODELS = ("control", "gain_ext")
Show = Callable[..., Page]


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Opens a page from disk; at the end, that nothing was fetched and nothing went wrong."""
    pages, wrong = [], []

    def opened(width: int = 1200, colours: str = "light", shown: int = 6, variants=MODELS, **data: object) -> Page:
        params = params_with(variants, num_page_images=shown)
        path = tmp_path / "index.html"
        path.write_text(evaluation_page(comparison_of(params, **data), params), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert "evil" not in page.title()
        page.context.close()
    assert wrong == []


def changes(page: Page) -> list[float]:
    texts = page.locator(".card .change").all_text_contents()
    return [float(text.partition(": ")[2].split()[0]) for text in texts if text]


def numbers(page: Page, key: str) -> list:
    return page.locator(".card").evaluate_all(f"cards => cards.map(c => JSON.parse(c.dataset.numbers).gain_ext.{key})")


def test_cards_are_sorted_by_what_the_reader_asks(show):
    page = show(num_images=12, shown=12)
    sizes = [abs(change) for change in changes(page)]
    assert sizes == sorted(sizes, reverse=True)
    page.locator("#sort").select_option("hurt")
    assert changes(page) == sorted(changes(page))
    page.locator("#sort").select_option("failed")
    overlaps = [value for value in numbers(page, "iou") if value is not None]
    assert overlaps == sorted(overlaps)
    page.locator("#sort").select_option("wrong")
    right = numbers(page, "right")
    assert right == sorted(right)
    page.locator("#before").select_option("gain_ext")
    page.locator("#sort").select_option("changed")
    assert set(changes(page)) == {0.0}


def test_cards_are_filtered_by_set_class_and_size(show):
    page = show(num_images=12, shown=12)
    total = page.locator(".card").count()
    page.locator("#set").select_option("no_object_mean")
    expect(page.locator(".card")).to_have_count(6)
    expect(page.locator(".card").first).to_contain_text("must not be claimed")
    expect(page.locator("#count")).to_have_text(f"6 of {total} shown")
    page.locator("#set").select_option("test")
    page.locator("#class").select_option("dog")
    expect(page.locator(".card")).to_have_count(4)
    assert set(page.locator(".card h3 > span:first-child").all_text_contents()) == {"dog"}
    page.locator("#class").select_option("")
    page.locator("#size").select_option("small")
    expect(page.locator(".card")).to_have_count(4)  # a third of the objects


def test_two_models_are_compared_with_a_slider_by_keyboard(show):
    page = show()
    page.locator(".open").nth(1).focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#heading")).to_contain_text(f"(2 of {page.locator('.card').count()})")
    expect(page.locator("#left-numbers")).to_contain_text("control")
    before = page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.getElementById('canvas').toDataURL() !== before", arg=before)
    page.keyboard.press("n")
    expect(page.locator("#heading")).to_contain_text("(3 of")
    page.keyboard.press("p")
    expect(page.locator("#heading")).to_contain_text("(2 of")
    page.locator("#kind").select_option("prediction")
    page.locator("#left").select_option("pretrained")
    expect(page.locator("#left-numbers")).to_contain_text("pretrained")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "open"


def test_slider_shows_the_left_model_left_of_it(show):
    """At the right end the canvas is the left model's picture, at the left end the right model's."""
    page = show()
    page.locator(".open").first.click()
    expect(page.locator("#left-numbers")).to_contain_text("control")
    different = """value => {
        const slider = document.getElementById("slider");
        slider.value = value; slider.dispatchEvent(new Event("input"));
        return new Promise(done => setTimeout(() => {
            const canvas = document.getElementById("canvas");
            const drawn = canvas.getContext("2d").getImageData(4, 4, canvas.width - 8, canvas.height - 8).data;
            const figures = document.querySelectorAll(".card")[0].querySelectorAll("[data-kind=attention]");
            done([...figures].map(figure => {
                const other = document.createElement("canvas");
                [other.width, other.height] = [canvas.width, canvas.height];
                const context = other.getContext("2d");
                context.drawImage(figure.querySelector("img"), 0, 0);
                const data = context.getImageData(4, 4, canvas.width - 8, canvas.height - 8).data;
                return data.reduce((sum, byte, place) => sum + Math.abs(byte - drawn[place]), 0);
            }));
        }, 300));
    }"""
    _, control, gain_ext = page.evaluate(different, "100")
    assert control == 0 < gain_ext
    _, control, gain_ext = page.evaluate(different, "0")
    assert gain_ext == 0 < control


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_than_the_screen(show, width, colours):
    page = show(width, colours)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".open").first.click()
    box = page.locator("#dialog").bounding_box()
    assert box is not None
    assert box["width"] <= width


def test_text_can_be_read_in_light_and_dark(show):
    """Contrast of text with the page, by WCAG's formula: at least 4.5."""
    contrast = """() => {
        const luminance = (text) => {
            const [r, g, b] = text.match(/[\\d.]+/g).map(Number)
                .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = luminance(getComputedStyle(document.body).backgroundColor);
        return ["body", ".muted", ".better", ".worse"].map(name => document.querySelector(name)).filter(Boolean)
            .map(element => luminance(getComputedStyle(element).color))
            .map(ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
    }"""
    for colours in ("light", "dark"):
        assert min(show(colours=colours).evaluate(contrast)) >= 4.5


def test_every_picture_and_control_has_a_name(show):
    page = show()
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    unnamed = "controls => controls.filter(c => !c.labels?.length && !c.getAttribute('aria-label')).length"
    assert page.locator("select, input").evaluate_all(unnamed) == 0


def test_twenty_classes_and_two_hundred_images(show):
    names = tuple(f"class number {i}" for i in range(20))
    page = show(class_names=names, num_images=200, shown=200)
    expect(page.locator(".card")).to_have_count(200 + 2 * 6)
    page.locator("#class").select_option("class number 7")
    expect(page.locator("#count")).to_contain_text("of 212 shown")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


@pytest.mark.parametrize(
    "data",
    [
        {"class_names": EVIL},
        {"empty": True},
        {"class_names": ("cat",), "separated": False},
        {"variants": ()},
        {"size": (32, 900)},
        {"class_names": tuple(f"class{i}" for i in range(254)), "num_images": 8},
    ],
)
def test_odd_data_is_shown_without_an_error(show, data):
    page = show(**data)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    if page.locator(".open").count():
        page.locator(".open").first.click()
        expect(page.locator("#left-numbers")).not_to_be_empty()
