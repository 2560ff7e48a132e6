"""What trained models have in common: what they are conditioned on, and how they are saved and loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from soundmill.models import adapted, family
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.training import adapters, checkpoint

TEXT_ENCODER = "text_encoder"  # directory of the text encoder within an imported checkpoint


@dataclass
class TrainedModel:
    """A `Model` (models/family.py) whose checkpoint has the fields of `config`, which it has too, and the weights of its net.

    A family adds `build_net` and, if a checkpoint contains components, `components`.
    """

    config: ClassVar[type[FamilyConfig]]
    build_net: ClassVar[Callable[[Any, Any, int], nn.Module]]  # params, shape of latents or channels of waves, number of labels
    weights: ClassVar[str] = checkpoint.WEIGHTS  # file of the last weights

    params: Any  # of the training, as in `config`
    net: nn.Module  # with the averaged weights
    labels: list[str] = field(default_factory=list, kw_only=True)  # that it was trained on
    text: TextConfig | None = field(default=None, kw_only=True)  # if conditioned on captions
    texts: Texts | None = field(default=None, kw_only=True)  # while it trains: stored states, so no text encoder is loaded

    @property
    def condition(self) -> Literal["labels", "caption", "none"]:
        return "caption" if self.text else "labels" if self.labels else "none"

    def vectors(self, requests: Sequence[Request], run: Run) -> Tensor:
        """[N, conditions]: vectors of captions if the model is conditioned on them, or label weights; zero: no condition."""
        if not self.text:
            return torch.stack([label_weights(request.labels, self.labels) for request in requests])
        return text_states.vectors(self.told([request.caption for request in requests], run), self.params.text_width)

    def states(self, captions: Sequence[str], run: Run) -> list[np.ndarray]:
        """States [tokens, width] of each caption: stored ones while it trains, else encoded."""
        if self.texts is not None:
            return [self.texts.of(caption) for caption in captions]
        return text_states.encode(self.text, captions, run.home, run.scratch, run.digests)

    def told(self, captions: Sequence[str], run: Run) -> list[np.ndarray | None]:
        """As `states`, but None for ""."""
        given = [caption for caption in captions if caption]
        found = iter(self.states(given, run) if given else [])
        return [next(found) if caption else None for caption in captions]

    def tensors(self) -> dict[str, Tensor]:
        """Those of a checkpoint with whole weights."""
        return self.net.state_dict()

    def save(self, directory: Path, facts: Mapping[str, Any], parts: Sequence[Path] = (), own_parts: Sequence[Path] = ()) -> None:
        """Write a checkpoint with human-readable facts: the whole net, or the adapters in it without the `parts` of their base.

        `own_parts` are components that adapters do not take from their base.
        """
        config = self.config(**{name: getattr(self, name) for name in _stored(self.config)})
        contents = {**config.model_dump(mode="json"), **facts}
        if not adapters.are_in(self.net):
            checkpoint.save(directory, contents, self.tensors(), weights=self.weights, parts=[*parts, *own_parts])
            return
        checkpoint.save(directory, contents, adapters.weights_of(self.net), weights=adapted.WEIGHTS, parts=own_parts)
        base = facts["started_from"]["checkpoint"]
        adapted.write(self.net, directory, self.params.lora, self.params.start_from, base)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The model in a checkpoint, with its last weights.

        If these are adapters, the net is the base, with the weights that the base's params select, and has the adapters.
        """
        config = family.read_config(directory, cls.config)
        whole = adapted.base_of(directory) if adapted.are_in(directory) else directory
        components = cls.components(config, directory, whole)
        net = checkpoint.load_weights(lambda: cls.build(config, **components), whole / cls.weights)
        if whole != directory:
            family.load_used(net, whole, checkpoint.read(whole)["params"]["use"])
            adapted.load(net, directory, adapted.read(directory), adapted.ONE)
        accepted = {one.name for one in fields(cls)}
        stored = {name: getattr(config, name) for name in _stored(cls.config) if name in accepted}
        if stored.get("text") and (whole / TEXT_ENCODER).is_dir():
            stored["text"] = stored["text"].model_copy(update={"name": str((whole / TEXT_ENCODER).resolve())})
        return cls(net=net, **stored | components)

    @classmethod
    def components(cls, config: Any, directory: Path, whole: Path) -> dict[str, Any]:
        """Fields of the model beside those of its config, from its checkpoint's directory or the `whole` of its base."""
        return {}

    @classmethod
    def build(cls, config: Any, **components: Any) -> nn.Module:
        """The net that a config describes, initialised from torch's global generator."""
        codec = components.get("autoencoder") or components.get("codec")  # whose latents the net is for
        form = codec.latent_shape(config.frames) if codec else getattr(config, "channels", 1)
        return cls.build_net(config.params, form, len(getattr(config, "labels", ())))


def _stored(config: type[FamilyConfig]) -> list[str]:
    return [name for name in config.model_fields if name != "family"]


def label_weights(labels: Iterable[str], label_names: Sequence[str]) -> Tensor:
    """Weights [len(label_names)] of the labels in `label_names`: equal and summing to 1, or all zero if there are none."""
    weights = torch.zeros(len(label_names))
    for label in set(labels) & set(label_names):
        weights[label_names.index(label)] = 1
    return weights / weights.sum().clamp_min(1)
