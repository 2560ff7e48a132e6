"""Weights: fetched over HTTP and from a mirror, broken off and continued, of another content; nothing but loopback is reached;
and models of others: what makes up one, by which it is told from another."""

import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from soundmill import hub, pretrained
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from tests.commands.running import refused, works
from tests.imports import ROOT

NAME = "panns_cnn14_16k"  # of the embedder whose weights the server has
CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves `content`; the first `breaks` answers end half-way. Notes the range of each request."""

    content = CONTENT
    breaks = 0
    ranges = True  # whether it can begin in the middle

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        expected = self.headers.get("Range")
        self.server.requested.append(expected)
        start = int(re.fullmatch(r"bytes=(\d+)-", expected)[1]) if expected and self.server.ranges else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """$SOUNDMILL_WEIGHTS, not yet made, where `panns_cnn14_16k` is a file of the server's."""
    digests = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "md5": hashlib.md5(CONTENT).hexdigest()}
    url = f"http://127.0.0.1:{server.server_port}/file.pth?download=1"
    served = dataclasses.replace(embedders.published()[NAME], url=url, num_bytes=len(CONTENT), **digests)
    publish(monkeypatch, served)
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def publish(monkeypatch: pytest.MonkeyPatch, weights: pretrained.Weights) -> None:
    monkeypatch.setitem(embedders.EMBEDDERS, NAME, dataclasses.replace(embedders.find(NAME), weights=weights))


def published() -> pretrained.Weights:
    return embedders.published()[NAME]


def fetch(*arguments: str) -> Path:
    return pretrained.fetch(published(), *arguments)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_download_is_verified_and_not_repeated_unless_it_is_damaged(place, server):
    assert fetch() == place / "Cnn14_16k_mAP=0.438.pth"
    assert fetch().read_bytes() == CONTENT
    assert names(place) == ["Cnn14_16k_mAP=0.438.pth"]
    assert pretrained.path(published()) == pretrained.verify(published()) == fetch()
    assert len(server.requested) == 1
    fetch().write_bytes(CONTENT[:-1] + b"x")
    for use in (pretrained.path, pretrained.verify):
        with pytest.raises(UserError, match=r"not the published weights .* fetch"):
            use(published())
    assert fetch().read_bytes() == CONTENT


def test_a_broken_download_is_no_file_and_is_continued(place, server):
    server.breaks = 2
    part = place / ".Cnn14_16k_mAP=0.438.pth.partial"
    begins = [0]
    for _ in range(2):
        with pytest.raises(UserError, match="bytes are here, and the next") as error:
            fetch()
        assert names(place) == [part.name]
        assert part.stat().st_size > begins[-1] + 500_000
        begins.append(part.stat().st_size)
        assert f"{begins[-1]:,} of 3,000,000 bytes" in str(error.value)
        with pytest.raises(UserError, match="is not in the directory"):
            pretrained.path(published())
    assert fetch().read_bytes() == CONTENT
    assert server.requested == [f"bytes={start}-" for start in begins]
    assert names(place) == ["Cnn14_16k_mAP=0.438.pth"]


def test_a_bake_off_fetches_its_judge_where_a_network_is(place, monkeypatch):
    from flows import bakeoff, pipeline

    monkeypatch.setattr(bakeoff, "bakeoff", lambda *options, return_state: 0)
    monkeypatch.setattr(pipeline, "run_to_end", lambda name, parts, flow: flow())
    for url, said in (
        ("http://127.0.0.1:9/file", "YAMNet could not be fetched ("),
        (published().url, "YAMNet, fetched to"),
        ("", ""),
    ):
        monkeypatch.setitem(
            embedders.EMBEDDERS,
            "yamnet",
            dataclasses.replace(embedders.find("yamnet"), weights=dataclasses.replace(published(), url=url)),
        )
        told = works("bakeoff", "corpus=loops", cwd=ROOT).stdout
        assert said in told
        assert ("judge" in told) == bool(said)
    assert names(place) == ["Cnn14_16k_mAP=0.438.pth"]


def test_a_server_that_begins_anew_is_followed(place, server):
    server.breaks, server.ranges = 1, False
    with pytest.raises(UserError, match=r"could not be fetched"):
        fetch()
    assert fetch().read_bytes() == CONTENT


