"""What the tests of several systems share."""

from typing import Any

import torch
from torch import nn

from opam.systems.prediction import Prediction

IMAGES = torch.randint(
    0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def predict(network: nn.Module, images: torch.Tensor) -> Prediction:
    with torch.inference_mode():
        return network.eval()(images)


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes of coloured patterns, three noisy photographs of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 4
    patterns = torch.randint(0, 256, (4, 3, 8, 8), generator=generator).float()
    images = patterns.repeat_interleave(8, 2).repeat_interleave(8, 3)[labels]
    noise = 40 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 255).byte(), labels


def losses_while_it_learns(network: Any, steps: int) -> list[float]:
    """Show it `photographs` again and again."""
    images, labels = photographs()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, _ = network.train().loss(images, labels, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_known_by_heart(network: Any) -> None:
    images, labels = photographs()
    assert torch.equal(predict(network, images).logits.argmax(1), labels)


def two_squares() -> torch.Tensor:
    """Two images with a red square in a corner; the first also has a larger green one."""
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    images[:, 0, 0:16, 0:16] = 255
    images[0, 1, 32:64, 48:96] = 255
    return images


def assert_green_then_red(prediction: Prediction) -> None:
    """Of `two_squares`: class 1 and the green square, class 0 and the red one, within a cell."""
    assert prediction.logits.argmax(1).tolist() == [1, 0]
    assert prediction.boxes is not None
    cell = torch.tensor([8 / 96, 8 / 64, 8 / 96, 8 / 64])
    green, red = torch.tensor([48 / 96, 32 / 64, 1, 1]), torch.tensor([0, 0, 16 / 96, 16 / 64])
    assert ((prediction.boxes[0, 0] - green).abs() < cell).all()
    assert ((prediction.boxes[1, 0] - red).abs() < cell).all()
