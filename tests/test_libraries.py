"""timm and torchvision without torch's compiler: as quick as they can be, and whole."""

import subprocess
import sys

import pytest

CODE = """
import sys
from opam.pipeline.libraries import timm, torch, torchvision
assert "torch._dynamo" not in sys.modules, "the compiler is loaded"
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
found = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo.utils
assert found == torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo.__file__, "the stand-in stayed"
ropes = sys.modules["timm.models.naflexvit"].NaFlexRopeIterator
assert ropes.__next__.__name__ == "__next__"
assert isinstance(torch.compile(torch.nn.Linear(1, 1)), torch.nn.Module)
"""


OUTLINES = """
import sys
from opam.networks.backbones.backbone import Backbone
from opam.pipeline.libraries import torch, without_weights
network = Backbone("test_efficientnet")
assert "sympy" not in sys.modules, "an algebra system is loaded"
assert "torch._dynamo" not in sys.modules, "the compiler is loaded"
assert network.body.conv_stem.weight.std() > 0, "nothing was drawn"
with without_weights():
    assert torch.nn.Linear(2, 3).weight.device.type == "meta"
assert torch.nn.Linear(2, 3).weight.std() > 0
from torch.fx.experimental.symbolic_shapes import ShapeEnv
assert ShapeEnv() is not None
"""


TRAINS = """
import sys
from opam.pipeline.libraries import timm, torch, without_compiler
from opam.evaluation.cost import gflops
network = timm.create_model("mobilenetv3_small_050", num_classes=2)
images = torch.ones(2, 3, 64, 64)
with without_compiler():
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
before = network.classifier.bias.clone()
for _ in range(2):
    network(images).logsumexp(1).sum().backward()
    with without_compiler():
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
assert not torch.equal(network.classifier.bias, before)
assert network.classifier.bias.grad is None
assert gflops(lambda: network(images)) > 0
assert "torch._dynamo" not in sys.modules, "the compiler is loaded"
with without_compiler():
    import torch._dynamo
    assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
assert torch._dynamo.__file__, "the stand-in stayed"
assert isinstance(torch.compile(torch.nn.Linear(1, 1)), torch.nn.Module)
"""


def test_a_backbone_is_outlined_without_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUTLINES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_only_refuses_the_compiler_does_not_load_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("before", ["", "import torch._dynamo.utils\n"])
def test_what_they_ask_of_the_compiler_waits(before: str) -> None:
    code = before + (CODE.replace('assert "torch._dynamo" not', "#") if before else CODE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