def test_what_a_kill_left_is_used_and_two_fetches_do_not_mix(place, server):
    """Killed after the last byte and before the check, or in a download of something longer."""
    place.mkdir()
    part = place / ".Cnn14_16k_mAP=0.438.pth.partial"
    part.write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.requested == []
    (place / "Cnn14_16k_mAP=0.438.pth").unlink()
    locked = pretrained._locked(part)
    with locked, pytest.raises(UserError, match="another process is fetching"):
        fetch()
    part.write_bytes(CONTENT + b"more")
    assert fetch().read_bytes() == CONTENT
    assert server.requested == ["bytes=0-"]


def test_another_file_is_thrown_away_and_the_publishers_own_digest_counts_too(place, server, monkeypatch):
    server.content = bytes(len(CONTENT))
    with pytest.raises(UserError, match=r"not the published weights.*fetch it again"):
        fetch()
    assert names(place) == []
    server.content = CONTENT
    assert fetch().read_bytes() == CONTENT
    fetch().unlink()
    publish(monkeypatch, dataclasses.replace(published(), md5="0" * 32))
    with pytest.raises(UserError, match=r"md5 .* expected 000"):
        fetch()
    assert names(place) == []


def test_a_file_of_unknown_sha256_and_size_is_pinned_by_its_git_blob(place, server, monkeypatch):
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    publish(monkeypatch, dataclasses.replace(published(), sha256=None, num_bytes=None, git_blob=blob, md5=None))
    assert "or put the file there, from http" in embedders.unavailable(NAME)
    server.breaks = 1
    with pytest.raises(UserError, match="the next `soundmill weights fetch panns_cnn14_16k`"):
        fetch()
    assert fetch().read_bytes() == CONTENT
    assert server.requested == ["bytes=0-"] * 2
    assert f"git blob {blob}" in works("weights", "list", cwd=place).stdout
    fetch().write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=r"not the published weights \(git blob "):
        pretrained.path(published())


def test_a_file_with_an_md5_alone_needs_the_sha256_that_its_user_knows(place, server, monkeypatch):
    md5 = hashlib.md5(CONTENT).hexdigest()
    publish(monkeypatch, dataclasses.replace(published(), sha256=None, num_bytes=None, md5=md5))
    for use in (fetch, lambda: pretrained.path(published()), lambda: pretrained.fetch(published(), sha256="0" * 64)):
        with pytest.raises(UserError):
            use()
    assert not pretrained.directory().joinpath(f"{published().file}.sha256").exists()
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert pretrained.fetch(published(), sha256=digest).read_bytes() == CONTENT
    assert (published().pin, pretrained.path(published()).read_bytes()) == (("sha256", digest), CONTENT)
    with pytest.raises(UserError, match=rf"is checked by its sha256 {digest}; leave --sha256 out"):
        pretrained.fetch(published(), sha256="0" * 64)


