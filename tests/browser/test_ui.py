"""The comparison as a person sees it: the runs of `dvc repro` and one `dvc exp run` in MLflow's UI, in a browser."""

import sys
from collections.abc import Iterator

import pytest
from checkouts import becomes, dvc, environment, git_checkout
from playwright.sync_api import Browser, Page, expect
from servers import free_port, running

pytestmark = pytest.mark.system

CHANGE = "profiles.smoke.variants.gain_ext.loss_weights.external_supervision=5.0"
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Name to address of the saved views, as `gain ui` prints them, while it shows a pipeline run and an experiment."""
    folder = git_checkout(tmp_path_factory.mktemp("ui") / "repo")
    for command in (["repro"], ["exp", "run", "--name", "weaker", "-S", CHANGE]):
        result = dvc(folder, *command)
        assert result.returncode == 0, result.stdout + result.stderr
    port, log = free_port(), folder / "ui.log"
    command = [sys.executable, "-m", "pipeline.cli.main", "ui", "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}/health", log, cwd=folder, env=environment(folder)):
        assert becomes(lambda: "attention: " in log.read_text())
        lines = [line.partition(": ") for line in log.read_text().splitlines() if "viewStateShareKey" in line]
        yield {name: address for name, _, address in lines}


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1600, "height": 1300})
    # Else an assistant opens over the page on the first visit.
    page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    yield page
    page.close()


def show(page: Page, address: str) -> None:
    """Open an address; the page's own router would ignore a change of what stands behind the number sign."""
    page.goto("about:blank")
    page.goto(address)


def test_table_of_runs_has_names_scores_and_versions(page, views):
    show(page, views["scores"])
    for name in ("control-seed0", "gain-seed0", "gain_ext-seed0", "gain_ext-seed0-weaker"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    for metric in ("mean IoU", "attention IoU", "macro F1"):
        expect(page.get_by_text(metric, exact=True).first).to_be_attached()
    expect(page.get_by_role("link", name="fcn8s-gain-smoke").first).to_be_visible()


def test_attention_lies_side_by_side_with_a_slider_over_epochs(page, views):
    show(page, views["attention"])
    pictures = page.locator("img[src*='images']")
    expect(pictures.nth(3)).to_be_visible()
    assert becomes(lambda: pictures.evaluate_all("found => found.every(image => image.naturalWidth > 100)"))
    expect(page.get_by_role("slider").first).to_be_visible()
    for chart in ("loss/total", "val/mean_iou", "val/attention_iou"):
        expect(page.get_by_text(chart, exact=True).first).to_be_attached()


def test_comparison_shows_what_differs(page, views):
    show(page, views["scores"])
    for name in ("gain_ext-seed0", "gain_ext-seed0-weaker"):
        row = page.get_by_role("link", name=name, exact=True).locator("xpath=ancestor::*[@role='row']")
        row.locator("input.ag-checkbox-input").check(force=True)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
    expect(page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
    page.get_by_role("switch").first.click()
    expect(page.get_by_text("finetune.loss_weights.external_supervision", exact=True).last).to_be_visible()
    expect(page.get_by_text("finetune.batch_size", exact=True)).to_have_count(0)
    expect(page.get_by_text("attention IoU", exact=True).last).to_be_attached()


def test_run_says_what_came_of_it_and_how_to_get_it_again(page, views):
    show(page, views["scores"])
    page.get_by_role("link", name="gain_ext-seed0-weaker", exact=True).click()
    expect(page.get_by_text("dvc exp apply weaker")).to_be_visible()
    expect(page.get_by_role("columnheader", name="attention IoU", exact=True).first).to_be_visible()
    expect(page.get_by_text("embedded", exact=False).first).to_be_visible()


def test_registered_version_has_its_card(page, views):
    show(page, views["scores"].partition("#")[0] + "#/models/fcn8s-gain-smoke")
    expect(page.get_by_text("@ challenger").first).to_be_visible()
    page.get_by_role("link", name="Version 1", exact=True).click()
    expect(page.get_by_text("Licence", exact=False).first).to_be_visible()
