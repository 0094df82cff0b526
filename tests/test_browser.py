"""The lessons as a reader meets them: in JupyterLab, in a real browser. Run by `make test-browser`.

The browser is the Chromium that the environment variable CHROMIUM names, else `chromium` on the PATH, else the one that
`python -m playwright install chromium` downloads. Without any the tests fail: to pass, they must have looked.
Screenshots are kept in outputs/browser, or in the folder that BROWSER_SCREENSHOTS names.
"""

import base64
import functools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest

from helpers import clips
from helpers.forecast import forecast
from helpers.measure.meter import SECONDS_BETWEEN_UPDATES
from helpers.run_lesson import site as pages
from tests.notebook_style import ROOT
from tests.test_colours import PATCHES, stored

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTH, HEIGHT = 1280, 900
SETTINGS = {  # JupyterLab's, by file
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, not just those in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
LESSON_SECONDS = 300  # idle, two cores need less than a fifth of it
# Notes every picture that a cell shows while it runs: {cell's number: {picture's address}}.
WATCH = """() => {
    window.live = {};
    setInterval(() => document.querySelectorAll('.jp-Notebook .jp-Cell').forEach((cell, number) => {
        const running = cell.querySelector('.jp-InputPrompt')?.textContent.includes('*');
        if (!running) return;
        for (const image of cell.querySelectorAll('.jp-RenderedSVG img'))
            (window.live[number] ??= new Set()).add(image.src);
    }), 50);
}"""
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
    return prompts.length && prompts.every(prompt => /\\[\\d+\\]/.test(prompt.textContent));
}"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def screenshots():
    folder = Path(os.environ.get("BROWSER_SCREENSHOTS", ROOT / "outputs" / "browser"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import Error, sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in a container, where Chromium's sandbox does not start
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        except Error as error:
            pytest.fail(
                f"No Chromium could be started ({error.message.splitlines()[0]}). Install one, or name one in the "
                "environment variable CHROMIUM, or run `.venv/bin/python -m playwright install chromium`."
            )
        yield browser
        browser.close()


class Lab(NamedTuple):
    folder: Path
    address: str  # of the notebook whose name is filled in


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of this environment over a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns("outputs", ".*"))
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {
        f"JUPYTER{kind}_DIR": str(home / kind)
        for kind in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_WORKSPACES")
    }
    own["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    port, token = free_port(), secrets.token_hex(8)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'notebooks'}",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}/lab"
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, cwd=home, stdout=log, stderr=log)
        try:
            wait_for(address, server, home / "log")
            yield Lab(home / "notebooks", f"{address}/tree/{{}}.ipynb?token={token}&reset")
        finally:
            server.terminate()  # and with it the kernels
            server.wait(30)


def wait_for(address, server, log, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


class Lesson:
    """A notebook that has been opened in JupyterLab, and run from top to bottom."""

    def __init__(self, browser, address, name, screenshots):
        self.name, self._folder = name, screenshots
        self.ids = [cell.id for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells]
        self.page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # a kernel has been chosen and started
        self.page.evaluate(WATCH)
        self.menu("Run", "Run All Cells")
        self.page.wait_for_function(FINISHED, timeout=LESSON_SECONDS * 1000)

    def menu(self, *names):
        labels = self.page.locator(".lm-MenuBar-itemLabel, .lm-Menu-itemLabel")
        for name in names:
            labels.filter(has_text=re.compile(f"^{name}$")).last.click()

    def cell(self, identity):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(self.ids.index(identity))

    def chart(self, identity):
        """The text of the picture that a cell shows."""
        return unquote(self.cell(identity).locator(".jp-RenderedSVG img").last.get_attribute("src"))

    def wait_for_chart(self, identity, text):
        until = time.monotonic() + 60
        while text not in self.chart(identity):
            assert time.monotonic() < until, f"cell `{identity}` does not show {text!r}: {self.chart(identity)[:400]}"
            self.page.wait_for_timeout(100)

    def live(self, identity):
        """How many different pictures the cell has shown while it was running."""
        return self.page.evaluate(f"() => window.live[{self.ids.index(identity)}]?.size ?? 0")

    def outputs(self):
        """What the cells show: (kind, text) of each output."""
        return self.page.locator(".jp-OutputArea-output").evaluate_all(
            "outputs => outputs.map(one => [one.dataset.mimeType, one.innerText])"
        )

    def save(self, folder):
        self.menu("File", "Save Notebook")
        until = time.monotonic() + 30
        while not self._is_saved(folder / f"{self.name}.ipynb"):
            assert time.monotonic() < until, f"{self.name} was not saved"
            self.page.wait_for_timeout(200)

    @staticmethod
    def _is_saved(path):
        """Whether the file has outputs: JupyterLab empties it first, so it may be no notebook for a moment."""
        try:
            return any(cell.get("outputs") for cell in nbformat.read(path, 4).cells)
        except nbformat.reader.NotJSONError:
            return False

    def look(self, theme):
        """Keeps a picture of each output, as the reader sees it."""
        for number, identity in enumerate(self.ids):
            output = self.cell(identity).locator(".jp-Cell-outputArea")
            if output.count() and output.locator("img, video, table, .jupyter-widgets").count():
                output.screenshot(path=self._folder / f"{self.name}_{theme}_{number:02}_{identity}.png")


@pytest.fixture(scope="module")
def lesson(chromium, lab, screenshots):
    """Opens a lesson and runs it, once for all tests."""
    opened = functools.cache(lambda name: Lesson(chromium, lab.address.format(name), name, screenshots))
    yield opened


LESSONS = ["00_start_here", "01_ltx_video"]


@pytest.mark.parametrize("name", LESSONS)
def test_every_cell_runs_and_none_complains(lesson, name):
    complaints = [(kind, text) for kind, text in lesson(name).outputs() if re.search("error|stderr", kind or "")]
    assert complaints == []


@pytest.mark.parametrize(("name", "cell"), [("00_start_here", "meter-tensors"), ("01_ltx_video", "generate")])
def test_the_meters_chart_moves_while_its_cell_runs(lesson, name, cell):
    done = re.search(r"done, ([\d.]+) s", lesson(name).chart(cell))
    pauses = float(done[1]) / SECONDS_BETWEEN_UPDATES
    assert lesson(name).live(cell) >= max(2, pauses / 3)  # on a fast machine a cell is over before a third picture


def test_the_forecast_follows_the_planners_controls(lesson):
    opened = lesson("00_start_here")
    planner = opened.cell("planner")
    model, _, mode, slices, _ = planner.locator("select").all()
    frames, vram, _ = planner.get_by_role("slider").all()
    assert "Wan2.2 I2V-A14B in Q4_K_M, 640x384, 81 frames" in opened.chart("planner")

    model.select_option(label="LTX-Video")
    opened.wait_for_chart("planner", "LTX-Video, 768x512, 121 frames")
    frames.press("ArrowRight")
    opened.wait_for_chart("planner", "LTX-Video, 768x512, 129 frames")
    vram.press("ArrowLeft")
    opened.wait_for_chart("planner", "budget 10")
    slices.select_option(label="2,048 tokens")
    sliced = forecast("ltx_video", offload="none", width=768, height=512, num_frames=129, slice_tokens=2048)
    opened.wait_for_chart("planner", f"none         {sliced.peak_vram_gib:.2f}")
    slices.select_option(label="off")
    mode.select_option(label="group_leaf")
    opened.wait_for_chart("planner", "group_leaf")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", LESSONS)
def test_nothing_is_wider_than_its_place(lesson, name, theme):
    opened = lesson(name)
    opened.menu("Settings", "Theme", f"JupyterLab {theme.title()}")
    opened.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme.title()}']", state="attached")
    opened.look(theme)
    places = opened.page.locator(".jp-Cell-outputArea, .jupyter-widgets.widget-box, .jupyter-widgets.widget-label")
    wide = places.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText.slice(0, 80))"
    )
    assert wide == []


