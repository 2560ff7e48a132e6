"""Families by name, and checkpoints that say which family they are of."""

import resource

import pytest

from soundmill import params
from soundmill.models import registry
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
        assert set(named) == {"source", "net", "codec", "vocoder"}
        by_name = registry.code(name, document)
        of_all = {"griffin_lim", "text_states", "waves"}  # dependencies whatever conf names
        assert {*named.values(), *of_all} == components_of(MODELS / name, by_name) | of_all


def test_counts_follow_the_parameters_and_allocate_nothing(root):
    changes = ["scale=paper", "ddpm_mel.train.network.widths=[4096,8192,8192,8192]"]
    document = params.compose(root / "conf", changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = registry.parameter_counts("ddpm_mel", document)["unet"]
    assert count > 20_000_000_000  # 80 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB: torch may be imported here


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_early_stopping_is_set_for_any_family(root, scale):
    for name in registry.FAMILIES:
        choices = [f"model={name}", f"scale={scale}"]
        assert params.compose(root / "conf", choices)[name]["train"]["patience"] is None
        registry.check(
            params.compose(root / "conf", [*choices, f"{name}.train.patience=3", f"{name}.train.validate_every_steps=5"])
        )
