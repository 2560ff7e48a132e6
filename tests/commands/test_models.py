from __future__ import annotations

import json

from soundmill.models import registry
from tests.commands.running import soundmill


def test_generate_without_a_checkpoint_says_what_to_run(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    done = soundmill("generate", "--label", "dog", cwd=tmp_path)
    assert done.returncode == 1
    assert "no checkpoint; train one with `dvc repro`" in done.stderr


def test_families_are_listed_with_their_sizes_and_written(root, tmp_path):
    done = soundmill("families", "--json", str(tmp_path / "families.json"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert "23,331,457" in done.stdout
    assert "arXiv:2006.11239" in done.stdout
    described = json.loads((tmp_path / "families.json").read_text())
    assert list(described) == sorted(registry.FAMILIES)
    assert described["ddpm_mel"]["paper"] == {"unet": 23_331_457}
    assert described["ddpm_mel"]["laptop"]["unet"] > 0
