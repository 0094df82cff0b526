"""The processes of a training run: one per GPU when started by torchrun, otherwise a single one."""

import os
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
STARTED = time.time()


def start(device: str) -> None:
    """Join the other processes, each of which uses its own GPU. Does nothing for a single process."""
    if WORLD > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def stop() -> None:
    """Leave the other processes."""
    if WORLD > 1:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here and sees the files that the first one has written."""
    if WORLD > 1:
        dist.barrier()


def say(*words: object) -> None:
    """Print a line of progress with the seconds since the start; only the first process prints."""
    if RANK == 0:
        print(f"[{time.time() - STARTED:6.1f}]", *words, flush=True)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes."""
    if WORLD > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) / WORLD
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def broadcast(*tensors: torch.Tensor) -> None:
    """Copy the first process's values into these tensors of every process."""
    if WORLD > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def agreed(value: float, device: str) -> float:
    """The first process's value, in every process, so that all of them stop at the same step."""
    if WORLD == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()
