"""Pages as a person sees them: opened in Debian's headless Chromium."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

# Without the name server, so that what asks for the outside fails fast; without the sandbox, which root may not have.
NOTHING_OUTSIDE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", NOTHING_OUTSIDE)
LOADED = """
const players = [...document.querySelectorAll('audio')];
players.filter(player => player.readyState == 0 && player.preload != 'metadata')
       .forEach(player => { player.preload = 'metadata'; player.load(); });
return document.readyState == 'complete' && players.every(player => player.readyState > 0 || player.error);
"""
DRAWN = """
const height = element => element.getBoundingClientRect().height;
return {
    title: document.title,
    text: document.body.innerText,
    seconds: [...document.querySelectorAll('audio')].map(player => player.duration || 0),
    tables: [...document.querySelectorAll('table')].map(height),
    images: [...document.images].map(image => image.naturalWidth && height(image)),
};
"""


@dataclass(frozen=True)
class Drawn:
    """What a page shows: its visible text, the players' seconds, heights in pixels of tables and images (0: not drawn)."""

    title: str
    text: str
    seconds: list[float]
    tables: list[float]
    images: list[float]


def until(chrome: webdriver.Chrome, condition: Callable[[], object], seconds: float = 20) -> None:
    WebDriverWait(chrome, seconds, 0.02).until(lambda _: condition())


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Skips where Chromium is not installed; where SOUNDMILL_CHROMIUM=required, as .ci/run sets it, that fails."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "needs Chromium: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("SOUNDMILL_CHROMIUM") == "required" else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as place:  # it leaves its sockets there
        with webdriver.Chrome(options, Service(driver, env={**os.environ, "TMPDIR": place})) as chrome:
            yield chrome


def draw(chrome: webdriver.Chrome, page: Path, screenshot: Path) -> Drawn:
    """Open a page, fail if it says an error or asks for anything outside its directory, and write a picture of it."""
    chrome.set_window_size(1280, 2000)
    chrome.get(page.resolve().as_uri())
    WebDriverWait(chrome, 60).until(lambda _: chrome.execute_script(LOADED))
    assert chrome.save_screenshot(screenshot)
    faults = [entry["message"] for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not faults, faults
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    addresses = {message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"}
    inside = (page.resolve().parent.as_uri(), "data:", "blob:")
    assert page.resolve().as_uri() in addresses
    assert not [address for address in addresses if not address.startswith(inside)]
    return Drawn(**chrome.execute_script(DRAWN))


def be_a_phone(chrome: webdriver.Chrome) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def complaints(chrome: webdriver.Chrome) -> list[dict]:
    return [entry for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
