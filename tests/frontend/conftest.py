"""One browser with one page for all tests of this folder; without one they skip, in CI they fail."""

import json
import os

import pytest
from support import stand_in


def unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def definitions(golden):
    return json.loads((golden / "object_info.json").read_text(encoding="utf-8"))


# Playwright keeps an event loop running in this thread, so it must end before tests of other folders start theirs.
@pytest.fixture(scope="module")
def front_end(definitions):
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("needs playwright: pip install playwright")
    static, browser = stand_in.static_folder(), stand_in.chromium()
    if static is None:
        unavailable("needs the front end: pip install comfyui-frontend-package")
    if browser is None:
        unavailable("needs Chromium: install it or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport=stand_in.SIZE, service_workers="block")
        app = stand_in.FrontEnd(page, static, definitions)
        app.start()
        yield app
        page.unroute_all(behavior="ignoreErrors")
        chromium.close()
