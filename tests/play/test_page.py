"""What a person does on the page of `soundmill play`, in Chromium, on small checkpoints: make, change, compare, keep."""

import io
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from gradio_client import Client
from gradio_client.exceptions import AppError
from mlflow import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from soundmill import hashing, manifest, params, tracking
from soundmill.listening import answers, scoring
from soundmill.models import generation
from soundmill.play import making, page, real
from soundmill.play.checkpoints import Found, Models, find, of_registry
from tests.chromium import browser
from tests.commands.running import soundmill, works
from tests.mlflow_server import free_port
from tests.prepared import sound, wave_of, write_rows, write_sounds

pytestmark = pytest.mark.slow(minutes=2)
HOSTILE = "<img src=x onerror=\"document.title='run'\">"
MEL, WAVES, ODD = (f"data/models/{name}" for name in ("ddpm_mel", "waveform_unet", "odd"))


@dataclass
class Served:
    home: Path
    url: str
    play: page.Play

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}gradio_api/file={path}") as answer:
            return answer.read()


@pytest.fixture(scope="module")
def served(trainings: Any, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home, scratch = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("scratch")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(root / name, home / name)
    for name in (MEL, WAVES):
        shutil.copytree(trainings.trained(Path(name).name) / "model", home / name)
    shutil.copytree(home / MEL, home / ODD)
    config = json.loads((home / ODD / "config.json").read_text())
    config["labels"][0] = HOSTILE
    (home / ODD / "config.json").write_text(json.dumps(config))
    shutil.copytree(home / MEL, home / "data/models/broken")
    (home / "data/models/broken/model.safetensors").write_bytes(b"nothing")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(scratch / "uploads"))
        monkeypatch.setattr(real, "CACHE", scratch / "embeddings")
        # The checkpoint was trained on two of these, on one that has changed, and on one that is gone.
        rows = [sound(f"clip{number}", wave_of(number), labels=["bell"], digest=f"{number}") for number in range(4)]
        rows[0]["split"] = "test"
        write_sounds(rows, home / "data/clips/default", home / "data/catalog/default.parquet")
        trained_on = [*rows[1:3], rows[3] | {"digest": "old"}, rows[3] | {"clip_id": "clip4", "recording_id": "clip4"}]
        told = {"seconds": 0.5, "mix": None, "earlier": False}
        write_rows([row | told for row in trained_on], home / MEL / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON)
        play = page.Play(home, find(home, [home / MEL]), Models(2), scratch)
        blocks = page.serve(play, "127.0.0.1", free_port(), None)
        yield Served(home, blocks.local_url, play)
        blocks.close()


class Person:
    def __init__(self, chrome: webdriver.Chrome, url: str) -> None:
        self.chrome = chrome
        chrome.set_window_size(1280, 1400)
        chrome.get(url)
        self.wait(lambda: self.shown("#make"))

    def wait(self, until: Callable[[], Any]) -> Any:
        return WebDriverWait(self.chrome, 120, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: until())

    def all(self, css: str) -> list[WebElement]:
        return [one for one in self.chrome.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()]

    def shown(self, css: str) -> WebElement | None:
        return next(iter(self.all(css)), None)

    def choose(self, name: str) -> None:
        """A checkpoint in the uppermost field."""
        field = self.all("input[role=combobox]")[0]
        field.click()
        named = Path(name).name
        self.wait(lambda: [one for one in self.all("[role=option]") if one.text.strip("✓ \n").startswith(named)])[0].click()

    @property
    def body(self) -> str:
        return self.chrome.find_element(By.TAG_NAME, "body").text

    def tab(self, name: str) -> None:
        next(one for one in self.all("button[role=tab]") if one.text == name).click()

    def fill(self, label: str, text: str) -> None:
        field = self.wait(lambda: self.field(label))
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def field(self, label: str) -> WebElement | None:
        path = f"//label[.//span[starts-with(normalize-space(), '{label}')]]//*[self::input or self::textarea]"
        return next((one for one in self.chrome.find_elements(By.XPATH, path) if one.is_displayed()), None)

    @property
    def faults(self) -> list[str]:
        return [one.text for one in self.all(".validation-error") if one.text]

    def make(self, button: str = "#make") -> str:
        """The name of the sound that appears."""
        before = self.names()
        self.shown(button).click()
        return self.wait(lambda: (now := self.names()) != before and now)[0]

    def names(self) -> list[str]:
        return [one.get_attribute("data-name") for one in self.all("[data-do=keep]")]

    def wav(self, name: str) -> bytes:
        with urllib.request.urlopen(self.shown(f"[data-do=keep][data-name='{name}'] ~ a").get_attribute("href")) as answer:
            return answer.read()