def test_a_mirror_is_as_good_as_the_net(place, server, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with pytest.raises(UserError, match=r"mirror/Cnn14_16k_mAP=0\.438\.pth: no such file"):
        fetch(mirror)
    assert not list(place.glob(".*.partial"))
    (mirror / "Cnn14_16k_mAP=0.438.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"not the published weights"):
        fetch(mirror)
    (mirror / "Cnn14_16k_mAP=0.438.pth").write_bytes(CONTENT)
    assert fetch(mirror).read_bytes() == CONTENT
    assert server.requested == []


def test_offline_says_which_file_where_and_what_still_works(place, server):
    port = server.server_port
    reason = embedders.unavailable("panns_cnn14_16k")
    assert f"Cnn14_16k_mAP=0.438.pth is not in the directory $SOUNDMILL_WEIGHTS, {place}" in reason
    assert f"3,000,000 bytes from http://127.0.0.1:{port}/file.pth" in reason
    assert reason.endswith("Available without it: tagger, texture")
    place.mkdir()
    (place / "yamnet.tflite").write_bytes(b"another network")
    assert embedders.unavailable("panns_cnn14_16k").endswith("Available without it: tagger, texture, yamnet")
    assert embedders.unavailable("yamnet") is None  # whether it is the right one shows when it is loaded
    with pytest.raises(UserError, match=r"yamnet\.tflite: not the published weights"):
        embedders.load("yamnet", place)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"could not be fetched .* 0"):
        fetch()


def test_without_the_variable_weights_lie_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SOUNDMILL_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.directory() == tmp_path / "soundmill"
    said = pretrained.unavailable(pretrained.VGGISH)
    assert f"is not in {tmp_path / 'soundmill'} ($SOUNDMILL_WEIGHTS names another directory)" in said


def test_the_command(place, server, tmp_path):
    assert "--  panns_cnn14_16k" in works("weights", "list", cwd=tmp_path).stdout
    server.breaks = 1
    assert "resumes" in refused("weights", "fetch", NAME, cwd=tmp_path)
    for word in ("fetch", "path"):
        assert works("weights", word, NAME, cwd=tmp_path).stdout.strip() == str(place / "Cnn14_16k_mAP=0.438.pth")
    listed = works("weights", "list", cwd=tmp_path)
    assert "ok  panns_cnn14_16k" in listed.stdout
    assert "clap: downloaded from the Hugging Face hub" in listed.stderr
    works("weights", "verify", cwd=tmp_path)
    (place / "Cnn14_16k_mAP=0.438.pth").write_bytes(b"torn")
    assert "not the published weights" in refused("weights", "verify", cwd=tmp_path)
    assert refused("weights", "path", "vggish", cwd=tmp_path)
    assert "no weights 'vgish'; did you mean 'vggish'" in refused("weights", "path", "vgish", cwd=tmp_path)


def test_fetch_without_names_gets_what_params_name(place, server, tmp_path):
    asked = refused("weights", "fetch", cwd=tmp_path)
    assert "not inside a checkout" in asked
    assert "yamnet (4 MB), vggish (289 MB)" in asked
    (tmp_path / "dvc.yaml").touch()
    for section in ("{embedders: [tagger, texture]}", ""):
        (tmp_path / "params.yaml").write_text(f"evaluate: {section}\n")
        asked = refused("weights", "fetch", cwd=tmp_path)
        assert "params.yaml: names no published weights; name the weights to fetch: yamnet (4 MB)" in asked
    assert server.requested == []
    (tmp_path / "params.yaml").write_text(f"evaluate: {{embedders: [tagger, {NAME}]}}\n")
    (tmp_path / "below").mkdir()
    done = works("weights", "fetch", cwd=tmp_path / "below")
    assert done.stdout.strip() == str(place / "Cnn14_16k_mAP=0.438.pth")
    assert names(place) == ["Cnn14_16k_mAP=0.438.pth"]


def test_weights_are_found_wherever_params_name_them():
    parameters = {"evaluate": {"embedders": ["tagger", "yamnet"]}, "judge": "passt", "yamnet": None}
    parameters["projected_gan"] = {"train": {"projectors": ["vggish", "tagger"], "steps": 3}}
    assert embedders.named_in(parameters) == ["yamnet", "vggish", "passt"]
    assert embedders.named_in({"openl3_env": {"path": "openl3_env.wav"}}) == []


def write(directory: Path, content: str) -> Path:
    (directory / "net").mkdir(parents=True)
    (directory / "net" / "config.json").write_text("{}")
    (directory / "net" / "weights.safetensors").write_text(content)
    return directory


def test_a_model_is_told_by_its_files_and_what_a_directory_lacks_is_said(tmp_path):
    files = ("net/config.json", "net/*.safetensors")
    first, same, other = (write(tmp_path / name, text) for name, text in (("a", "1"), ("b", "1"), ("c", "2")))
    (same / "README.md").write_text("not one of its files")
    assert hub.digest(first, files) == hub.digest(same, files) != hub.digest(other, files)
    (same / "net" / "weights.safetensors").rename(same / "net" / "more.safetensors")
    assert hub.digest(first, files) != hub.digest(same, files)
    assert hub.find("a", "0" * 40, tmp_path, files, lambda directory: None, "do this") == (first, None)
    with pytest.raises(UserError, match=r"a: .*a has no.*do this"):
        hub.find("a", None, tmp_path, files, lambda directory: "weights", "do this")
    with pytest.raises(UserError, match=r"\./other: no such directory .*; do this"):
        hub.find("./other", None, tmp_path, files, lambda directory: None, "do this")
