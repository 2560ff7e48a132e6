"""Whole checkpoints of adapters: the base's weights with what the adapters add."""

import shutil
from pathlib import Path

from soundmill import manifest
from soundmill.models import adapted, registry
from soundmill.models.family import chosen_by, origin, stored_weights, use_weights
from soundmill.training import adapters, checkpoint


def write_whole(directory: Path, output: Path) -> None:
    """Copy a checkpoint into a new directory; if it has only adapters, merge the ones that its `use` selects into their base."""
    if not adapted.are_in(directory):
        shutil.copytree(directory, output, ignore=shutil.ignore_patterns(".gitignore"), copy_function=shutil.copyfile)
        return
    source = origin(directory)
    family = registry.family(source["family"])
    model = family.load(directory)
    used = use_weights(model, directory, model.params.use)
    adapters.merge(model.net)
    config = checkpoint.read(directory)
    config |= {
        "weights": {"last": stored_weights(directory, model.params.use)[1]},
        "started_from": {**config["started_from"], "chosen_by": chosen_by(directory, model.params.use)},
        "merged": {"adapters": source["checkpoint"], "weights": used},
    }
    config["params"] |= {"use": "last", "lora": None}
    parts = {**_components(adapted.base_of(directory)), **_components(directory)}
    checkpoint.save(output, config, model.net.state_dict(), weights=family.weights, parts=list(parts.values()))
    for name in (manifest.TRAINED_ON_FILE, manifest.EARLIER_ATTRIBUTION):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, output / name)


def _components(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(directory.iterdir()) if (path / checkpoint.CONFIG).is_file()}
