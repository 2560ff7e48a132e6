"""The family's net and what feeds it: sizes, masks, captions and their absence, timesteps, guidance."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from soundmill import params, text
from soundmill.diffusion.paths import alpha_bar
from soundmill.diffusion.sampling import Given
from soundmill.models.components.latents.store import Posteriors, drawn
from soundmill.models.components.text_states import states as conditions
from soundmill.models.family import Run
from soundmill.models.preparing import Captioned
from soundmill.models.tango import SamplingParams, TrainParams, UNetParams
from soundmill.models.tango.model import Tango, TextUNet, build_net, draw_captions, draw_times, sample_latents
from soundmill.training.loader import Arrays, Loader, Order
from soundmill.training.module import rate_factor
from tests.imports import ROOT

TINY = UNetParams(widths=[16, 32], heads=[2, 4], text_levels=[1], blocks=1, groups=8, text_width=12, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def laptop() -> TrainParams:
    document = params.compose(ROOT / "conf", ["model=tango"])
    return params.parse(TrainParams, document["tango"]["train"], "tango.train")


@pytest.fixture
def net() -> TextUNet:
    torch.manual_seed(0)
    return TextUNet(TINY, 8).eval()


def test_the_training_is_the_published_one():
    """train.py and models.py of declare-lab/tango, as README runs them (docs/models.md tells what differs)."""
    document = params.compose(ROOT / "conf", ["model=tango", "scale=paper"])
    train = params.parse(TrainParams, document["tango"]["train"], "tango.train")
    assert (train.items * train.accumulate, train.epochs, train.use) == (48, 40, "best")
    assert (train.text_dropout, train.null_text, train.ema) == (0.0, "empty", None)
    optimiser = train.optimiser
    assert (optimiser.learning_rate, optimiser.betas, optimiser.weight_decay) == (3e-5, [0.9, 0.999], 0.01)
    assert (optimiser.warmup_steps, optimiser.clip_norm) == (0, None)
    # Its scheduler counts the batches of all devices, and its total is that times the accumulation of 4.
    assert rate_factor(0, 1000, optimiser) == 1
    assert rate_factor(999, 1000, optimiser) == pytest.approx(1 - 999 / 4000)
    to_zero = optimiser.model_copy(update={"decay": "linear"})
    assert rate_factor(1000, 1000, to_zero) == 0
    diffusion, sampling = train.diffusion, train.sampling
    assert (diffusion.objective, diffusion.weighting, diffusion.min_snr_gamma) == ("v", "min_snr_tango", 5.0)
    assert (diffusion.num_timesteps, diffusion.stratified) == (1000, False)
    assert (sampling.sampler, sampling.num_steps, sampling.guidance_scale) == ("ddpm", 200, 3.0)
    mixup = document["mixup"]
    assert (mixup["pairing"], mixup["partner"]) == ("pressure", "any")
    assert mixup["ratio"] == train.epochs * train.mixed_items / train.real_items  # no mix is seen twice


def test_the_schedule_is_the_published_one(laptop):
    table = alpha_bar(laptop.diffusion)
    assert [round(table[t].item(), 7) for t in (0, 500, 999)] == pytest.approx([0.99915, 0.27633, 0.0046601], rel=1e-4)


def test_hidden_tokens_change_nothing_and_visible_ones_do(net):
    xt, t, states = torch.randn(2, 8, 16, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    with torch.no_grad():
        answer = net(xt, t, states, mask)
        torch.testing.assert_close(answer, net(xt, t, torch.where(mask[..., None], states, 1e3), mask))
        assert not torch.allclose(answer, net(xt, t, states.flip(1), mask))
        longer = torch.cat([states, torch.zeros(2, 4, 12)], 1), torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1)
        torch.testing.assert_close(answer, net(xt, t, *longer), atol=1e-5, rtol=1e-5)
    assert answer.shape == xt.shape


def test_activations_computed_again_give_the_same_gradients(net):
    thrifty = TextUNet(TINY.model_copy(update={"gradient_checkpointing": True}), 8)
    thrifty.load_state_dict(net.state_dict())
    rng = torch.Generator().manual_seed(1)
    xt, states = torch.randn(1, 8, 16, 8, generator=rng), torch.randn(1, 5, 12, generator=rng)
    for one in (net, thrifty):
        one.train()(xt, torch.tensor([3]), states, torch.ones(1, 5, dtype=torch.bool)).square().mean().backward()
    for plain_weight, thrifty_weight in zip(net.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(plain_weight.grad, thrifty_weight.grad)


def test_the_published_net_takes_latents_of_ten_seconds():
    paper = params.compose(ROOT / "conf", ["model=tango", "scale=paper"])["tango"]
    frames = paper["latents"]["num_samples"] // 160 // 4
    with torch.device("meta"):
        published = build_net(params.parse(TrainParams, paper["train"], "tango.train"), (8, frames, 16))
        answer = published(torch.empty(1, 8, frames, 16), torch.zeros(1), torch.empty(1, 9, 1024), torch.ones(1, 9).bool())
    assert answer.shape == (1, 8, 256, 16)


def test_states_are_padded_with_a_mask():
    values, mask = conditions.pad([np.ones((3, 2), "<f2"), 2 * np.ones((9, 2), "<f2")])
    assert values.shape == (2, 16, 2)
    assert mask.sum(1).tolist() == [3, 9]
    assert values[0, :, 0].tolist() == [1.0] * 3 + [0.0] * 13
    assert (values[mask].sum() == values.sum()).item()


def test_no_text_is_named_in_two_ways():
    empty = np.full((2, 4), 0.5, "<f2")
    assert conditions.null_of("empty", empty) is empty
    zeros = conditions.null_of("zeros", empty)
    assert zeros.shape == (1, 4)  # one token that can be seen: a mask that hides all would spread attention over the padding
    assert not zeros.any()


def flat(path: Path, arrays: list[np.ndarray]) -> Arrays:
    path.write_bytes(b"".join(array.astype("<f2").tobytes() for array in arrays))
    offsets = np.cumsum([0, *(2 * array.size for array in arrays)])[:-1]
    return Arrays(path, [str(number) for number in range(len(arrays))], np.array([array.shape for array in arrays]), offsets)


def test_an_item_is_told_one_of_its_captions_or_nothing(tmp_path):
    """Captions 0 and 1 are the first item's, none the second's; the chance drawn says which, and below the share, none."""
    posteriors = flat(tmp_path / "latents", [np.full((2, 4, 2, 2), number) for number in range(2)])
    texts = conditions.Texts(flat(tmp_path / "texts", [np.full((n + 1, 3), n + 1) for n in range(2)]), np.full((1, 3), 9))
    source = Captioned(Posteriors(posteriors), [[0, 1], []], texts.padded, dropout=0.1)
    drawn = np.array([[0, 0.0, 0.5], [0, 0.49, 0.1], [0, 0.5, 0.9], [0, 0.99, 0.5], [0, 0.99, 0.0999], [0, 0.5, 0.5]])
    latents, states, mask = source.batch(np.array([0, 0, 0, 0, 0, 1]), drawn)
    assert latents[:, 0, 0, 0, 0].tolist() == [0, 0, 0, 0, 0, 1]
    assert states[:, 0, 0].tolist() == [1, 1, 2, 2, 9, 9]
    assert mask.sum(1).tolist() == [1, 1, 2, 2, 1, 1]


def test_every_caption_of_a_clip_is_told_as_often_and_which_follows_from_the_step(tmp_path):
    """Five captions, as AudioCaps' test clips have; a training that resumes is told the same as one that goes on."""
    posteriors = flat(tmp_path / "latents", [np.zeros((2, 1, 1, 1))])
    texts = conditions.Texts(flat(tmp_path / "texts", [np.full((1, 1), number) for number in range(5)]), np.full((1, 1), 9))
    source = Captioned(Posteriors(posteriors), [[0, 1, 2, 3, 4]], texts.padded)

    def told(first: int) -> list[float]:
        loader = Loader(source, Order(3, {"clip": 1.0}, 2), partial(draw_captions, 3, 2), steps=1000)
        loader.step = first
        return [value for batch in loader for value in batch.values[1][:, 0, 0].tolist()]

    whole = told(0)
    assert whole[1400:] == told(700)
    counts = [whole.count(number) for number in range(5)]
    assert sum(counts) == 2000  # never without text
    assert max(abs(count - 400) for count in counts) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def test_the_share_of_items_without_text_is_the_one_asked_for():
    dropped = torch.cat([draw_captions(0, 50, step)[:, 2] < 0.1 for step in range(200)]).float()
    assert dropped.mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 10_000) ** 0.5)
    assert torch.equal(draw_captions(0, 50, 3), draw_captions(0, 50, 3))
    assert not torch.equal(draw_captions(0, 50, 3), draw_captions(0, 50, 4))


