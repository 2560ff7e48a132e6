"""Families by name, and checkpoints that say which family they are of."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.params import StageParams

OFFERED = {
    "training": ["prepare"],
    "checkpoint": ["load", "networks"],
    "generation": ["asked_by_clips", "asked_by_prompts", "draw", "to_waves", "through_codec"],
    "cost": ["probe"],
}


def test_offers_the_families_with_their_interface():
    assert "ddpm_mel" in registry.names()
    for name in registry.names():
        package = registry.family(name)
        assert issubclass(registry.train_params(name), StageParams)
        assert issubclass(registry.generate_params(name), StageParams)
        for module, functions in OFFERED.items():
            assert all(callable(getattr(registry.part(name, module), function)) for function in functions)
        assert all(line and "\n" not in line for line in (package.TITLE, package.PAPER))


def test_counts_follow_the_parameters_and_allocate_nothing(root):
    changes = ["scale=paper", "ddpm_mel.train.network.widths=[4096,8192,8192,8192]"]
    document = params.compose(root / "conf", changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = registry.parameter_counts("ddpm_mel", document)["unet"]
    assert count > 20_000_000_000  # 80 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: torch may be imported here


def test_parameters_are_read_without_torch():
    code = "import sys; from soundmill.models import registry; registry.train_params('ddpm_mel'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_family_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'ddpm_mell'; did you mean 'ddpm_mel'"):
        registry.family("ddpm_mell")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "dvc repro"),
        ("{", "not readable as JSON"),
        ('{"family": ' + "[" * 100_000, r"config\.json: not readable as JSON: brackets within brackets"),
        ("[]", "names no `family`"),
        (json.dumps({"family": "tango"}), "of family 'tango', not 'ddpm_mel'"),
    ],
)
def test_a_directory_that_is_no_such_checkpoint(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        registry.checkpoint_config(tmp_path, "ddpm_mel")