@pytest.fixture(scope="module")
def site(lab, lesson, tmp_path_factory):
    """The static site of what JupyterLab has saved."""
    out = tmp_path_factory.mktemp("site")
    for name in LESSONS:
        lesson(name).save(lab.folder)
    assert pages.main([*LESSONS, "--executed", str(lab.folder), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_opens_from_disk_and_asks_no_other_host(chromium, site, screenshots, scheme):
    context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error.message))
    page.goto((site / "index.html").as_uri())
    for name in LESSONS:
        page.locator(f"a[href='{name}.html']").click()
        page.wait_for_url(f"**/{name}.html")
        assert page.locator("h1").count() == 1
        assert page.locator("svg[role=img][aria-label]").count() >= 4
        pictures = page.locator("img")
        assert pictures.evaluate_all("all => all.every(one => one.alt && one.complete && one.naturalWidth > 0)")
        page.wait_for_function("() => [...document.querySelectorAll('video')].every(one => one.readyState > 0)")
        page.screenshot(path=screenshots / f"site_{name}_{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("nav a[href='index.html']").click()
        page.wait_for_url("**/index.html")
    page.screenshot(path=screenshots / f"site_index_{scheme}.png")
    assert page.locator("section img").count() == len(LESSONS)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"} and errors == []
    context.close()


# What the browser shows at some moments of a film: the colours in the middles of six patches, side by side.
COLOURS = """async ([address, moments]) => {
    const video = Object.assign(document.createElement('video'), {muted: true, src: address}), seen = [];
    for (const moment of moments) {
        await new Promise((done, failed) => {
            video.onseeked = done; video.onerror = failed; video.currentTime = moment;
        });
        const [width, height] = [video.videoWidth, video.videoHeight];
        const pen = Object.assign(document.createElement('canvas'), {width, height}).getContext('2d');
        pen.drawImage(video, 0, 0);
        seen.push([0, 1, 2, 3, 4, 5].map(patch => {
            return [...pen.getImageData((patch + 0.5) * width / 6, height / 2, 1, 1).data].slice(0, 3);
        }));
    }
    return seen;
}"""


def shown(page, path, moments):
    address = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    return np.array(page.evaluate(COLOURS, [address, moments]))


@pytest.mark.parametrize("size", [(384, 288), (1296, 720)])
@pytest.mark.parametrize("original", ["copy", "encode"])
def test_a_longer_clip_keeps_its_colours_in_the_browser(chromium, tmp_path, size, original):
    """A source without tags, which players take for BT.601 if it is small and for BT.709 if it is large."""
    matrix = "bt601" if size[1] < 720 else "bt709"
    source = stored(tmp_path / "source.mp4", size, f"scale=out_color_matrix={matrix},format=yuv420p")
    clip, page = clips.read(source), chromium.new_page()
    new, path = clip.frames[-1:].repeat(6, axis=0), tmp_path / "continued.mp4"
    made = clips.extend(clip, lambda: [new], rate=clip.rate, path=path, original=original)
    (given,), longer = shown(page, source, [0.4]), shown(page, made.path, [0.4, 1.5])  # its own half, the new one
    page.close()
    assert np.abs(longer - given).max() <= 3
    # Without a GPU it is up to 7 off in BT.709's blue, which its arithmetic cannot hold; a wrong matrix is 20 off.
    assert np.abs(longer - PATCHES).max() <= 8
