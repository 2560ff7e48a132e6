"""The VGGish net (Hershey et al. 2017, arXiv:1609.09430), used as an embedder for scores and inside discriminators."""

import torch
from torch import Tensor, nn

FRAMES, BANDS, DIMENSIONS = 96, 64, 128  # of a patch, and of its embedding


class Vggish(nn.Module):
    """Log-mel patches [N, 1, 96, 64] → embeddings [N, 128]; the state has the names of torchvggish."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for wider in (64, None, 128, None, 256, 256, None, 512, 512, None):
            if wider is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU(inplace=True)]
                width = wider
        self.features = nn.Sequential(*layers)
        sizes = (width * FRAMES // 16 * BANDS // 16, 4096, 4096)
        hidden = [layer for size in sizes[:-1] for layer in (nn.Linear(size, 4096), nn.ReLU(inplace=True))]
        self.embeddings = nn.Sequential(*hidden, nn.Linear(4096, DIMENSIONS))

    def forward(self, patches: Tensor) -> Tensor:
        features = self.features(patches.contiguous(memory_format=torch.channels_last))
        return self.embeddings(features.permute(0, 2, 3, 1).flatten(1))  # the weights expect TensorFlow's channels-last order
