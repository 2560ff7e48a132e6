"""The family's net and what feeds it: sizes, conditions as in the library's pipeline, latents, times, dropout."""

import numpy as np
import pytest
import torch

from soundmill import params
from soundmill.diffusion.paths import shifted
from soundmill.models import registry
from soundmill.models.audio_dit import DropoutParams, FlowParams, TrainParams
from soundmill.models.audio_dit.model import Layout, draw_times, dropped, layout
from soundmill.models.components.dit.network import Conditions, DiT, hidden, padded
from soundmill.models.components.dit.params import TransformerParams
from soundmill.training.loop import rehearse
from tests.imports import ROOT
from tests.stages.of_waves import ONE

TINY = TransformerParams(
    layers=2,
    heads=4,
    head_width=8,
    key_heads=2,
    condition_width=12,
    text_width=10,
    text_tokens=5,
    max_seconds=20.0,
    gradient_checkpointing=False,
)


def random_net(labels: int = 0, **changes: object) -> DiT:
    """With random weights everywhere: at its start, the last layer of every branch is zero."""
    torch.manual_seed(0)
    net = DiT(TINY.model_copy(update=changes), 6, 16, labels).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return net


def conditions(count: int = 2, labels: int = 0) -> Conditions:
    rng = torch.Generator().manual_seed(1)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    seconds = torch.tensor([[0.0, 3.5], [2.0, 19.0]])
    weights = torch.eye(2, labels) if labels else torch.zeros(2, 0)
    values = torch.randn(2, 5, 10, generator=rng), mask, weights, seconds, torch.ones(2, 2, dtype=torch.bool)
    return Conditions(*(value[:count] for value in values))