@pytest.mark.parametrize("stratified", [True, False])
def test_clips_and_mixes_both_see_all_of_time(laptop, stratified):
    diffusion = laptop.diffusion.model_copy(update={"stratified": stratified})
    changed = laptop.model_copy(update={"diffusion": diffusion})
    drawn = torch.stack([1000 * draw_times(changed, 4, step) for step in range(500)])
    assert (drawn.min().item(), drawn.max().item()) == pytest.approx((0, 999), abs=15)
    means = drawn.float().mean(0)
    assert ((means - 499.5).abs() < 4 * 289 / 500**0.5).all()
    assert bool(((drawn.sort(1).values // 250) == torch.arange(4)).all()) == stratified


def test_latents_are_drawn_from_their_posterior():
    posterior = torch.stack([torch.full((4, 32, 32), 2.0), torch.full((4, 32, 32), -1.0)])[None].half()
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    x0 = 0.5 * drawn(posterior, noise)
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, 0.5 * (2 + np.exp(-0.5) * noise))


class Shaped:
    """Of an autoencoder, what drawing latents needs."""

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        return 8, frames // 4, 8


def test_guidance_of_one_is_the_conditional_and_items_stand_alone(net, laptop):
    sampling = SamplingParams(
        sampler="ddpm", spacing="leading", variance="small", num_steps=3, guidance_scale=1.0, grain=0.0,
        vocoder="griffin_lim", griffin_lim_iterations=1, griffin_lim_momentum=0.0,
    )  # fmt: skip
    model = Tango(laptop, net, Shaped(), 32)
    rng = np.random.default_rng(0)
    texts, null = [rng.standard_normal((length, 12)).astype("<f2") for length in (3, 9)], rng.standard_normal((1, 12)).astype("<f2")

    def make(chosen: list[int], null: np.ndarray, scale: float) -> torch.Tensor:
        changed = sampling.model_copy(update={"guidance_scale": scale})
        run = Run(changed, torch.device("cpu"), "32", batch_size=2, home=Path("."), scratch=Path("."))
        return sample_latents(model, [texts[one] for one in chosen], null, [10 + one for one in chosen], run, Given())

    conditional = make([0, 1], null, 1.0)
    torch.testing.assert_close(conditional, make([0, 1], 3 * null, 1.0), rtol=0, atol=0)  # no other text has a say
    guided = make([0, 1], null, 3.0)
    assert not torch.allclose(guided, conditional, atol=1e-3)
    assert not torch.allclose(guided, make([0, 1], 3 * null, 3.0), atol=1e-3)
    torch.testing.assert_close(make([1], null, 3.0), guided[1:], atol=1e-4, rtol=1e-4)
    same_text_as_null = make([0], texts[0], 3.0)
    torch.testing.assert_close(same_text_as_null, conditional[:1], atol=1e-4, rtol=1e-4)


def test_a_prompt_that_is_cut_is_told(tmp_path, capsys):
    encoder = text.make_scratch(tmp_path / "one", width=16, layers=1, heads=2, seed=0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "seed": 0}
    config = conditions.TextConfig(**encoder.identity(), max_tokens=8, scratch=sizes)
    states = conditions.encode(config, ["rain", "rain upon rain", "rain"], tmp_path, tmp_path / "two")
    assert [len(part) for part in states] == [5, 8, 5]  # bytes, and the end
    assert capsys.readouterr().out == "a prompt is longer than 8 tokens and is truncated: 'rain upon rain'…\n"
