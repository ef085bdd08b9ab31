"""The picture of MLflow's UI in the README, from the runs of this checkout.

`python -m docs.screenshot`, with `gain ui` running in another shell and Debian's Chromium, writes docs/mlflow.webp.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from docs.build import QUALITY
from pipeline.tracking.saved_views import view_page

SIZE = {"width": 1400, "height": 1240}
SETTLE_MS = 6000  # until pictures and charts are drawn


def main(base: str = "http://127.0.0.1:5000", experiment_id: str = "1") -> None:
    """Open the view attention and keep what it shows."""
    target = Path(__file__).parent / "mlflow.webp"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        # Else an assistant opens over the page on the first visit.
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        page.goto(f"{base}/{view_page('attention', experiment_id)}")
        page.wait_for_timeout(SETTLE_MS)
        picture = Image.open(BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").save(target, "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
