"""What every system gives for a batch of photographs."""

from dataclasses import dataclass

import torch


@dataclass
class Prediction:
    """Logits, and the regions a system looked at.

    Attributes:
        logits: float B x C.
        boxes: float B x R x 4: x0, y0, x1, y1 in 0..1 of the image's sides, best first.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
