"""The listening page: its rows and columns, levels and scales; and in Chromium, as a person uses it."""

import base64
import io
import json
import re
import time

import numpy as np
import pytest
from matplotlib.image import imread
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from soundmill.audio.flac import decode_flac, flac_rate, write_wav
from soundmill.audio.levels import integrated_loudness
from soundmill.listening import material, side_by_side
from tests import chromium
from tests.chromium import until
from tests.listening.test_material import MAKER, SECONDS, tone, write_models, write_report

SVG = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='2000' height='40'/%3E"
WIDE = f'<section class="panel paper"><img alt="" src="{SVG}"></section>'  # wider than any page
KL = {"soft": {"beep/1": 0.5, "beep/2": 1.5, "hiss/1": 2.5, "hiss/2": 3.5}, "wide": {"beep/1": 4.0, "beep/2": 3.0, "hiss/1": 1.0}}


def gathered(root, **kl: dict[str, float]) -> material.Material:
    """The models of `write_models`, with KL of single sounds by model."""
    opened = {name: material.open_folder(root / name) for name in ("real", "soft", "wide")}
    reports = {name: write_report(root / f"report_{name}", of) for name, of in kl.items()}
    models = [material.read_folder(name, opened[name], reports.get(name)) for name in ("soft", "wide")]
    return material.gather(models, material.folder_sounds(opened["real"]), material.folder_requests(opened["soft"], None))


@pytest.fixture
def page(tmp_path):
    write_models(tmp_path)
    written = side_by_side.write(tmp_path / "page.html", gathered(tmp_path, **KL), 40.0, above=WIDE)
    assert written.shown == ["beep/1", "beep/2", "hiss/1", "hiss/2"]
    assert not written.left_out + written.faults
    return tmp_path / "page.html"


def articles(text: str) -> list[str]:
    return re.findall(r"<article.*?</article>", text, re.S)


def flacs(text: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'src="data:audio/flac;base64,([^"]+)"', text)]


def waves(text: str) -> list[tuple[np.ndarray, int]]:
    return [(decode_flac(one), flac_rate(one)) for one in flacs(text)]


def test_a_row_for_each_request_at_one_loudness_and_on_one_scale(page):
    text = page.read_text(encoding="utf-8")
    rows = articles(text)
    assert [re.findall(r"<figcaption>([^<]*)", row) for row in rows] == [["real", "soft", "wide"]] * 3 + [["real", "soft", "–"]]
    assert "wide has no sound for 1 of 4 requests." in text
    for row in rows:
        heard = waves(row)
        loudness = [integrated_loudness(np.broadcast_to(wave, (2, wave.shape[1])), rate) for wave, rate in heard]
        np.testing.assert_allclose(loudness, side_by_side.LOUDNESS, atol=0.1)
        bright = []
        for data in re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', row):
            picture = imread(io.BytesIO(base64.b64decode(data)))[..., :3].sum(2)
            bright.append((int(picture.mean(1).argmax()), float(picture.max())))
        assert len({place for place, _ in bright}) == 1  # whatever the rate
        assert min(level for _, level in bright) > 0.9 * max(level for _, level in bright)
    gains = [float(gain) for gain in re.findall(r'note">([+-][\d.]+) dB', rows[0])]
    assert gains[1] - gains[0] == pytest.approx(20, abs=0.11)
    assert "dB · kl_yamnet 0.5</p>" in rows[0]
    assert {rate for _, rate in waves(text)} == {16_000, 44_100}
    assert max(len(wave) for wave, _ in waves(text)) == 2
    tagged = [[MAKER.software.encode() in one and MAKER.words.encode() in one for one in flacs(row)] for row in rows]
    assert tagged == [[False, True, False]] * 3 + [[False, True]]


def test_bytes_do_not_change_and_nothing_outside_is_asked_for(page, tmp_path):
    again = tmp_path / "again.html"
    (tmp_path / "report_soft").rename(tmp_path / "old")
    (tmp_path / "report_wide").rename(tmp_path / "older")
    side_by_side.write(again, gathered(tmp_path, **KL), 40.0, above=WIDE)
    assert again.read_bytes() == page.read_bytes()
    assert not re.search(r'(src|href)="(?!data:|#)', again.read_text(encoding="utf-8"))


def test_requests_that_do_not_fit_are_named(tmp_path):
    write_models(tmp_path)
    output = gathered(tmp_path)
    whole = side_by_side.write(tmp_path / "whole.html", output, 40.0)
    size = (tmp_path / "whole.html").stat().st_size / 1e6
    written = side_by_side.write(tmp_path / "page.html", output, 0.6 * size)
    assert 0 < len(written.shown) < len(whole.shown) == 4
    assert sorted(written.shown + written.left_out) == whole.shown
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(articles(text)) == len(written.shown)
    assert f"Left out to limit the size of this page: {', '.join(written.left_out)}." in text
    assert f"{len(written.shown)} of 4 requests" in text
    assert "No scores of single sounds for soft, wide." in text
    assert side_by_side.write(tmp_path / "one.html", output, 1e-6).shown == ["beep/1"]  # one in any case


def test_damaged_and_silent_sounds_are_named_and_hostile_names_are_text(tmp_path):
    write_models(tmp_path)
    evil = '"><script>alert(1)</script>'
    write_wav(tmp_path / "soft" / "beep" / "evil.wav", tone(500, 16_000), 16_000, json.dumps({"prompt": evil}))
    write_wav(tmp_path / "soft" / "beep" / "silent.wav", np.zeros(8_000, np.float32), 16_000)
    output = gathered(tmp_path)
    path = tmp_path / "soft" / "hiss" / "1.wav"
    path.write_bytes(path.read_bytes()[:100])
    written = side_by_side.write(tmp_path / "page.html", output, 40.0)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(written.shown) == 6
    assert any("hiss/1, soft: no player" in fault and "1.wav" in fault for fault in written.faults)
    assert evil not in text
    assert text.count("alert(1)") == 2  # in the row and in its facts, escaped


