"""The listening test in Chromium, as a rater takes it, from the first click to the score."""

import json
import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from soundmill.audio.flac import write_wav
from soundmill.listening import answers
from tests import chromium
from tests.commands.running import soundmill
from tests.listening.test_answers import answered, write
from tests.listening.test_material import HERTZ, tone

SECONDS = 0.1
LIKED = {"mine": 3, "real": 5, "bad": 1}


@pytest.fixture
def sounds(tmp_path):
    for side, level in (("mine", 0.05), ("real", 0.2), ("other", 0.1)):
        for name, hertz in list(HERTZ.items())[:3]:
            write_wav(tmp_path / side / f"{name}.wav", tone(hertz, 16_000, level, SECONDS), 16_000)
    return tmp_path


def make(sounds, output: str, *arguments: str):
    done = soundmill("listening-test", "new", *arguments, "--reference", "real", "--per-model", "3", "--output", output, cwd=sounds)
    assert done.returncode == 0, done.stderr
    return sounds / output / "test.html", answers.read_key(sounds / output / "key.json")


def until(chrome, condition) -> None:
    WebDriverWait(chrome, 20, 0.02).until(lambda _: condition())


def start(chrome, page, rater: int) -> None:
    """Through the volume check, which takes no wrong count."""
    chrome.get(page.as_uri())
    chrome.find_element(By.ID, "rater").send_keys(str(rater))
    chrome.find_element(By.ID, "beeps").send_keys("99")
    chrome.find_element(By.CSS_SELECTOR, ".next").click()
    assert "Turn the volume up" in chrome.find_element(By.CSS_SELECTOR, "[role=alert]").text
    count = json.loads(chrome.execute_script("return document.getElementById('content').textContent"))["beeps"]
    chrome.find_element(By.ID, "beeps").clear()
    chrome.find_element(By.ID, "beeps").send_keys(str(count))
    chrome.find_element(By.CSS_SELECTOR, ".next").click()
    until(chrome, lambda: "of" in chrome.find_element(By.CSS_SELECTOR, "#stage .soft").text)


def hear(chrome) -> None:
    """Every sound of a trial to its end."""
    for player in chrome.find_elements(By.CSS_SELECTOR, ".player"):
        player.find_element(By.TAG_NAME, "button").click()
        until(chrome, lambda player=player: player.find_element(By.TAG_NAME, "progress").get_property("value") == 1)


def go_on(chrome) -> None:
    button = chrome.find_element(By.CSS_SELECTOR, ".next")
    assert button.is_enabled()
    button.click()


@pytest.mark.slow
def test_from_the_first_click_to_the_score(sounds, tmp_path):
    page, key = make(sounds, "test", "mine", "--questions", "quality,relevance")
    order = key.order_of(2)
    with chromium.browser() as chrome:
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "down")})
        chromium.be_a_phone(chrome)
        chrome.get(page.as_uri())
        chrome.save_screenshot(tmp_path / "welcome.png")
        start(chrome, page, 2)
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 360
        for place, names in enumerate(order):
            (sound,) = (key.sounds[name] for name in names)
            assert chrome.find_element(By.CSS_SELECTOR, "#stage .soft").text == f"{place + 1} of {len(order)}"
            assert chrome.find_element(By.CSS_SELECTOR, ".text").text == f"“{sound.request.partition('/')[0]}”"
            for question in ("quality", "relevance"):
                choices = chrome.find_elements(By.CSS_SELECTOR, f"input[name={question}]")
                choices[LIKED[sound.system] - 1].click()
            assert not chrome.find_element(By.CSS_SELECTOR, ".next").is_enabled()  # not heard yet
            hear(chrome)
            if place == 1:
                chrome.save_screenshot(tmp_path / "trial.png")
            go_on(chrome)
            if place == 4:
                start(chrome, page, 2)  # a reload resumes the test
        until(chrome, lambda: "last sound" in chrome.find_element(By.ID, "stage").text)
        chrome.find_element(By.CSS_SELECTOR, ".next").click()
        saved = tmp_path / "down" / f"answers-{key.test}-2.json"
        deadline = time.monotonic() + 20
        while not saved.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert chromium.complaints(chrome) == []

    liked_more = answered(key, 1, lambda question, systems, *_: LIKED[systems[0]] + (systems == ["mine"]))
    files = [str(saved), str(write(tmp_path / "other.json", liked_more))]
    done = soundmill("listening-test", "score", *files, "--key", "test/key.json", "--json", "score.json", cwd=sounds)
    assert done.returncode == 0, done.stderr
    result = json.loads((sounds / "score.json").read_text())
    assert result["raters"] == {"passed": [1, 2], "failed": {}}
    for question in ("quality", "relevance"):
        means = {name: one["mean"] for name, one in result["questions"][question]["means"].items()}
        assert means == {"mine": 3.5, "real": 5.0}  # 3 in the browser, 4 in the other file
    for shown in ("mine − real", "3.5", "agreement of raters"):
        assert shown in done.stdout


@pytest.mark.slow
def test_a_scale_of_a_hundred_and_comparisons(sounds, tmp_path):
    wide, wide_key = make(sounds, "wide", "mine", "--questions", "similarity", "--scale", "100")
    (sounds / "own.yaml").write_text("dryness: {rate: How dry, compare: Which is drier, labels: [a, b, c, d, e], repeat: 2}")
    pairs, pairs_key = make(sounds, "pairs", "mine", "other", "--questions", "quality,dryness", "--own", "own.yaml", "--ab")
    with chromium.browser() as chrome:
        start(chrome, wide, 1)
        hear(chrome)  # the reference, too
        assert not chrome.find_element(By.CSS_SELECTOR, ".next").is_enabled()
        slider = chrome.find_element(By.CSS_SELECTOR, "input[type=range]")
        slider.click()  # its middle, where it stood: that is an answer
        assert chrome.find_element(By.CSS_SELECTOR, ".ends output").text in ("50", "51")
        go_on(chrome)
        kept = chrome.execute_script("return localStorage.getItem(Object.keys(localStorage)[0])")
        assert json.loads(kept)[0]["sounds"] == wide_key.order_of(1)[0]
        assert json.loads(kept)[0]["similarity"] in (50, 51)

        start(chrome, pairs, 3)
        hear(chrome)
        assert len(chrome.find_elements(By.CSS_SELECTOR, ".player")) == 2
        chrome.find_element(By.TAG_NAME, "body").send_keys("3")  # B, of the first question
        chrome.find_element(By.TAG_NAME, "body").send_keys("2")
        chrome.save_screenshot(tmp_path / "pair.png")
        go_on(chrome)
        kept = chrome.execute_script(f"return localStorage.getItem('soundmill listening test {pairs_key.test} 3')")
        assert json.loads(kept) == [{"sounds": pairs_key.order_of(3)[0], "quality": "second", "dryness": "same"}]
        assert chromium.complaints(chrome) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--questions", "beauty"],
            "--questions: 'beauty' is not one of quality, relevance, similarity, loopability, drummability",
        ),
        (["--scale", "10"], "--scale 10: must be 5 or 100"),
        (["--scale", "100", "--ab"], "--ab and --scale"),
    ],
)
def test_mistakes_are_named(sounds, arguments, message):
    done = soundmill("listening-test", "new", "mine", "--reference", "real", *arguments, cwd=sounds)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (sounds / "listening-test").exists()
