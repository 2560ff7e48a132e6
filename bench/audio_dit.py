"""A training step of `audio_dit` against diffusers' own: the same net, batch, loss and optimiser, written plainly.

In one process each side takes a few steps in turn, on the same noise as latents and states. The plain step builds the conditions as
StableAudioPipeline does and calls StableAudioDiTModel. On a CPU the ratio is of CPU seconds, which other processes hardly affect.
Peak memory is that of a new process for each side, above what it holds before its first step.

python -m bench.audio_dit audio_dit.train.batch_size=4
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import measure
from bench.measure import Target, ratio
from soundmill import params

SIDES = ("audio_dit", "diffusers")


def main() -> None:
    parser = measure.parser(__doc__, steps=3, repetitions=5)
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("overrides", nargs="*", help="overrides of parameters: audio_dit.train.batch_size=4")
    args = parser.parse_args()
    choices = ["model=audio_dit", f"scale={args.scale}", *args.overrides]
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    steps = {side: step_of(side, choices) for side in SIDES}
    for step in steps.values():
        step()
    for _, side in measure.turns(SIDES, args.repetitions):
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(args.steps):
            steps[side]()
        seconds[side].append(time.perf_counter() - start)
        cpu_seconds[side].append(time.process_time() - cpu)
    memory = {side: measure.in_fresh_process(peak_of, side, choices) for side in SIDES}
    for side in SIDES:
        per_step = statistics.median(cpu_seconds[side]) / args.steps
        print(f"{side}: {per_step:.3g} CPU seconds per step, {memory[side] / 1e6:.0f} MB")
    targets = [
        Target("a step of diffusers over one of audio_dit", ratio(cpu_seconds["diffusers"], cpu_seconds["audio_dit"]), 0.95),
        Target("memory of audio_dit over diffusers'", memory["audio_dit"] / memory["diffusers"], 1.05, at_least=False),
    ]
    measure.write("audio_dit", args.results, args.steps, seconds, targets, cpu_seconds=cpu_seconds, memory_bytes=memory)


def peak_of(side: str, choices: list[str]) -> int:
    """Peak memory in bytes of three steps, with gradients and the optimiser's state, above weights and data."""
    step = step_of(side, choices)
    return measure.peak_memory(lambda: [step() for _ in range(3)])


def step_of(side: str, choices: list[str]) -> Callable[[], Any]:
    """A function that takes one training step."""
    import torch

    from soundmill.models import registry
    from soundmill.models.audio_dit import TrainParams
    from soundmill.training.device import use_threads

    document = params.compose(measure.ROOT / "conf", choices)
    train = params.parse(TrainParams, document["audio_dit"]["train"], "audio_dit.train")
    use_threads(train.hardware.threads)
    torch.manual_seed(0)
    rehearsal = registry.family("audio_dit").rehearse(document, num_labels=0)
    module, batch = rehearsal.module, rehearsal.batch(0)
    if side == "audio_dit":
        optimiser = module.optimisers()["net"]
        return partial(_step, lambda: module.loss(0, batch), optimiser)
    optimiser = torch.optim.AdamW(module.net.parameters(), lr=train.optimiser.learning_rate, fused=True)
    return partial(_step, partial(plain_loss, module.net.transformer, module.net.projection_model, batch.values), optimiser)


def _step(loss: Callable[[], Any], optimiser: Any) -> None:
    loss().backward()
    optimiser.step()
    optimiser.zero_grad()


def plain_loss(transformer: Any, projection: Any, values: tuple[Any, ...]) -> Any:
    """Rectified flow's loss of latents and conditions, by diffusers' modules alone."""
    import torch
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    posterior, states, mask, _, seconds, _ = values
    x0 = posterior[:, 0].permute(0, 1, 3, 2).flatten(1, 2)
    noise, t = torch.randn_like(x0), torch.sigmoid(torch.randn(len(x0)))
    told = projection(states, seconds[:, 0], seconds[:, 1])
    start, end = told.seconds_start_hidden_states, told.seconds_end_hidden_states
    width = transformer.config.attention_head_dim // 2
    answer = transformer(
        torch.lerp(x0, noise, t[:, None, None]),
        t,
        encoder_hidden_states=torch.cat([told.text_hidden_states * mask[..., None], start, end], 1),
        global_hidden_states=torch.cat([start, end], 2),
        rotary_embedding=get_1d_rotary_pos_embed(width, x0.shape[2] + 1, use_real=True, repeat_interleave_real=False),
    ).sample
    return (answer - (noise - x0)).square().mean()


if __name__ == "__main__":
    main()