@pytest.fixture
def person(served: Served) -> Iterator[Person]:
    with browser() as chrome:
        yield Person(chrome, served.url)
        told = [one["message"] for one in chrome.get_log("browser") if one["level"] == "SEVERE"]
        # The answer to a request with faults, and the player's word on what is no sound.
        faults = [one for one in told if not re.search(r"queue/join.*422|Waveform load error", one)]
        assert not faults, faults
        sent = [json.loads(one["message"])["message"] for one in chrome.get_log("performance")]
        urls = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
        assert served.url in urls
        assert not [url for url in urls if not url.startswith((served.url, "data:", "blob:"))]
        assert chrome.title == "Soundmill"


def expected(served: Served, folder: Path, words: list[str], seed: int, *settings: str) -> bytes:
    """What `soundmill generate` writes."""
    (path,) = generation.generate_sounds(served.home / MEL, words, 1, seed, folder, served.home, settings)
    return path.read_bytes()


def test_make_hear_keep_and_find_again(served, person, tmp_path):
    person.wait(lambda: person.field("bell") or person.shown("label[data-testid='bell-0']"))
    person.chrome.find_element(By.XPATH, "//label[contains(., 'bell')]").click()
    person.wait(lambda: person.shown(".examples audio"))  # a real one
    assert "The sounds that you make appear here." in person.body
    person.fill("Seed", "-7")
    person.shown("#make").click()
    person.wait(lambda: person.faults == ["seed: Input should be greater than or equal to 0 (found -7)"])
    assert person.faults[0] in person.field("Seed").find_element(By.XPATH, "./ancestor::label").text
    person.fill("Seed", "7")
    name = person.make()
    made = person.wav(name)
    assert made == expected(served, tmp_path / "same", ["bell"], 7)
    assert not person.faults
    player = person.shown(".one audio")
    webdriver.ActionChains(person.chrome).send_keys(" ").perform()  # after a press of Make plays what it made, not the real one
    person.wait(lambda: person.chrome.execute_script("return arguments[0].currentTime > 0 || arguments[0].ended", player))
    person.shown("[data-do=nearest]").click()
    person.wait(lambda: "No copy" in person.body or "Nearer" in person.body)
    assert "nearest training clip, clip" in person.body
    assert not re.search("clip[03]", person.body)
    assert "2 of its 4 training clips are not here any more" in person.body
    assert person.shown(".sounds .picture img").size["height"] > 50
    person.shown("[data-do=again]").click()
    person.wait(lambda: len(person.names()) == 2)
    assert person.names()[0].endswith("-8")
    person.shown(f"[data-do=keep][data-name='{name}']").click()
    person.wait(lambda: making.kept_sounds(served.home))
    (kept,) = making.kept_sounds(served.home)
    assert kept.read_bytes() == made
    person.chrome.refresh()
    person.wait(lambda: person.shown("#make"))
    person.tab("Kept")
    person.wait(lambda: kept.stem in person.shown(".sounds article").text)
    works("generate", "--from", str(kept.with_suffix(".json")), "--output", str(tmp_path / "again"), cwd=served.home)
    (again,) = (tmp_path / "again").glob("*.wav")
    assert again.read_bytes() == made
    person.chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    person.chrome.find_element(By.XPATH, "//button[contains(., 'as zip')]").click()
    person.wait(lambda: (tmp_path / "kept.zip").is_file())
    with zipfile.ZipFile(tmp_path / "kept.zip") as archive:
        assert {kept.name, f"{kept.stem}.json"} < set(archive.namelist())
        (credits,) = (one for one in archive.namelist() if one.startswith("ATTRIBUTION"))
        assert b"creator" in archive.read(credits).splitlines()[0]


