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
from soundmill.models.family import family_of
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
from tests.imports import MODELS, components_of, families


def test_offers_the_families_with_their_interface():
    assert set(registry.FAMILIES) == {path.name for path in families()}
    for name in registry.FAMILIES:
        family = registry.family(name)
        assert issubclass(family.train_params, FamilyTrainParams)
        assert issubclass(family.generate_params, FamilyGenerateParams)
        assert all(line and "\n" not in line for line in (family.title, family.paper))


def test_conf_names_the_components_that_a_family_imports(root):
    """They are its stages' dependencies: what it does not name may change without retraining it."""
    for name in registry.FAMILIES:
        document = params.compose(root / "conf", [f"model={name}"])
        named = document["families"][name]["components"]
        assert set(named) == {"source", "codec", "vocoder", "condition"}
        by_name = registry.code(name, document)
        assert {*named.values(), "griffin_lim"} == components_of(MODELS / name, by_name) | {"griffin_lim"}


def test_counts_follow_the_parameters_and_allocate_nothing(root):
    changes = ["scale=paper", "ddpm_mel.train.network.widths=[4096,8192,8192,8192]"]
    document = params.compose(root / "conf", changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = registry.parameter_counts("ddpm_mel", document)["unet"]
    assert count > 20_000_000_000  # 80 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: torch may be imported here


def test_parameters_are_checked_without_torch(root):
    code = (
        "import sys; from pathlib import Path; from soundmill import params; from soundmill.models import registry; "
        "document = params.compose(Path(sys.argv[1]), ['model=tango', 'vocoder=istft_laptop']); "
        "registry.check(document); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(root / "conf")], check=True)


def test_unknown_family_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'ddpm_mell'; did you mean 'ddpm_mel'"):
        registry.family("ddpm_mell")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "dvc repro"),
        ("{", "not readable as JSON"),
        ('{"family": ' + "[" * 100_000, r"config\.json: not readable as JSON: nested too deeply"),
        ("[]", "not a JSON object"),
        ("{}", "names no `family`"),
        (json.dumps({"family": "tango"}), "of family 'tango', not 'ddpm_mel'"),
    ],
)
def test_a_directory_that_is_no_such_checkpoint(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        family_of(tmp_path, "ddpm_mel")
