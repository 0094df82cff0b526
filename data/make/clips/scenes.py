"""A renderer of machine clips: an excavator, a wheel loader and a wood chipper, drawn in torch.

    frames, prompts = render("excavator", seeds=[7, 8], action="raises its arm", speed="slowly")
    frames.shape                          # [2, 25, 3, 160, 288], float in 0..1
    prompts[0]                            # "the excavator raises its arm slowly"

A seed gives the same scene whatever the batch, size or device.

The motion is *autonomous*: one frame and the prompt, which names the action and the speed, determine what happens next.
Every clip therefore has a true continuation, and a model's continuation can be compared with it. The exception is the
sway of the hand-held camera: several frames show how it moves, a single frame does not.

    frames, _ = render("excavator", seeds=[7, 8], ambient=[0.2, 0.8])  # the machine stops, everything else moves on

An *ambient* clip begins when the machine stops: the engine idles, airborne material falls, dust drifts away, clouds and
trees move in the wind (which blows away from the sun), and the camera drifts in. The amount of motion, from 0 (a still)
to 1, sets how fast all of this goes; one frame and the amount determine what happens next.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .drawing import HEIGHT, WIDTH, Canvas, Draws
from .machines import Action, excavator, wheel_loader, wood_chipper
from .terrain import background

FPS = 24
SPEEDS = {"slowly": 0.7, "": 1.1, "quickly": 1.6}
ACTIONS = {
    "excavator": ("lowers its arm and digs", "raises its arm", "empties its bucket"),
    "wheel loader": ("drives to the left", "drives to the right", "raises its bucket", "lowers its bucket"),
    "wood chipper": ("throws chips to the left", "throws chips to the right", "pulls in the log"),
}
MACHINES = tuple(ACTIONS)
AMBIENT_PACE = 2.0  # how much faster than the clock an ambient clip runs at amount 1
DRIFT = 0.022  # relative growth of the picture per second of ambient time, as the camera drifts in
_DRAW = {"excavator": excavator, "wheel loader": wheel_loader, "wood chipper": wood_chipper}


def prompt_of(machine: str, action: str, speed: str = "") -> str:
    """The sentence that describes an action, as the miniatures learn it."""
    return f"the {machine} {action} {speed}".rstrip()


PROMPTS = tuple(prompt_of(m, a, s) for m in MACHINES for a in ACTIONS[m] for s in SPEEDS)


@torch.no_grad()
def render(
    machine: str,
    seeds: Sequence[int],
    action: str | None = None,
    speed: str | None = None,
    start: float | None = None,
    frames: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    fps: float = FPS,
    device="cpu",
    ambient: Sequence[float] | None = None,
    steady_from: int | None = None,
    then: Sequence[tuple[float, str | None]] = (),
) -> tuple[torch.Tensor, list[str]]:
    """Draw one clip per seed.

    Args:
        machine: One of `MACHINES`.
        seeds: A whole number per clip. It determines colours, place, light and pose, and also the action and the speed
            where these are not given.
        action: One of `ACTIONS[machine]`, or `None` for a random one per clip.
        speed: One of `SPEEDS`, or `None` for a random one per clip.
        start: Seconds between the beginning of the action and the first frame. `None` draws 0 to 0.5 s per clip (0 to
            2 s in an ambient clip, whose machine stops at the first frame).
        frames: Number of frames.
        size: (width, height) in pixels.
        fps: Frames per second.
        ambient: The amount of ambient motion of each clip, 0 to 1, or `None` for a machine that continues its action.
        steady_from: The frame from which the camera no longer sways, or `None` if it always does. The sway is the only
            motion in a clip that a single frame does not reveal.
        then: Further actions: the second of the clip from which each is done, and its name, or `None` for a random one
            per clip.

    Returns:
        Frames [B, T, 3, height, width], float in 0..1, and the prompt of each clip ("the excavator idles" if ambient;
        with further actions a prompt for each, with " | " between them).

    Raises:
        ValueError: If the machine, action or speed is unknown.
    """
    _check("machine", machine, MACHINES)
    actions, speeds = ACTIONS[machine], tuple(SPEEDS)
    draw = Draws(seeds, device)
    which, pace = draw.choice(len(actions)), draw.choice(len(speeds))
    began = draw(0, 0.5)
    if action is not None:
        _check("action", action, actions)
        which = torch.full_like(which, actions.index(action))
    if speed is not None:
        _check("speed", speed, speeds)
        pace = torch.full_like(pace, speeds.index(speed))
    if start is not None:
        began = torch.full_like(began, start)
    rate = torch.tensor([SPEEDS[s] for s in speeds], device=device)[pace].view(-1, 1, 1, 1)
    clock = torch.arange(frames, device=device).view(1, -1, 1, 1) / fps
    if ambient is None:
        time, idle = began + clock, torch.zeros(1, 1, 1, 1, device=device)
    else:
        amount = torch.as_tensor(ambient, dtype=torch.float32, device=device).view(-1, 1, 1, 1)
        time, idle = began if start is not None else 4 * began, AMBIENT_PACE * amount * clock

    course = _course(which, began, [(at, _action(name, machine, seeds, n)) for n, (at, name) in enumerate(then)])
    still, ground, earth, light = background(draw, size, device, idle)
    sway_x, sway_y = draw(0, 6.3), draw(0, 6.3)
    moving = Canvas(still.image.expand(-1, frames, -1, -1, -1))
    _paint_in_two_layers(_DRAW[machine], draw, still, moving, frames, ground, earth, course, rate, time, idle)
    video = moving.image

    grade = torch.tensor([[0.97, 0.98, 1.04], [1.0, 1.0, 1.0], [1.04, 0.94, 0.82]], device=device)[light]
    corner = ((moving.x - 144) / 144) ** 2 + ((moving.y - 80) / 80) ** 2
    video = video * grade.view(-1, 1, 3, 1, 1) * (1 - 0.07 * corner).unsqueeze(2)
    swayed = time + idle
    if steady_from is not None:
        swayed = torch.minimum(swayed, swayed[:, steady_from : steady_from + 1])
    video = _handheld(video, sway_x, sway_y, swayed, moving.scale, None if ambient is None else 1 + DRIFT * idle)
    if ambient is not None:
        return video.clamp_(0, 1), [f"the {machine} idles"] * len(video)
    names = [
        " | ".join(prompt_of(machine, actions[a], speeds[s]) for a in done)
        for *done, s in zip(*(part.which.tolist() for part in course), pace.tolist(), strict=True)
    ]
    return video.clamp_(0, 1), names


def _action(name: str | None, machine: str, seeds: Sequence[int], number: int) -> torch.Tensor:
    """A further action of each clip, [B]: the given one, or one drawn by the seeds."""
    actions = ACTIONS[machine]
    if name is None:
        drawn = [torch.Generator().manual_seed(int(seed) + 1) for seed in seeds]
        return torch.stack([torch.randint(len(actions), (number + 1,), generator=one)[number] for one in drawn])
    _check("action", name, actions)
    return torch.full((len(seeds),), actions.index(name))


def _course(first: torch.Tensor, began: torch.Tensor, then: list[tuple[float, torch.Tensor]]) -> list[Action]:
    """All actions, each until the next one begins; times count from the beginning of the first."""
    begins = [torch.full_like(began, -torch.inf), *(began + at for at, _ in then), torch.full_like(began, torch.inf)]
    which = [first, *(action.to(first.device) for _, action in then)]
    return [Action(*part) for part in zip(which, begins, begins[1:], strict=False)]


class _Later:
    """Records painting calls, so that the moving parts of a machine can be painted after all of its still parts."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def _paint_in_two_layers(draw_machine, draw, still, moving, frames, ground, earth, course, rate, time, idle):
    later = _Later()
    draw_machine(draw, still, later, ground, earth, course, rate, time, idle)
    # The still picture is complete only now: copy it to every frame.
    moving.image = still.image.expand(-1, frames, -1, -1, -1).clone()
    for name, args, kwargs in later.calls:
        getattr(moving, name)(*args, **kwargs)


def _handheld(video, phase_x, phase_y, time, scale, zoom=None):
    """Apply a hand-held camera's sway, at most a third of a scene unit, and optionally a zoom [B, T, 1, 1]."""
    batch, frames, _, height, width = video.shape
    dx = 0.22 * torch.sin(1.9 * time + phase_x) + 0.1 * torch.sin(4.3 * time + phase_y)
    dy = 0.16 * torch.sin(2.3 * time + phase_y) + 0.08 * torch.sin(5.1 * time + phase_x)
    x = (torch.arange(width, device=video.device) + 0.5).view(1, 1, 1, -1) + dx * scale
    y = (torch.arange(height, device=video.device) + 0.5).view(1, 1, -1, 1) + dy * scale
    x, y = torch.broadcast_tensors(x * 2 / width - 1, y * 2 / height - 1)
    if zoom is not None:
        x, y = x / zoom, y / zoom
    grid = torch.stack([x, y], -1).flatten(0, 1)
    moved = F.grid_sample(video.flatten(0, 1), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return moved.view_as(video)


def _check(name, value, valid):
    if value not in valid:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(repr(v) for v in valid)}")
