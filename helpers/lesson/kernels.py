"""A faster kernel for small 3D convolutions on the CPU. Lessons whose miniature has a VAE of them switch it on.

    kernels.use_onednn()

PyTorch has two: oneDNN's, and an older one of its own. It takes the older one where batch x channels x frames x rows
are at most 20,480 (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp), a bound that was found with pictures in mind:
with 16 channels, 6 frames and 146x258 pixels that one takes 460 ms of processor time, and oneDNN's takes 36.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_conv3d = functional.conv3d


def use_onednn() -> bool:
    """Let 3D convolutions in fp32 on the CPU use oneDNN whatever their size, where nothing is trained.

    It holds for this process, and differs from the other kernel by another order of summation. Returns whether this
    PyTorch has oneDNN; if not, nothing changes.
    """
    if torch.backends.mkldnn.is_available():
        functional.conv3d = conv3d
    return functional.conv3d is conv3d


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`torch.nn.functional.conv3d`, by way of oneDNN where it can be."""
    plain = input.device.type == "cpu" and input.dtype is torch.float32 and input.dim() == 5
    if not plain or torch.is_grad_enabled() or isinstance(padding, str) or type(weight.data) is not torch.Tensor:
        return _conv3d(input, weight, bias, stride, padding, dilation, groups)
    sizes = ([one] * 3 if isinstance(one, int) else list(one) for one in (padding, stride, dilation))
    return torch.ops.aten.mkldnn_convolution(input, weight, bias, *sizes, groups)
