"""The faster 3D convolution runs, gives the same numbers, and leaves the rest to PyTorch."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.lesson import kernels

pytestmark = [
    pytest.mark.lesson,
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"),
]


class Operations(TorchDispatchMode):
    """Counts the operations that run inside."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.overloadpacket._qualified_op_name)
        return operation(*args, **(kwargs or {}))


FASTER = "aten::mkldnn_convolution"


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    monkeypatch.setattr(functional, "conv3d", functional.conv3d)  # put back afterwards
    assert kernels.use_onednn() and kernels.use_onednn()


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": (1, 0, 1)}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}, {"bias": False}],
    ids=str,
)
@torch.no_grad()
def test_it_agrees_with_pytorchs_own_choice(options):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(4, 6, 3, **options)
    video = torch.randn(1, 4, 7, 9, 11)
    given = layer.stride, layer.padding, layer.dilation, layer.groups
    usual = kernels._conv3d(video, layer.weight, layer.bias, *given)
    with Operations() as ran:
        faster = layer(video)
    assert (FASTER in ran.names) == (layer.padding != "same"), "a padding given as a word takes the usual kernel"
    torch.testing.assert_close(faster, usual, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_types_and_devices_go_the_usual_way(dtype):
    layer = torch.nn.Conv3d(2, 2, 3)
    with Operations() as ran:
        layer.to(dtype)(torch.randn(1, 2, 4, 4, 4, dtype=dtype))
    assert FASTER not in ran.names
    assert layer.to(dtype)(torch.randn(1, 2, 4, 4, 4, dtype=dtype)).dtype is dtype
    assert layer.to("meta")(torch.empty(1, 2, 4, 4, 4, dtype=dtype, device="meta")).shape == (1, 2, 2, 2, 2)
    assert torch.nn.Conv3d(2, 2, 3)(torch.randn(2, 4, 4, 4)).shape == (2, 2, 2, 2)


def test_training_goes_the_usual_way():
    layer = torch.nn.Conv3d(2, 2, 3)
    with Operations() as ran:
        output = layer(torch.randn(1, 2, 4, 4, 4))
    assert FASTER not in ran.names
    output.sum().backward()
    assert layer.weight.grad.abs().sum() > 0
