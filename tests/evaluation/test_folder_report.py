"""The page of an evaluation of folders: a file that changed since it was scored is named alone."""

import numpy as np

from soundmill.audio.flac import write_wav
from soundmill.evaluation import folder_report, folders
from soundmill.evaluation.evaluator import Evaluation
from tests.evaluation.test_report import metrics

RATE = 8_000


def test_a_sound_that_is_damaged_after_scoring_is_named_and_all_others_are_there(tmp_path, capsys):
    random = np.random.default_rng(0)
    for side in ("made", "real"):
        for name in "abcd":
            write_wav(tmp_path / side / f"{name}.wav", (0.1 * random.standard_normal(RATE)).astype(np.float32), RATE)
    output, real = (folders.read(tmp_path / side, 1) for side in ("made", "real"))
    of = {"kl_yamnet": {name: float(index) for index, name in enumerate("abcd")}}
    (tmp_path / "made" / "a.wav").unlink()
    (tmp_path / "real" / "d.wav").write_bytes((tmp_path / "real" / "d.wav").read_bytes()[:1000])
    folder_report.write(Evaluation(metrics(warnings=[]), of, output, real, paired=True), tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert text.count("<img") == text.count("<audio") == 4  # of the best, the middling and the worst
    message = capsys.readouterr().err
    for clip, path in (("a, generated", tmp_path / "made" / "a.wav"), ("d, real", tmp_path / "real" / "d.wav")):
        for what in ("picture", "player"):
            assert f"{clip}: no {what}: {path}: " in text
            assert f"page/index.html: {clip}: no {what}: {path}: " in message


def test_only_the_beginning_of_a_long_sound_is_read(tmp_path):
    long = np.full(int(RATE * folder_report.LONGEST_SECONDS * 3), 0.1, np.float32)
    write_wav(tmp_path / "made" / "long.wav", long, RATE)
    sound = folder_report._beginning("generated", folders.read(tmp_path / "made", 1), "long")
    assert sound.max_samples < len(sound.wave) < len(long)
