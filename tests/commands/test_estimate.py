"""What training will take: timed in a process of its own, and once."""

import json
import subprocess
import sys

import pytest

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import cost

TINY = [
    "corpus=auto",
    "ddpm_mel.train.steps=1000",
    "ddpm_mel.train.batch_size=2",
    "ddpm_mel.train.network.widths=[16,16,32]",
    "ddpm_mel.train.hardware.threads=1",
]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "soundmill" / "timings"


def test_steps_are_timed_once_and_not_in_this_process(root, kept):
    said = f"""
import json, sys
from pathlib import Path
from soundmill import params
from soundmill.models import cost
document = params.compose(Path("conf"), {TINY!r})
print(json.dumps([cost.training_seconds(Path.cwd(), document, {{"ddpm_mel": 50}}, 3), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", said], cwd=root, capture_output=True, text=True, check=True)
    seconds, torch_loaded = json.loads(done.stdout)
    assert not torch_loaded
    (file,) = kept.iterdir()
    timing = cost.Timing(**json.loads(file.read_text()))
    document = params.compose(root / "conf", TINY)
    assert seconds == cost.seconds(timing, "ddpm_mel", document, 50) > 1000 * timing.seconds > 0
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 7.0}))
    assert cost.training_seconds(root, document, {"ddpm_mel": 50}, 3) > 7_000
    file.write_text("{")  # cut off: timed again
    assert cost.training_seconds(root, document, {"ddpm_mel": 50}, 3) < 7_000


def test_what_cannot_be_timed_is_told(root, kept):
    document = params.compose(root / "conf", TINY)
    document["ddpm_mel"]["train"]["picture"]["patch"] = [7, 7]
    with pytest.raises(UserError, match=r"ddpm_mel: its training steps could not be timed: .*patch"):
        cost.training_seconds(root, document, {"ddpm_mel": 50}, 3)
    assert not kept.exists()