def test_stop_in_the_middle_and_go_on(served, person):
    person.wait(lambda: person.field("Seed"))
    person.shown("button.label-wrap").click()
    person.fill("Steps", "10000")
    person.shown("#make").click()
    person.wait(lambda: "steps" in person.chrome.find_element(By.TAG_NAME, "body").text)
    person.shown(".end").click()
    assert served.play.models.lock.acquire(timeout=60)  # the work has ended
    served.play.models.lock.release()
    person.fill("Steps", "2")
    assert person.make()


def test_change_a_dropped_recording(served, person, tmp_path):
    wave = np.sin(np.arange(8192) / 20).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "tone.wav", np.stack([wave, wave], 1), 44_100, subtype="PCM_16")
    person.choose(WAVES)
    person.tab("Change")
    person.wait(lambda: person.chrome.find_elements(By.CSS_SELECTOR, "input[type=radio][value=inpaint]"))
    (tmp_path / "text.wav").write_text("hello")
    person.chrome.find_elements(By.CSS_SELECTOR, "input[type=file]")[0].send_keys(str(tmp_path / "text.wav"))
    person.wait(lambda: [one.split(":")[0] for one in person.faults] == ["text.wav"])
    person.shown("#change-recording [aria-label=Clear]").click()  # the sentence, then the recording
    person.wait(lambda: not person.faults)
    person.shown("#change-recording [aria-label=Clear]").click()
    person.wait(lambda: person.chrome.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0].send_keys(str(tmp_path / "tone.wav"))
    picture = person.wait(lambda: person.shown("[data-marks] .picture"))
    assert not person.faults
    person.chrome.find_element(By.CSS_SELECTOR, "input[type=radio][value=restyle]").click()
    person.fill("Prompt or label", HOSTILE)
    person.shown("#change").click()
    person.wait(lambda: any("<img src=x" in one for one in person.faults))
    person.fill("Prompt or label", Keys.BACKSPACE)
    person.make("#change")
    row = person.shown("section.pairs article")
    assert len(row.find_elements(By.TAG_NAME, "audio")) == 2  # the result and its input, which switch in place
    person.fill("How many variants", "2")
    person.make("#change")
    person.wait(lambda: len(person.names()) == 3)
    assert len({person.wav(name) for name in person.names()[:2]}) == 2
    person.fill("How many variants", "1")
    person.chrome.find_element(By.CSS_SELECTOR, "input[type=radio][value=inpaint]").click()
    person.wait(lambda: person.field("Part from, s"))
    width = picture.size["width"]
    mouse = webdriver.ActionChains(person.chrome).move_to_element_with_offset(picture, -width // 4, 0)
    mouse.click_and_hold().move_by_offset(width // 2, 0).release().perform()
    person.wait(lambda: person.field("to, s") and float(person.field("to, s").get_attribute("value")) > 0)
    start, stop = (float(person.field(label).get_attribute("value")) for label in ("Part from, s", "to, s"))
    assert (start, stop) == pytest.approx((8192 / 44_100 / 4, 8192 / 44_100 * 3 / 4), abs=0.002)
    name = person.make("#change")
    inpainted, _ = soundfile.read(io.BytesIO(person.wav(name)), dtype="int16")
    given, _ = soundfile.read(tmp_path / "tone.wav", dtype="int16")
    first, last = round(start * 44_100), round(stop * 44_100)
    np.testing.assert_array_equal(inpainted[:first], given[:first])
    np.testing.assert_array_equal(inpainted[last:], given[last:])
    assert (inpainted[first:last] != given[first:last]).any()
    person.chrome.find_element(By.CSS_SELECTOR, "input[type=radio][value=continue]").click()
    person.fill("By how many seconds", "0.05")
    continued, _ = soundfile.read(io.BytesIO(person.wav(person.make("#change"))), dtype="int16")
    np.testing.assert_array_equal(continued[:8192], given)
    assert len(continued) == 8192 + 2205
    assert continued[8192:].any()


def test_between_two_seeds(served, person):
    person.choose(WAVES)
    person.tab("Change")
    person.wait(lambda: person.chrome.find_elements(By.CSS_SELECTOR, "input[type=radio][value=interpolate]"))
    person.chrome.find_element(By.CSS_SELECTOR, "input[type=radio][value=interpolate]").click()
    person.wait(lambda: person.field("Second seed"))
    assert not person.field("How many variants")  # always as many
    person.make("#change")
    names = person.names()
    assert len(names) == making.STEPS
    assert len({person.wav(name) for name in names}) == making.STEPS


@pytest.mark.parametrize("other", [WAVES, "real"])
def test_a_blind_vote_is_stored_as_the_listening_tests(served, person, other):
    ballots = {*served.home.glob("data/kept/votes/*/answers-*.json")}
    systems = [MEL, other]
    for number in (1, 2):
        ballot = served.play.compare(
            systems, "bell", number, True, visitor := gr.Request(session_hash="rater"), lambda *told, **more: None
        )[1]
        assert list(ballot.questions) == ["quality", "relevance"]
        for _ in ballot.questions:
            shown, ballot = served.play.vote(gr.EventData(None, {"name": "1"}), ballot)
        assert "1 was " in shown
        assert ballot is None
    served.play.end(visitor)
    (path,) = {*served.home.glob("data/kept/votes/*/answers-*.json")} - ballots
    key = answers.read_key(path.with_name("key.json"))
    result = scoring.score(key, answers.read_all([path], key))
    assert result["requests"] == 2
    assert {sound.system for sound in key.sounds.values()} == {*systems}
    assert [(given["quality"], given["relevance"]) for given in json.loads(path.read_text())["answers"]] == [("first", "first")] * 2


def test_keys_vote_and_the_order_is_hidden_until_then(served, person):
    person.tab("Compare")
    person.fill("Prompt or label", json.loads((served.home / ODD / "config.json").read_text())["labels"][1])  # of the first two
    person.shown("#compare").click()
    for question in ("quality", "fits"):
        person.wait(lambda question=question: question in "".join(one.text for one in person.all(".facts")))
        assert "was" not in person.shown(".facts").text
        assert not person.all(".one :is(.picture, .note)")  # which could tell the real one
        person.chrome.find_element(By.TAG_NAME, "body").send_keys("2")
    person.wait(lambda: not person.shown("[data-do=vote]"))
    assert "1 was ddpm_mel" in person.shown(".facts").text or "2 was ddpm_mel" in person.shown(".facts").text


def test_text_from_checkpoints_is_only_text_and_a_broken_one_only_an_error(served, person):
    person.choose("data/models/broken")
    assert person.wait(lambda: person.shown(".toast-body"))
    person.choose(ODD)
    person.wait(lambda: HOSTILE in person.chrome.find_element(By.TAG_NAME, "body").text)
    person.chrome.find_element(By.XPATH, "//label[contains(., 'onerror')]").click()
    assert person.make()
    assert HOSTILE in person.shown("section.pairs article h3").text


def test_a_broken_first_checkpoint_hides_none_of_the_registry(served, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "registered_models", lambda home: ["asked"])
    monkeypatch.setattr(
        of_registry.__module__ + ".of_registry", lambda found, versions, root: dict.fromkeys(versions, served.play.found[MEL])
    )
    play = page.Play(served.home, find(served.home, [served.home / "data/models/broken"]), Models(1), tmp_path)
    play.ready.run()
    shutil.copytree(served.home / MEL, tmp_path / "deleted")
    play.found["deleted"] = Found(tmp_path / "deleted", served.home)
    assert "deleted" in dict(map(reversed, play.choices))
    shutil.rmtree(tmp_path / "deleted")
    assert "deleted" not in dict(map(reversed, play.choices))
    assert [*play.found][0::4] == ["data/models/broken", "asked"]


def test_two_at_once_change_no_byte(served, tmp_path):
    """And no model is lost or mixed up with another's; two stay in memory."""

    def ask(number: int) -> bytes:
        name = (MEL, WAVES, ODD)[number % 3]
        words = ["bell"] if number % 3 < 2 else []
        answer = Client(served.url, verbose=False).predict(name, words, number, [], api_name="/sound")
        assert answer["request"]["seed"] == number
        return served.get(answer["file"])

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(ask, range(12)))
    for number in (0, 3, 6, 9):
        assert made[number] == expected(served, tmp_path / str(number), ["bell"], number)
    assert len(set(made)) == 12
    assert len(served.play.models.loaded) == 2


def test_a_kept_sound_is_a_run_with_its_request_below_that_of_its_training(served, mlflow_tables, tracked, tmp_path):
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    answer = Client(served.url, verbose=False).predict(MEL, ["bell"], 7, ["num_steps=2"], api_name="/sound")
    with tracking.result_run(tmp_path, "the training", "test", {}) as training:
        tags = {tracking.JOURNAL: training.id}
    facts = ["soundmill-ddpm_mel", "1", hashing.model_digest(served.home / MEL), served.home / MEL, (), tags, "", "", "", ""]
    version = tracking.RegisteredModel(*facts)
    kept = [making.keep(Path(answer["file"]), served.play.found[MEL], tmp_path, [version]) for _ in range(2)][1]
    assert tracking.sync(tmp_path) == (0, "")
    client = MlflowClient(tracking.store(tmp_path).uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], order_by=["attributes.start_time"])
    parent, run = runs
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert not of_registry(served.play.found, [version], served.home)
    other = replace(version, digest="other", directory=served.home / ODD)
    assert [one.title[:28] for one in of_registry({}, [other], served.home).values()] == ["soundmill-ddpm_mel version 1"]
    assert run.data.params["seed"] == "7"
    assert run.data.tags["checkpoint"] == answer["request"]["digest"]
    for path in (kept, kept.with_suffix(".json")):
        stored = client.download_artifacts(run.info.run_id, f"kept/{path.name}", str(tmp_path))
        assert Path(stored).read_bytes() == path.read_bytes()


