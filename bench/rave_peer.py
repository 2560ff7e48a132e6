"""acids-rave in a program without Soundmill's imports, for its own environment (see bench/rave.py).

`python -P bench/rave_peer.py codec SECONDS` encodes and decodes sound with its published v1 model and random weights; `python -P
bench/rave_peer.py step ITEMS SAMPLES COUNT` trains it on COUNT batches of noise. Prints CPU seconds as JSON.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

RATE, WARM_UP_SECONDS = 48_000, 1


def model() -> Any:
    import gin
    import rave

    gin.parse_config_file(str(Path(rave.__file__).parent / "configs" / "v1.gin"))
    return rave.RAVE(n_channels=1)


def codec(seconds: float) -> list[float]:
    import torch

    net = model().eval()
    latent = 2048
    with torch.no_grad():
        for length in (WARM_UP_SECONDS * RATE, seconds * RATE):
            wave = 0.1 * torch.randn(1, 1, round(length / latent) * latent)
            start = time.process_time()
            net(wave)
            taken = time.process_time() - start
    return [taken]


def step(items: int, samples: int, count: int) -> list[float]:
    import pytorch_lightning as pl
    import torch

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.start = time.process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(time.process_time() - self.start)

    clock = Clock()
    batches = [0.1 * torch.randn(items, 1, samples) for _ in range(count)]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory(prefix="soundmill-bench-") as folder:  # it requires a directory for logs
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[clock], default_root_dir=folder, **quiet)
        trainer.fit(model(), torch.utils.data.DataLoader(batches, batch_size=None))
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["codec", "step"])
    parser.add_argument("numbers", type=float, nargs="+")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    numbers = [int(number) for number in args.numbers]
    print(json.dumps(codec(*numbers) if args.what == "codec" else step(*numbers)))


if __name__ == "__main__":
    main()