def playing(chrome) -> dict[str, float]:
    """Places in seconds of the players that play, by row and column."""
    return chrome.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('audio')].filter(player => !player.paused).map(player => "
        "[player.closest('article').querySelector('code').textContent + ' ' "
        "+ player.closest('figure').querySelector('figcaption').textContent, player.currentTime]))"
    )


def shown(chrome) -> list[str]:
    found = chrome.find_elements(By.CSS_SELECTOR, "article")
    return [article.find_element(By.TAG_NAME, "code").text for article in found if article.is_displayed()]


@pytest.mark.slow
def test_in_chromium_players_switch_at_the_same_place_and_rows_are_found(page, tmp_path):
    with chromium.browser() as chrome:
        drawn = chromium.draw(chrome, page, tmp_path / "page.png")
        assert drawn.seconds == [pytest.approx(SECONDS, abs=0.01)] * 11
        assert min(drawn.images) > 0
        body = chrome.find_element(By.TAG_NAME, "body")
        pictures = chrome.find_elements(By.CSS_SELECTOR, ".picture")

        pictures[1].click()
        until(chrome, lambda: playing(chrome).get("beep/1 soft", 0) > 0.3)
        began, before = time.monotonic(), playing(chrome)["beep/1 soft"]
        body.send_keys("3")
        until(chrome, lambda: "beep/1 wide" in playing(chrome))
        after = playing(chrome)
        assert list(after) == ["beep/1 wide"]  # one at a time
        assert before - 0.05 <= after["beep/1 wide"] <= before + (time.monotonic() - began) + 0.05
        body.send_keys(" ")
        until(chrome, lambda: not playing(chrome))
        chrome.execute_script("document.querySelectorAll('audio')[2].currentTime = 3")
        pictures[0].click()  # paused at a place: the next one goes on there
        until(chrome, lambda: playing(chrome).get("beep/1 real", 0) >= 3)
        pictures[0].click()  # in the middle, which is the place of 3 s
        assert 2.9 < playing(chrome)["beep/1 real"] < 5
        body.send_keys("j")
        until(chrome, lambda: list(playing(chrome)) == ["beep/2 real"])
        assert playing(chrome)["beep/2 real"] < 2  # another request begins at its beginning
        body.send_keys("k")
        until(chrome, lambda: list(playing(chrome)) == ["beep/1 real"])
        body.send_keys(" ")
        until(chrome, lambda: not playing(chrome))
        place = "return document.querySelectorAll('audio')[0].currentTime"
        body.send_keys(Keys.HOME)
        assert chrome.execute_script(place) == 0
        body.send_keys(Keys.ARROW_RIGHT)
        assert chrome.execute_script(place) == 1
        pictures[9].send_keys(Keys.ENTER)  # reached by the keyboard alone
        until(chrome, lambda: list(playing(chrome)) == ["hiss/2 real"])
        body.send_keys("r")
        assert chrome.find_element(By.NAME, "repeat").is_selected()
        assert chrome.execute_script("return [...document.querySelectorAll('audio')].every(player => player.loop)")

        search = chrome.find_element(By.NAME, "text")
        search.send_keys("beep 2")  # digits in a field are no columns
        assert shown(chrome) == ["beep/2"]
        until(chrome, lambda: not playing(chrome))  # what is hidden is not heard
        search.send_keys(Keys.CONTROL + "a", Keys.DELETE)
        label = Select(chrome.find_element(By.NAME, "label"))
        label.select_by_value("hiss")
        assert shown(chrome) == ["hiss/1", "hiss/2"]
        label.select_by_value("")
        Select(chrome.find_element(By.NAME, "score")).select_by_value("kl_yamnet wide")
        assert shown(chrome) == ["beep/1", "beep/2", "hiss/1"]  # those that have it
        Select(chrome.find_element(By.NAME, "order")).select_by_value("up")
        assert shown(chrome) == ["hiss/1", "beep/2", "beep/1"]
        chrome.execute_script("document.activeElement.blur()")  # keys are the field's as long as it has them
        body.send_keys(" ")  # what played is hidden: the first that is not
        until(chrome, lambda: list(playing(chrome)) == ["hiss/1 real"])
        body.send_keys("j")  # in the order that is seen
        until(chrome, lambda: list(playing(chrome)) == ["beep/2 real"])
        body.send_keys("l")
        until(chrome, lambda: list(playing(chrome)) == ["beep/2 soft"])
        body.send_keys("h")
        until(chrome, lambda: list(playing(chrome)) == ["beep/2 real"])
        chrome.find_element(By.NAME, "high").send_keys("3.5")
        assert shown(chrome) == ["hiss/1", "beep/2"]
        assert chrome.find_element(By.TAG_NAME, "output").text == "2 of 4 rows"
        chrome.find_elements(By.NAME, "column")[1].click()
        captions = [one.text for one in chrome.find_elements(By.TAG_NAME, "figcaption") if one.is_displayed()]
        assert captions == ["real", "wide"] * 2

        chromium.be_a_phone(chrome)
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 360
        chrome.save_screenshot(tmp_path / "phone.png")
        assert chromium.complaints(chrome) == []
