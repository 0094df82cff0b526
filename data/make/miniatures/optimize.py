"""The training loop: a stage is a time budget, not a number of steps."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .muon import Muon
from .processes import RANK, WORLD, agreed, average_gradients, say


def layout_of(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format in which 3D convolutions are fastest on the tensor's device."""
    return torch.channels_last_3d if tensor.is_cuda else torch.contiguous_format


def use_fast_layout(module: torch.nn.Module) -> None:
    """Convert the kernels of 3D convolutions to `layout_of`."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.to(memory_format=layout_of(layer.weight))


def as_cuda_graph(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Record the kernels that `step` launches as a CUDA graph, and return a function that launches the graph.

    A training step of these small models consists of a thousand short kernels, which Python takes longer to launch than
    the GPU takes to run. Decisions that `step` makes on the host are made once, while recording.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # CUDA requires warm-up runs on a side stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # threads of NCCL may call CUDA meanwhile
        result = step()

    def replay():
        graph.replay()
        return result

    return replay


def split_parameters(module: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The parameters for Muon, which are the matrices and kernels in the blocks of a module, and those for AdamW."""
    inner, others = [], []
    for name, parameter in module.named_parameters():
        for_muon = "block" in name and name.endswith("weight") and parameter.dim() >= 2
        (inner if for_muon else others).append(parameter)
    return inner, others


def fit(
    name: str,
    module: torch.nn.Module,
    loss_fn: Callable[[], torch.Tensor],
    minutes: float,
    work: Path,
    *,
    lr: float,
    warmup: int,
    ema_decay: float,
    device: str,
    save_every: float = 60,
    cuda_graph: bool = False,
    deadline: float | None = None,
) -> tuple[torch.nn.Module, dict]:
    """Minimise `loss_fn()` over the module's parameters for a number of minutes.

    The learning rate follows a cosine of the time used. The state is saved to `work/<name>.pt`; an interrupted stage
    resumes from it.

    Args:
        warmup: Steps over which the learning rate rises.
        ema_decay: Of the moving average of the weights, after a warm-up.
        save_every: Seconds between two saved states.
        cuda_graph: Record a step as a CUDA graph on a GPU. `loss_fn` must not make decisions on the host.
        deadline: A value of `time.time()` by which the stage ends, compilation included.

    Returns:
        A module with the exponential moving average of the weights, in evaluation mode, and the log: "steps",
        "seconds", "loss" (a list of step, seconds and mean loss) and "device".

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    state_path = work / f"{name}.pt"
    on_gpu = device == "cuda"
    # tensors, so that a CUDA graph reads their current values
    rate, kept = torch.tensor(lr, device=device), torch.tensor(0.0, device=device)
    matrices, others = split_parameters(module)
    optimizers = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu, capturable=on_gpu)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=rate))
    average = copy.deepcopy(module).requires_grad_(False)
    step, used, history = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"]), average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["lr"] = rate
        step, used, history = state["step"], state["used"], state["history"]
        say(name, "resumes at step", step, f"after {used:.0f} s")

    def save():
        if RANK != 0:
            return
        state = {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "used": used,
            "history": history,
        }
        torch.save(state, state_path.with_suffix(".part"))
        state_path.with_suffix(".part").replace(state_path)

    module.train()
    live, slow = list(module.parameters()), list(average.parameters())

    def advance():
        module.zero_grad(set_to_none=True)
        loss = loss_fn()
        loss.backward()
        average_gradients(live)
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(slow, kept)
            torch._foreach_add_(slow, torch._foreach_mul(live, 1 - kept))
        return loss.detach()

    losses, budget, told, saved = [], minutes * 60, used, used
    first_step, used_before, clock = step, used, None
    while used < budget:
        rate.fill_(lr * min(1, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * used / budget))))
        kept.fill_(min(ema_decay, (step + 1) / (step + 21)))
        if cuda_graph and on_gpu and step - first_step == 3:
            advance = as_cuda_graph(advance)
        losses.append(advance().clone())
        step += 1
        # Reading the loss waits for the GPU, so that the clock is accurate; on a CPU there is nothing to wait for.
        if step % 10 == 0 or step - first_step < 3 or not on_gpu:
            losses = losses[-50:]
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is {mean} at step {step}")
            if clock is None or step - first_step < 3:
                clock = time.time()  # the first steps compile and select kernels, which is not training time
            used = agreed(used_before + time.time() - clock, device)
            if deadline:
                budget = agreed(used + deadline - time.time(), device)
            if used - told > 10 or step == 10:
                history.append((step, round(used, 1), round(mean, 5)))
                told = used
                say(name, "step", step, f"{used:.0f} s, loss {mean:.4f}")
            if used - saved > save_every:
                saved = used
                save()
    save()
    for buffer, value in zip(average.buffers(), module.buffers(), strict=True):
        buffer.copy_(value)
    where = f"{WORLD} x {torch.cuda.get_device_name()}" if on_gpu else "cpu"
    return average.eval(), {"steps": step, "seconds": round(used, 1), "loss": history, "device": where}