def test_only_what_the_page_made_can_be_read(served):
    client = Client(served.url, verbose=False)
    with pytest.raises(AppError, match="no checkpoint '/etc'"):
        client.predict("/etc", [], 0, [], api_name="/sound")
    for path in ("/etc/passwd", served.home / "params.yaml", served.home / MEL / "config.json", f"{served.play.scratch}/x"):
        with pytest.raises(urllib.error.HTTPError):
            served.get(str(path))
    assert not [name for name in client.view_api(return_format="dict")["named_endpoints"] if name != "/sound"]


@pytest.mark.parametrize("endpoint", ["upload", "queue/join", "call/sound", "run/sound", "cancel"])
def test_requests_of_other_sites_are_refused(served, endpoint):
    elsewhere, here = "elsewhere.example", served.url.strip("/")
    foreign = {"Origin": f"http://{elsewhere}", "Content-Type": "application/json"}
    for headers in (foreign, foreign | {"X-Forwarded-Host": elsewhere}, {"Origin": "null"}, {"Host": elsewhere}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{served.url}gradio_api/{endpoint}", b"{}", headers))
    with pytest.raises(urllib.error.HTTPError, match=r"4(00|22)"):  # read, and found wanting
        urllib.request.urlopen(urllib.request.Request(f"{served.url}gradio_api/{endpoint}", b"{}", foreign | {"Origin": here}))


@pytest.mark.parametrize("path", ["file=https://", "file=HTTP://", "file=%68ttps://", "file/https://", "proxy=https://"])
def test_no_address_is_fetched(served, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{served.url}gradio_api/{path}elsewhere.example/x.wav")


@pytest.mark.parametrize("path", ["https://elsewhere.example/x.wav", "\\u0068ttps://elsewhere.example/x.wav", "/etc/passwd"])
def test_no_file_of_elsewhere_is_taken_for_an_upload(served, path):
    number = next(one["id"] for one in Client(served.url, verbose=False).config["dependencies"] if "original" in one["api_name"])
    file = {"path": "PATH", "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": [file], "fn_index": number, "session_hash": "x"}).replace("PATH", path)
    headers = {"Content-Type": "application/json", "x-gradio-user": "app"}
    with pytest.raises(urllib.error.HTTPError, match="403" if "elsewhere" in path else "500"):
        urllib.request.urlopen(urllib.request.Request(f"{served.url}gradio_api/run/predict", data.encode(), headers))


def test_hostile_uploads_are_only_errors(served, tmp_path):
    hostiles = params.read_yaml(Path(__file__).with_name("hostile_uploads.yaml"))  # contents by file name
    visitor = gr.Request(session_hash="hostile")
    for name, content in hostiles.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    (tmp_path / "link.wav").symlink_to("/etc/passwd")
    for path in tmp_path.iterdir():
        with pytest.raises(gr.Error) as error:
            served.play.original(str(path), visitor)
        assert not re.search("<|root:", str(error.value)), path
        said = served.play.check_recording(str(path), visitor)  # of the field, which shows it as text
        assert not said["is_valid"]
        assert not re.search(f"root:|{tmp_path}", said["message"]), path
    assert not Path("x").exists()
    with (tmp_path / "big.wav").open("wb") as file:
        file.truncate(201 * 2**20)
    sent = ["curl", "-s", "-w", "%{http_code}", "-F", f"files=@{file.name}", f"{served.url}gradio_api/upload"]
    assert subprocess.run(sent, capture_output=True, text=True).stdout.endswith("413")
    for name in ("../odd", "/etc/passwd", "%2e%2e", "001-bell-7\0", HOSTILE):
        with pytest.raises(gr.Error, match="gone"):
            served.play.keep(gr.EventData(None, {"name": name}), visitor)


@pytest.mark.parametrize(
    ("tab", "values", "field"),
    [
        ("make", {"seed": 10**30}, "seed"),
        ("make", {"count": 21}, "count"),
        ("make", {"num_steps": -5}, "num_steps"),
        ("make", {"guidance_scale": float("nan")}, "guidance_scale"),
        ("make", {"settings": "a\0b=1"}, "settings"),
        ("make", {"labels": [], "prompt": "x" * 100_000}, "labels"),
        ("make", {"checkpoint": "/etc"}, "checkpoint"),
        ("make", {"checkpoint": MEL, "count": None, "settings": "num_steps=2"}, None),
        ("change", {"kind": "restyle"}, "recording"),
        ("change", {"kind": "interpolate", "recording": "tone.wav"}, "second"),
        ("change", {"kind": "inpaint", "recording": "tone.wav", "start": 0.1, "stop": 0.1}, "stop"),
        ("change", {"kind": "inpaint", "recording": "tone.wav", "start": -1, "stop": 0.1}, "start"),
        ("change", {"kind": "continue", "recording": "tone.wav", "seconds": 1e9}, "seconds"),
        ("change", {"kind": "restyle", "recording": "tone.wav", "words": HOSTILE}, "words"),
        ("change", {"kind": "restyle", "recording": "tone.wav", "seconds": 1e9}, None),  # which is hidden
        ("change", {"kind": None, "recording": "tone.wav"}, "kind"),
    ],
)
def test_a_fault_is_said_at_its_field(served, tmp_path, monkeypatch, tab, values, field):
    empty = {"checkpoint": MEL, "recording": None, "second": None}
    monkeypatch.chdir(tmp_path)
    soundfile.write("tone.wav", wave_of(1), 44_100)
    given = {gr.Textbox(elem_id=f"x-{name}"): value for name, value in (empty | values).items()}
    more = [gr.Request(session_hash="asks")] if tab == "change" else []
    told = getattr(served.play, f"check_{tab}")(given, *more)
    assert [component.elem_id for component, said in told.items() if not said["is_valid"]] == [f"x-{field}"] * bool(field)


def test_the_commands_of_the_docs_run(served, root):
    text = (root / "docs/play.md").read_text().replace("http://127.0.0.1:7860", served.url.strip("/")).replace('"dog"', '"bell"')
    _, python, _, block, _ = text.replace("data/models/audio_dit", MEL).partition("## As an API")[2].split("```")
    exec(python.removeprefix("python"), said := {})
    assert served.get(said["answer"]["file"])
    first, second, third = re.findall(r"^curl(?:.*\\\n)?.*", block, re.MULTILINE)

    def run(command: str) -> str:
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=served.play.scratch).stdout

    answer = run(second.replace("ID", json.loads(run(first))["event_id"], 1))
    (told,) = json.loads(re.search("^data: (.*)", answer, re.MULTILINE)[1])
    run(third.replace("=FILE", f"={told['file']}"))
    assert soundfile.info(served.play.scratch / "dog.wav").frames


def test_a_page_for_others_needs_a_password(served):
    assert "--password" in soundmill("play", "--host", "0.0.0.0", cwd=served.home).stderr
    blocks = page.serve(served.play, "127.0.0.1", free_port(), "open sesame")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{blocks.local_url}gradio_api/info")
    assert Client(blocks.local_url, auth=("anyone", "open sesame"), verbose=False)
    blocks.close()
