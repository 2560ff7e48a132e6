"""Sizes, shapes and known answers of the projected GAN's nets, and of what is around them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from soundmill import params
from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.models.family import Request
from soundmill.models.projected_gan import TrainParams, networks
from soundmill.models.projected_gan.model import LoopPicture, ProjectedGan, ProjectedGanModule
from soundmill.models.projected_gan.networks import Generator, ModulatedConv
from soundmill.training.loader import Batch
from soundmill.training.tagger import Tagger
from soundmill.training.vggish import Vggish
from tests.imports import ROOT
from tests.mels import TANGO

DOCUMENT = params.compose(ROOT / "conf", ["model=projected_gan", "projected_gan.train.generator.channels=4"])
TRAIN = params.parse(TrainParams, DOCUMENT["projected_gan"]["train"], "projected_gan.train")

PUBLISHED = params.compose(ROOT / "conf", ["model=projected_gan", "scale=paper"])
PAPER = params.parse(TrainParams, PUBLISHED["projected_gan"]["train"], "projected_gan.train")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projector() -> networks.Projector:
    return networks.Projector(*networks.random([2, 4, 4, 8], rng()), [2, 4, 4, 8], rng())


def module(names: list[str], steps: int = 1, **changes: object) -> ProjectedGanModule:
    widths = [2, 4, 4, 8]
    changed = {"projectors": names, "random_widths": widths, "mixed_widths": widths}
    settings = TRAIN.discriminators.model_copy(update=changed)
    trained = TRAIN.model_copy(update={"discriminators": settings, **changes})
    torch.manual_seed(0)
    chosen = networks.choose(settings, ROOT / "nowhere", 0, report=lambda text: None)
    return ProjectedGanModule(trained, Generator(trained.generator), LoopPicture(TANGO, 32_000, 192, "resize"), chosen, 0, steps)


@pytest.mark.parametrize("looped", [True, False])
def test_a_looped_picture_that_begins_later_is_the_same_picture(looped):
    net = Generator(TRAIN.generator, looped=looped)
    for _, weight in filter(lambda named: named[0].endswith("noise"), net.named_parameters()):
        nn.init.constant_(weight, 0.5)
    w, noise = torch.randn(1, net.layers, 64), net.noise(1, rng())
    with torch.no_grad():
        picture = net(w, noise)
        net.constant.copy_(net.constant.roll(1, 2))
        later = net(w, [layer.roll(layer.shape[2] // TRAIN.generator.rows, 2) for layer in noise])
    assert torch.allclose(later, picture.roll(192 // TRAIN.generator.rows, 2), atol=1e-5) == looped
    assert picture.shape == (1, 1, 192, 64)


def test_labels_add_a_vector_each_and_change_the_style():
    plain, labelled = (sum(weight.numel() for weight in Generator(TRAIN.generator, count).parameters()) for count in (0, 3))
    assert labelled - plain == 3 * 32 + 32 * 64
    net = Generator(TRAIN.generator, 3)
    z = torch.randn(1, 32, generator=rng())
    assert not torch.allclose(net.styles(z, torch.eye(3)[:1]), net.styles(z, torch.eye(3)[1:2]))


@pytest.mark.parametrize("up", [False, True])
def test_demodulated_weights_have_unit_norm_and_are_what_is_convolved(up):
    conv = ModulatedConv(6, 5, 3, 8, up=up)
    x, w = torch.randn(3, 6, 8, 8), torch.randn(3, 8)
    style = conv.modulation(w)
    weights = conv.weight * conv.scale * style[:, None, :, None, None] * conv.norms(style)[:, :, None, None, None]
    assert torch.allclose(weights.square().sum((2, 3, 4)), torch.ones(3, 5), atol=1e-5)
    for item in range(3):  # the published way: each item's own weights
        given = x[item][None]
        expected = nn.functional.conv2d(networks._twice(given) if up else given, weights[item], padding=1)[0]
        inside = (slice(None), slice(3, -3), slice(3, -3)) if up else slice(None)
        assert torch.allclose(conv(x, w)[item][inside], expected[inside], atol=1e-5)


def test_four_discriminators_give_sixty_logits():
    group = networks.Discriminators([[2, 2, 4, 4]], [2, 2, 4, 4, 8])
    shown = projector()(torch.randn(4, 1, 192, 64))
    assert [tuple(one.shape[1:]) for one in shown] == [(2, 96, 128), (2, 48, 64), (4, 24, 32), (4, 12, 16)]
    assert group([shown]).shape == (4, 60)
    assert [sum(1 for _ in discriminator.blocks) for discriminator in group.of_projector[0]] == [4, 3, 2, 1]


def test_a_batch_of_one_sound_is_told_by_its_deviation():
    same, other = torch.ones(8, 3, 4, 4), torch.randn(8, 3, 4, 4, generator=rng())
    assert networks.with_deviation(same)[:, -1].max() < 1e-3
    assert networks.with_deviation(other)[:, -1].min() > 0.5
    assert networks.with_deviation(other[:1]).shape == (1, 4, 4, 4)


def test_no_gradient_goes_into_a_projector_and_one_goes_through():
    frozen, picture = projector(), torch.randn(2, 1, 192, 64, requires_grad=True)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()
    torch.cat([one.flatten() for one in frozen(picture)]).square().sum().backward()
    assert not any(weight.requires_grad or weight.grad is not None for weight in frozen.parameters())
    assert picture.grad.abs().sum() > 0
    assert not any(part.training for part in frozen.modules())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_vggish_and_the_tagger_have_maps_of_four_halved_sizes():
    with torch.device("meta"):
        vggish = networks._cut(Vggish().features, nn.MaxPool2d)
        shown = [tuple(one.shape[1:]) for one in vggish(torch.empty(1, 1, 96, 64))]
    assert shown == [(64, 48, 32), (128, 24, 16), (256, 12, 8), (512, 6, 4)]
    net = Tagger(TANGO, 3, width=4, embedding_size=8, patch_seconds=0.1, dropout=0.0).eval()
    stack = networks._cut(net.trunk, nn.AvgPool2d, transposed=True)
    stack.blocks[-1].append(nn.AvgPool2d(2))
    assert [tuple(one.shape[1:]) for one in stack(torch.zeros(1, 1, 96, 64))] == [(4, 48, 32), (8, 24, 16), (16, 12, 8), (16, 6, 4)]
    assert len(list(stack.modules())) > len(list(net.trunk.modules()))  # every layer of it is there


def test_the_short_chunk_cnn_has_the_published_blocks_and_takes_their_weights(tmp_path):
    """pjloop-gan cuts its classifier after the fourth of its residual blocks, each of three 3 × 3 convolutions with norms."""
    net = networks.ShortChunk().eval()
    assert sum(weight.numel() for weight in net.parameters()) == 889_346
    shown = [tuple(one.shape[1:]) for one in net.stack()(torch.zeros(1, 1, 96, 64))]
    assert shown == [(64, 48, 32), (64, 24, 16), (128, 12, 8), (128, 6, 4)]
    path = tmp_path / "best_model.ckpt"
    torch.save({"epoch": 3, "model_state_dict": net.state_dict() | {"dense2.bias": torch.zeros(66)}}, path)
    settings = PAPER.discriminators.model_copy(update={"projectors": ["short_chunk"], "short_chunk": str(path)})
    (chosen,), names = networks.choose(settings, tmp_path, 0)
    assert names == ["short_chunk"]
    picture = torch.randn(2, 1, 96, 64)
    assert all(map(torch.equal, chosen.net(picture), net.stack()(picture)))
    with pytest.raises(UserError, match=r"projector 'short_chunk': set .*\.short_chunk to the file"):
        networks.choose(settings.model_copy(update={"short_chunk": str(tmp_path / "none")}), tmp_path, 0)


def test_a_projector_without_weights_is_told_and_replaced_or_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    settings = TRAIN.discriminators.model_copy(update={"projectors": ["vggish", "tagger"]})
    said: list[str] = []
    assert networks.choose(settings, tmp_path, 0, report=said.append)[1] == ["random", "random"]
    assert "soundmill weights fetch vggish" in said[0]
    assert f"projector 'tagger': {tmp_path}: no tagger here; `dvc repro tagger` trains it. Using random weights" in said[1]


@pytest.mark.parametrize(("name", "remedy"), [("vggish", "soundmill weights fetch vggish"), ("tagger", "dvc repro tagger")])
def test_a_published_training_does_not_start_with_random_projectors(monkeypatch, tmp_path, name, remedy):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    settings = PAPER.discriminators
    assert settings.projectors == ["vggish", "tagger"]
    message = rf"projector '{name}': .*`{remedy}`.* or set projected_gan\.train\.discriminators\.missing to `random`"
    with pytest.raises(UserError, match=message):
        networks.choose(settings.model_copy(update={"projectors": [name]}), tmp_path, 0)


def test_discriminators_have_the_published_channels():
    """pg_modules/discriminator.py: 64-64-128-256-512, the others begin later; separable convolutions, norms, a 4×4 head."""
    sizes = PAPER.discriminators
    with torch.device("meta"):
        net, channels = networks.random(sizes.mixed_widths, None)
        nets = nn.ModuleList(networks.Projector(net, channels, sizes.mixed_widths, None) for _ in range(2))
        chosen = nets, ["", ""]
        trained = ProjectedGanModule(PAPER, nn.Identity(), nn.Identity(), chosen, 0, 1)
    groups = trained.discriminator.of_projector
    widths = [
        [layer.out_channels for layer in discriminator.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
        for discriminator in groups[0]
    ]
    assert widths == [[64, 128, 256, 512, 1], [128, 256, 512, 1], [256, 512, 1], [512, 1]]
    block = [9 * before + before * after + 2 * after for before, after in [(64, 64), (64, 128), (128, 256), (256, 512)]]
    head = 16 * (512 + 1)
    counts = [sum(weight.numel() for weight in discriminator.parameters()) for discriminator in groups[0]]
    assert counts == [sum(block[first:]) + head for first in range(4)]
    assert sum(weight.numel() for weight in trained.discriminator.parameters()) == 2 * 696_576


def test_two_projectors_are_fused_by_adding_what_is_said_of_both():
    one, two = module(["random"]), module(["random"])
    both = networks.Discriminators([[2, 2, 4, 4]] * 2, [2, 2, 4, 4, 8]).eval()
    both.of_projector[0].load_state_dict(one.discriminator.of_projector[0].state_dict())
    both.of_projector[1].load_state_dict(two.discriminator.of_projector[0].state_dict())
    maps = [one.projectors[0](torch.randn(4, 1, 192, 64)), two.projectors[0](torch.randn(4, 1, 192, 64))]
    alone = [trained.discriminator.eval()([shown]) for trained, shown in zip((one, two), maps, strict=True)]
    assert torch.allclose(both(maps), alone[0] + alone[1], atol=1e-6)


def test_without_projection_discriminators_see_the_pictures():
    plain = module(["none"])
    assert list(plain.projectors.parameters()) == []
    assert plain.discriminator([project(torch.randn(4, 1, 192, 64)) for project in plain.projectors]).shape == (4, 60)


def test_each_picture_is_projected_once_for_all_discriminators_and_both_turns():
    training, seen = module(["random"]), []
    training.projectors[0].register_forward_hook(lambda _, given, __: seen.append(given[0].requires_grad))
    log_mel = torch.randn(4, 64, 200, generator=rng())
    losses = list(training.losses(0, Batch(0, np.zeros(4, np.int64), (log_mel,)), ["discriminator", "net"]))
    assert seen == [False, True]  # real ones, made ones
    losses[1].backward()
    assert all(weight.grad is not None for name, weight in training.net.named_parameters())


def test_a_killed_training_that_looked_through_other_nets_is_not_resumed():
    training = module(["random"])
    training.check_state(training.more_state())
    with pytest.raises(UserError, match=r"used the projectors vggish, this one has random: restore the weights, or start over"):
        training.check_state({"projectors": ["vggish"]})


def test_mixed_styles_change_later_layers_alone():
    net = Generator(TRAIN.generator)
    styles: list[torch.Tensor] = []
    for share in (0.0, 1.0):
        training = module(["random"], generator=TRAIN.generator.model_copy(update={"style_mixing": share}))
        training.net.forward = lambda w, noise, styles=styles: styles.append(w) or torch.zeros(len(w), 1, 192, 64)
        training.make(6, None, rng())
    plain, mixed = styles
    assert (plain == plain[:, :1]).all()
    changes = (mixed != mixed[:, :1]).all(2)
    assert not changes[:, 0].any()
    assert changes[:, -1].all()
    assert (changes[:, 1:] >= changes[:, :-1]).all()
    assert net.layers == mixed.shape[1] == 10


@pytest.mark.parametrize("fit", ["cut", "resize"])
def test_two_seconds_are_200_frames_and_pictures_come_back(fit):
    """Resized, all of it within a smooth picture's error; cut, 192 frames exactly, and silence."""
    picture = LoopPicture(TANGO, 32_000, 192, fit)
    assert picture.frames == 200
    time = torch.arange(201) / 200 * 2 * math.pi
    log_mel = (torch.sin(3 * time) * torch.linspace(1, 2, 64)[:, None] - 4)[None]
    picture.measure([log_mel[..., :200]])
    output = picture.encode(log_mel)
    assert output.shape == (1, 1, 192, 64)
    assert output.mean((0, 1, 2)).abs().max() < 0.15
    back = picture.decode(output)
    assert back.shape == (1, 64, 200)
    if fit == "resize":
        assert (back - log_mel[..., :200]).abs().max() < 0.02
    else:
        assert torch.allclose(back[..., :192], log_mel[..., :192], atol=1e-5)
        assert (back[..., 192:] == math.log(TANGO.floor)).all()
    assert mel.num_frames(TANGO, 32_000) == 201  # the last is the first of the next bar


def test_without_a_label_one_is_drawn_by_the_seed():
    picture = LoopPicture(TANGO, 32_000, 192, "resize")
    model = ProjectedGan(TRAIN, Generator(TRAIN.generator, 2).eval(), TANGO, picture, ["none"], [], labels=["bell", "rain"])
    drawn = set()
    for seed in range(8):
        style = model._style(Request(seed=seed), 1.0)
        drawn |= {label for label in model.labels if torch.equal(style, model._style(Request((label,), seed=seed), 1.0))}
        assert torch.equal(style, model._style(Request(("unknown",), seed=seed), 1.0))
    assert drawn == {"bell", "rain"}


def test_truncation_goes_to_the_mean_of_all_styles():
    net = Generator(TRAIN.generator).eval()
    model = ProjectedGan(TRAIN, net, TANGO, LoopPicture(TANGO, 32_000, 192, "resize"), ["none"], [])
    at = {psi: [model._style(Request(seed=seed), psi) for seed in (1, 2)] for psi in (0.0, 0.5, 1.0)}
    assert torch.equal(*at[0.0])
    assert torch.allclose(at[0.5][0], (at[0.0][0] + at[1.0][0]) / 2, atol=1e-6)
    assert not torch.equal(*at[1.0])