def test_a_small_net_like_open_small_s_trains_its_adapters():
    sizes = {"layers": 1, "heads": 2, "head_width": 8, "key_heads": 2, "condition_width": 8, "context_width": 16, "text_width": 8}
    chosen = ["model=audio_dit", "audio_dit=open_small", "+lora@audio_dit.train.lora=attention", "audio_dit.train.lora.rank=2"]
    chosen += ["audio_dit.train.start_from=../open", "audio_dit.train.accumulate=1", "audio_dit.train.optimiser.warmup_steps=0"]
    chosen += [f"audio_dit.train.network.{key}={value}" for key, value in sizes.items()]
    chosen += ["audio_dit.train.batch_size=2", f"audio_dit.train.hardware={ONE}", "audio_dit.latents.num_samples=32768"]
    document = params.compose(ROOT / "conf", chosen)
    train = params.parse(TrainParams, document["audio_dit"]["train"], "")
    rehearsal = registry.family("audio_dit").rehearse(document, 0)
    rehearsal.module.adapt(train.lora, train.hardware)
    before = {name: weight.clone() for name, weight in rehearsal.module.net.state_dict().items()}
    rehearse(rehearsal.module, rehearsal.batch, train.hardware, 2)
    changed = {name for name, weight in rehearsal.module.net.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any("norm_q" in name for name in before)


def test_it_is_the_library_s_pipeline():
    """The same transformer and projections, conditioned and unconditional, at equal noise: latents after the pipeline's steps."""
    from diffusers import AutoencoderOobleck, EDMDPMSolverMultistepScheduler, StableAudioPipeline

    net, told = random_net(), conditions(1)
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential"
    )

    vae = AutoencoderOobleck(4, [2, 4], [1, 2], 4, 2, audio_channels=1, sampling_rate=16)
    parts = {"vae": vae, "transformer": net.transformer, "projection_model": net.projection_model, "scheduler": scheduler}
    pipeline = StableAudioPipeline(**parts, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
    theirs = pipeline(
        prompt_embeds=told.states,
        attention_mask=told.mask.long(),
        audio_start_in_s=0.0,
        audio_end_in_s=3.5,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).audios

    scheduler.set_timesteps(4)
    xt = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(xt, t)
            both = (torch.cat(pair) for pair in zip(hidden(told), told, strict=True))
            free, bound = net(torch.cat([scaled, scaled]), t[None], *both).chunk(2)
            xt = scheduler.step(free + 3.0 * (bound - free), t, xt).prev_sample
    torch.testing.assert_close(xt, theirs, atol=5e-5, rtol=1e-5)  # from noise of deviation 500, in float32


def test_what_is_hidden_changes_nothing_and_what_is_told_does():
    net, told = random_net(labels=2), conditions(labels=2)
    xt, t = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        answer = net(xt, t, *told)
        beyond = told._replace(states=torch.where(told.mask[..., None], told.states, 1e3))
        torch.testing.assert_close(net(xt, t, *beyond), answer)
        for name, value in {"states": told.states.flip(1), "labels": told.labels.flip(0), "seconds": told.seconds + 1}.items():
            assert not torch.allclose(net(xt, t, *told._replace(**{name: value})), answer, atol=1e-4), name
        nothing = hidden(told)
        for name, value in {"states": told.states, "labels": told.labels}.items():
            same = nothing._replace(**{name: value}) if name == "states" else nothing
            torch.testing.assert_close(net(xt, t, *same), net(xt, t, *nothing))
        assert not torch.allclose(net(xt, t, *nothing._replace(seconds=told.seconds + 1)), net(xt, t, *nothing), atol=1e-4)
        untold = nothing._replace(told=torch.zeros(2, 2, dtype=torch.bool))
        torch.testing.assert_close(net(xt, t, *untold._replace(seconds=told.seconds + 1)), net(xt, t, *untold))
        torch.testing.assert_close(net(xt[1:], t[1:], *(value[1:] for value in told)), answer[1:])
        assert net(torch.cat([xt, xt], 2), t, *told).shape == (2, 6, 32)


def test_it_starts_from_a_net_without_branches():
    net = DiT(TINY, 6, 16, 0)
    xt, t = torch.randn(2, 6, 16), torch.tensor([0.2, 0.7])
    linear = net.transformer.proj_out(net.transformer.proj_in(xt.transpose(1, 2))).transpose(1, 2)
    torch.testing.assert_close(net(xt, t, *conditions()), linear)


def test_activations_computed_again_give_the_same_gradients():
    plain, thrifty = random_net(), random_net(gradient_checkpointing=True)
    xt = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    for net in (plain, thrifty):
        net.train()(xt, torch.tensor([0.2, 0.7]), *conditions()).square().mean().backward()
    for one, other in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_texts_have_one_length():
    values, mask = padded([np.ones((2, 3), "<f2"), None, np.ones((9, 3), "<f2")], 4, 3)
    assert (values.shape, values.dtype) == ((3, 4, 3), torch.float32)
    assert mask.sum(1).tolist() == values[..., 0].sum(1).tolist() == [2, 0, 4]


def test_latents_are_folded_and_standardised():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, (3, 1, 4))
    means = (scale * rng.standard_normal((200, 3, 8, 4)) + np.arange(12).reshape(3, 1, 4)).astype("<f2")
    posteriors = [np.stack([mean, np.full_like(mean, -2.0)]) for mean in means]
    standard = layout((3, 8, 4), 0.5, posteriors)
    torch.testing.assert_close(standard.mean, torch.arange(12) * 0.5, atol=0.1, rtol=0.05)
    expected = 0.5 * np.sqrt(scale**2 + np.exp(-2)).flatten()
    torch.testing.assert_close(standard.deviation, torch.from_numpy(expected).float(), atol=0, rtol=0.05)
    noise = torch.randn(200, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    x0 = standard.x0(torch.from_numpy(np.stack(posteriors)), noise)
    assert x0.shape == (200, 12, 8)
    assert float(x0.mean(dim=(0, 2)).abs().max()) < 0.03
    torch.testing.assert_close(x0.std(dim=(0, 2)), torch.ones(12), atol=0.03, rtol=0)
    drawn = 0.5 * (torch.from_numpy(means).float() + np.exp(-1) * noise)
    torch.testing.assert_close(standard.unfold(x0), drawn, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(standard.fold(drawn), x0)
    together = layout((3, 8, 4), 0.5, posteriors, together=True)
    scaled = together.x0(torch.from_numpy(np.stack(posteriors)), noise)
    assert float(scaled.square().mean()) == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(scaled * together.deviation[0], drawn.permute(0, 1, 3, 2).flatten(1, 2))
    plain = layout((3, 8, 4), 0.5)
    assert (plain.mean.tolist(), plain.deviation.tolist()) == ([0.0] * 12, [1.0] * 12)
    # A channel is a band of a latent channel, at all frames.
    picture = torch.arange(96.0).reshape(1, 3, 8, 4)
    assert torch.equal(Layout(4, torch.zeros(12), torch.ones(12), 1.0).fold(picture)[0, 6], picture[0, 1, :, 2])
    silent = layout((1, 4, 1), 1.0, [np.stack([np.zeros((1, 4, 1)), np.full((1, 4, 1), -30.0)]).astype("<f2")])
    assert torch.isfinite(silent.fold(torch.zeros(1, 1, 4, 1))).all()


@pytest.mark.parametrize(("times", "half"), [("uniform", 0.25), ("logit_normal", 0.1359)])
def test_times_are_spread_over_their_distribution(times, half):
    flow = FlowParams(objective="rectified_flow", times=times, base_frames=None)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_times(flow, 16, 8, rng) for _ in range(2000)])
    assert float((drawn < 0.25).double().mean()) == pytest.approx(half, abs=5e-3)
    uniform = drawn if times == "uniform" else torch.special.ndtr(torch.logit(drawn))
    assert torch.equal((uniform.sort(1).values * 8).floor(), torch.arange(8.0).expand(2000, 8))
    assert float(drawn[:, 0].mean()) == pytest.approx(0.5, abs=0.03)  # shuffled
    shifting = flow.model_copy(update={"base_frames": 4})
    rngs = [torch.Generator().manual_seed(0) for _ in range(2)]
    moved = shifted(draw_times(flow, 16, 8, rngs[0]), 2.0)
    torch.testing.assert_close(draw_times(shifting, 16, 8, rngs[1]), moved)


def test_each_condition_is_dropped_at_its_own_rate():
    told = conditions(labels=2)
    many = Conditions(*(value[:1].expand(40_000, *value.shape[1:]) for value in told))
    chances = torch.rand(40_000, 4, generator=torch.Generator().manual_seed(0))
    left = dropped(many, DropoutParams(condition=0.1, seconds=0.2, all=0.3), chances)
    text, label, attention, overall = left.mask.any(1), left.labels.any(1), left.told[:, 0], left.told[:, 1]
    shares = [float(seen.double().mean()) for seen in (text, label, attention, overall, text & label, text & attention)]
    assert shares == pytest.approx([0.9 * 0.7, 0.9 * 0.7, 0.8 * 0.7, 0.8, 0.9 * 0.9 * 0.7, 0.9 * 0.8 * 0.7], abs=0.01)
    assert bool((attention <= overall).all())
    whole = dropped(many, DropoutParams(condition=0.0, seconds=0.0, all=0.0), chances)
    assert all(torch.equal(one, other) for one, other in zip(whole, many, strict=True))
    everything = dropped(told, DropoutParams(condition=0.0, seconds=0.0, all=1.0), chances[:2])
    net, xt, t = random_net(labels=2), torch.ones(2, 6, 16), torch.tensor([0.2, 0.7])
    torch.testing.assert_close(net(xt, t, *everything), net(xt, t, *hidden(told)))  # what guidance compares with was trained
