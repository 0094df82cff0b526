"""A faster kernel for small 3D convolutions on the CPU, which the VAEs of the miniatures consist of.

    use_onednn()

PyTorch has two kernels: oneDNN's, and an older one. It uses the older one where batch x channels x frames x rows is at
most 20,480 (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp), a threshold chosen with pictures in mind: for 16
channels, 6 frames and 146x258 pixels the older kernel takes 460 ms of CPU time, and oneDNN's 36 ms.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_conv3d = functional.conv3d


def use_onednn() -> bool:
    """Make 3D convolutions in fp32 on the CPU use oneDNN at any size, except while training.

    This applies to the whole process. Results differ from the other kernel's only by the order of summation. Return
    whether this PyTorch has oneDNN; if it does not, nothing changes.
    """
    if torch.backends.mkldnn.is_available():
        functional.conv3d = conv3d
    return functional.conv3d is conv3d


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`torch.nn.functional.conv3d`, through oneDNN where possible."""
    plain = input.device.type == "cpu" and input.dtype is torch.float32 and input.dim() == 5
    if not plain or torch.is_grad_enabled() or isinstance(padding, str) or type(weight.data) is not torch.Tensor:
        return _conv3d(input, weight, bias, stride, padding, dilation, groups)
    sizes = ([one] * 3 if isinstance(one, int) else list(one) for one in (padding, stride, dilation))
    return torch.ops.aten.mkldnn_convolution(input, weight, bias, *sizes, groups)
