"""The page in a real browser: nothing fetched, logged or cut off, and legible, on a phone and on a desktop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qray.words.document import Document

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="no chromium and chromedriver on PATH",
    ),
]
webdriver = pytest.importorskip("selenium.webdriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
#: WCAG 2.2, success criteria 1.4.3: the least contrast of text.
LEAST_CONTRAST = 4.5
#: Of words in a plot, in CSS pixels.
LEAST_TEXT_PX = 8.5


@dataclass(frozen=True)
class Shown:
    """The page as one reader sees it, and what the browser noted while loading it."""

    driver: Any
    logged: list[str]
    requested: list[str]

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture(scope="module")
def page(full_report: tuple[Path, Document]) -> Path:
    return full_report[0] / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(
    scope="module",
    params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")],
    ids=lambda at: f"{at[0]} px, {at[1]}",
)
def shown(request: pytest.FixtureRequest, browser: Any, page: Path) -> Shown:
    width, scheme = request.param
    height, phone = (844, True) if width < 500 else (900, False)
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    logged = [entry["message"] for entry in browser.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return Shown(browser, logged, requested)


def test_the_console_stays_empty(shown: Shown) -> None:
    assert shown.logged == []


def test_nothing_is_fetched_but_the_page(shown: Shown, page: Path) -> None:
    # "chrome:" is of the tab that the browser opens with, which may still be loading.
    assert [url for url in shown.requested if not url.startswith(("data:", "chrome:"))] == [page.as_uri()]


def test_the_page_does_not_scroll_sideways(shown: Shown) -> None:
    assert shown.ask("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_verdict_is_seen_without_scrolling(shown: Shown) -> None:
    bottom = "return document.querySelector('#verdict p').getBoundingClientRect().bottom <= window.innerHeight"
    assert shown.ask(bottom)
    assert "Ship ptq-openvino" in shown.ask("return document.querySelector('#verdict h2').innerText")


def test_text_stands_out_from_what_is_behind_it(shown: Shown) -> None:
    found = shown.ask(CONTRAST)
    assert found["looked_at"] > 200
    assert [item for item in found["texts"] if item["contrast"] < LEAST_CONTRAST] == []


def test_no_word_of_a_plot_is_cut_off(shown: Shown) -> None:
    assert shown.ask(CUT_OFF) == []


def test_words_of_a_plot_can_be_read(shown: Shown) -> None:
    assert shown.ask(SMALLEST_TEXT) >= LEAST_TEXT_PX


def test_no_two_ids_are_the_same(shown: Shown) -> None:
    ids = shown.ask("return Array.from(document.querySelectorAll('[id]'), (e) => e.id)")
    assert sorted(ids) == sorted(set(ids))


def test_pictures_of_clips_are_there(shown: Shown) -> None:
    widths = shown.ask("return Array.from(document.images, (image) => image.naturalWidth)")
    assert len(widths) > 0
    assert min(widths) > 0


def test_a_press_on_a_heading_sorts_the_table(shown: Shown) -> None:
    sort = """
      const table = document.querySelector("table"), column = Array.from(table.rows[0].cells)
        .findIndex((head) => head.innerText.startsWith("MB"));
      table.rows[0].cells[column].querySelector("button").click();
      return Array.from(table.tBodies[0].rows, (row) => row.cells[column].innerText).filter((t) => t !== "–");"""
    sizes = [float(text) for text in shown.ask(sort)]
    assert len(sizes) > 5
    assert sizes == sorted(sizes)


#: Relative luminance and contrast ratio as WCAG 2.2 defines them; text of plots is filled, other text coloured.
CONTRAST = """
const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
for (const fold of document.querySelectorAll("details")) fold.open = true;
const texts = [];
for (const e of document.querySelectorAll("h1, h2, p, li, th, td span, a, summary, code, figcaption, button, text")) {
  if (!e.textContent.trim() || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), own = parse(e.tagName === "text" ? style.fill : style.color);
  const [a, b] = [light(own), light(behind(e))].sort((x, y) => y - x);
  texts.push({text: e.textContent.trim().slice(0, 40), contrast: (a + 0.05) / (b + 0.05)});
}
return {looked_at: texts.length, texts: texts.filter((t) => t.contrast < 7)};
"""
CUT_OFF = """
for (const fold of document.querySelectorAll("details")) fold.open = true;
const cut = [];
for (const plot of document.querySelectorAll("svg.plot")) {
  const frame = plot.getBoundingClientRect();
  for (const text of plot.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
        box.bottom > frame.bottom + 1) cut.push(plot.getAttribute("aria-label").slice(0, 30) + ": " + text.textContent);
  }
}
return cut;
"""
SMALLEST_TEXT = """
for (const fold of document.querySelectorAll("details")) fold.open = true;
const sizes = Array.from(document.querySelectorAll("svg.plot text"), (text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a);
return Math.min(...sizes);
"""
