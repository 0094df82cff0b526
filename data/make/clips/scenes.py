"""A small renderer of machine clips: an excavator, a wheel loader and a wood chipper, drawn in torch.

    frames, prompts = render("excavator", seeds=[7, 8], action="raises its arm", speed="slowly")
    frames.shape                          # [2, 25, 3, 160, 288], float 0..1
    prompts[0]                            # "the excavator raises its arm slowly"

Shapes are signed distance fields in *scene units*: the picture is 288 x 160 units, y points down, and any output
size shows the same scene (1280x720 crops 0.6 % left and right). One seed is one scene, whatever the batch, size or device:
all random numbers are drawn per seed on the CPU.

The motion is *autonomous*: what happens next follows from one frame and the prompt (which names the action and the
speed). That is what makes a true continuation exist, and a model's continuation comparable with it. Only the hand that
holds the camera follows nothing that a frame shows: several frames tell how it sways, one does not.

    frames, _ = render("excavator", seeds=[7, 8], ambient=[0.2, 0.8])  # the machine stops, all else goes on

An *ambient* clip begins at the moment in which the machine stops: its engine idles on, what is in the air falls, dust
drifts off, clouds and trees follow the wind (which blows away from the sun), and the camera drifts in. All this goes as
fast as the given amount says, from 0 (a still) to 1, and it too follows from one frame and that amount.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

WIDTH, HEIGHT, FPS = 288, 160, 24
SPEEDS = {"slowly": 0.7, "": 1.1, "quickly": 1.6}
ACTIONS = {
    "excavator": ("lowers its arm and digs", "raises its arm", "empties its bucket"),
    "wheel loader": ("drives to the left", "drives to the right", "raises its bucket", "lowers its bucket"),
    "wood chipper": ("throws chips to the left", "throws chips to the right", "pulls in the log"),
}
MACHINES = tuple(ACTIONS)
PLACES = ("quarry", "forest", "building site")
LIGHTS = ("morning", "noon", "evening")
AMBIENT_PACE = 2.0  # an ambient clip's time goes by so much faster where the amount of motion is 1
DRIFT = 0.022  # the share by which the picture grows in a second of ambient time, as the camera drifts in
NUM_DRAWS, NUM_LATTICE = 128, 3 * 24 * 40  # random numbers a scene may use: plain draws, and noise lattices


def prompt_of(machine: str, action: str, speed: str = "") -> str:
    """The sentence that names an action, as the miniatures learn it."""
    return f"the {machine} {action} {speed}".rstrip()


PROMPTS = tuple(prompt_of(m, a, s) for m in MACHINES for a in ACTIONS[m] for s in SPEEDS)


class Draws:
    """Random numbers of a batch of scenes, each row from its own seed, handed out column by column."""

    def __init__(self, seeds: Sequence[int], device):
        rows = [torch.rand(NUM_DRAWS + NUM_LATTICE, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        rows = torch.stack(rows).to(device)
        self._plain, self.lattice = rows[:, :NUM_DRAWS], rows[:, NUM_DRAWS:].view(len(seeds), 3, 24, 40) * 2 - 1
        self._next = 0
        self.device = device

    def __call__(self, low: float, high: float) -> torch.Tensor:
        """Uniform in [low, high), shape [B, 1, 1, 1]."""
        column = self._plain[:, self._next]
        self._next += 1
        return (low + (high - low) * column).view(-1, 1, 1, 1)

    def choice(self, n: int) -> torch.Tensor:
        """Uniform in 0..n-1, long, shape [B]."""
        return (self(0, n).flatten().long()).clamp(max=n - 1)

    def colour(self, low: Sequence[float], high: Sequence[float]) -> torch.Tensor:
        """A colour between two, shape [B, 1, 3, 1, 1]."""
        low, high = (torch.tensor(c, device=self.device).view(1, 1, 3, 1, 1) for c in (low, high))
        bright = self(0, 0.7)  # shared by the three channels, so that hues stay believable
        return low + (high - low) * torch.stack([bright + self(0, 0.3) for _ in range(3)], dim=2)


class Canvas:
    """A batch of pictures [B, T, 3, H, W] on which shapes are painted, later ones over earlier ones.

    Positions and sizes are scene units, shaped [B, 1, 1, 1] (fixed) or [B, T, 1, 1] (moving); colours [B, 1, 3, 1, 1].
    """

    def __init__(self, image: torch.Tensor):
        self.image = image
        height, width = image.shape[-2:]
        self.scale = height / HEIGHT
        x = (torch.arange(width, device=image.device) + 0.5) / self.scale + (WIDTH - width / self.scale) / 2
        y = (torch.arange(height, device=image.device) + 0.5) / self.scale
        self.x, self.y = x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)

    def _cut(self, x0, y0, x1, y1):
        """Slices of the rows and columns that a shape can touch. On a GPU asking costs more than painting all."""
        if self.image.is_cuda:
            return slice(None), slice(None)
        edges = [float(e.min() if i < 2 else e.max()) if torch.is_tensor(e) else e for i, e in enumerate((x0, y0, x1, y1))]
        xs, ys = self.x.flatten(), self.y.flatten()
        rim = 1 + 1 / self.scale  # antialiasing reaches a pixel beyond the shape, which is wide in a small picture
        lo, hi = torch.searchsorted(xs, edges[0] - rim), torch.searchsorted(xs, edges[2] + rim)
        top, bottom = torch.searchsorted(ys, edges[1] - rim), torch.searchsorted(ys, edges[3] + rim)
        return slice(int(top), int(bottom)), slice(int(lo), int(hi))

    def paint(self, box, distance, colour, opacity=None, outline=0.0, lit=None):
        """Paint where `distance(x, y)` (scene units, negative inside) is below zero, antialiased.

        `outline` darkens the rim, `lit=(centre_y, half_height, amount)` lightens the top and darkens the foot.
        """
        rows, columns = self._cut(*box)
        x, y = self.x[..., columns], self.y[..., rows, :]
        if not x.numel() or not y.numel():
            return
        d = distance(x, y)
        cover = (0.5 - d * self.scale).clamp(0, 1)
        if opacity is not None:
            cover = cover * opacity
        shade = None
        if outline:
            shade = 1 - outline * (1 + d / 1.5).clamp(0, 1)
        if lit is not None:
            glow = 1 + lit[2] * ((lit[0] - y) / lit[1]).clamp(-1, 1)
            shade = glow if shade is None else shade * glow
        if shade is not None:
            colour = colour * shade.unsqueeze(2)
        view = self.image[..., rows, columns]
        view.lerp_(colour.expand_as(view), cover.unsqueeze(2).expand_as(view))

    def area(self, distance, colour, opacity=None, **shading):
        """Paint a region that may reach across the whole picture."""
        self.paint((-1e3, -1e3, 1e3, 1e3), distance, colour, opacity, **shading)

    def circle(self, cx, cy, r, colour, opacity=None, **shading):
        self.paint((cx - r, cy - r, cx + r, cy + r), lambda x, y: torch.hypot(x - cx, y - cy) - r, colour, opacity, **shading)

    def capsule(self, ax, ay, bx, by, r, colour, opacity=None, r_end=None, **shading):
        """A thick line from a to b, of radius r at a and r_end (or r) at b."""
        r_end = r if r_end is None else r_end
        dx, dy = bx - ax, by - ay

        def distance(x, y):
            px, py = x - ax, y - ay
            h = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-6)).clamp(0, 1)
            return torch.hypot(px - h * dx, py - h * dy) - (r + (r_end - r) * h)

        big = _most(r, r_end)
        self.paint((_least(ax, bx) - big, _least(ay, by) - big, _most(ax, bx) + big, _most(ay, by) + big),
                   distance, colour, opacity, **shading)

    def box(self, cx, cy, half_w, half_h, colour, opacity=None, turn=None, round=2.0, **shading):
        """A rounded rectangle, turned by `turn` radians."""

        def distance(x, y):
            px, py = x - cx, y - cy
            if turn is not None:
                c, s = torch.cos(turn), torch.sin(turn)
                px, py = c * px + s * py, c * py - s * px
            qx, qy = px.abs() - half_w + round, py.abs() - half_h + round
            return torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0) - round

        rx, ry = (half_w, half_h) if turn is None else (half_w + half_h,) * 2
        self.paint((cx - rx, cy - ry, cx + rx, cy + ry), distance, colour, opacity, **shading)

    def polygon(self, points, colour, opacity=None, round=1.0, **shading):
        """A convex polygon, its corners in either direction of turning, rounded by `round`."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        mx, my = sum(xs) / len(xs), sum(ys) / len(ys)

        def distance(x, y):
            d = None
            for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
                ex, ey = bx - ax, by - ay
                side = torch.sign((mx - ax) * ey - (my - ay) * ex)  # which side of the edge is inside
                e = -side * ((x - ax) * ey - (y - ay) * ex) / torch.sqrt(ex * ex + ey * ey + 1e-6)
                d = e if d is None else torch.maximum(d, e)
            return d - round

        self.paint((_least(*xs) - round, _least(*ys) - round, _most(*xs) + round, _most(*ys) + round),
                   distance, colour, opacity, **shading)

    def puff(self, cx, cy, r, colour, opacity):
        """A soft cloud of dust or smoke: a Gaussian of radius r, cut off where it ends."""
        rows, columns = self._cut(cx - 1.5 * r, cy - 1.5 * r, cx + 1.5 * r, cy + 1.5 * r)
        x, y = self.x[..., columns], self.y[..., rows, :]
        if not x.numel() or not y.numel():
            return
        q = ((x - cx) ** 2 + (y - cy) ** 2) / (r * r)
        cover = opacity * (torch.exp(-2 * q) - math.exp(-4.5)).clamp(min=0)
        view = self.image[..., rows, columns]
        view.lerp_(colour.expand_as(view), cover.unsqueeze(2).expand_as(view))


def _fold(pick, values):
    out = values[0]
    for v in values[1:]:
        both_tensors = torch.is_tensor(out) and torch.is_tensor(v)
        out = getattr(torch, pick)(out, v) if both_tensors else getattr(torch, pick)(torch.as_tensor(out), torch.as_tensor(v))
    return out


def _least(*values):
    return _fold("minimum", values)


def _most(*values):
    return _fold("maximum", values)


def _noise(lattice, u, v):
    """Smooth noise in about -1..1: a lattice [B, h, w] read bicubically at u, v in 0..1 (mirrored beyond)."""
    grid = torch.stack(torch.broadcast_tensors(u * 2 - 1, v * 2 - 1), -1)  # [B or 1, T, H, W, 2]
    frames, grid = grid.shape[1], grid.flatten(1, 2)  # all frames below each other, as one picture
    if len(grid) != len(lattice):
        grid = grid.expand(len(lattice), -1, -1, -1)
    read = F.grid_sample(lattice[:, None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return read[:, 0].unflatten(1, (frames, -1))


def _cycle(keys, phase):
    """A closed smooth curve through equally spaced keys (Catmull-Rom), read at phase (1 = once round)."""
    keys = torch.tensor(keys, device=phase.device, dtype=torch.float32)
    at = (phase % 1) * len(keys)
    i, f = at.floor().long(), at % 1
    a, b, c, d = (keys[(i + k) % len(keys)] for k in (-1, 0, 1, 2))
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def _towards(start, goal, time, rate):
    """An exponential approach: where it goes next depends only on where it is."""
    return goal + (start - goal) * torch.exp(-rate * time)


# ---------------------------------------------------------------- the place


def _background(draw: Draws, size, device, idle):
    """Sky, far ridge, place and ground. Returns the canvas, the ground line, the ground's colour and the light.

    The canvas has as many frames as `idle` [B, T, 1, 1], the seconds for which the wind has blown.
    """
    batch = len(draw.lattice)
    canvas = Canvas(torch.zeros(batch, idle.shape[1], 3, size[1], size[0], device=device))
    x, y, noise = canvas.x, canvas.y, draw.lattice
    light, place = draw.choice(len(LIGHTS)), draw.choice(len(PLACES))
    chosen = lambda which, k: (which == k).float().view(-1, 1, 1, 1)  # noqa: E731
    horizon = draw(98, 106)

    zenith = draw.colour([0.30, 0.50, 0.74], [0.44, 0.64, 0.88])
    haze = draw.colour([0.78, 0.82, 0.84], [0.90, 0.92, 0.92])
    dawn, dusk = chosen(light, 0).unsqueeze(2), chosen(light, 2).unsqueeze(2)
    glow = torch.tensor([0.98, 0.76, 0.52], device=device).view(1, 1, 3, 1, 1)
    haze = torch.lerp(haze, glow, 0.30 * dawn + 0.65 * dusk)
    canvas.image = torch.lerp(zenith, haze, ((y / horizon).clamp(0, 1) ** 1.4).unsqueeze(2)).expand_as(canvas.image).clone()
    clear, sun_x, sun_y = draw(0.0, 0.4), draw(20, 268), draw(14, 40)
    wind = torch.where(sun_x < WIDTH / 2, 1.0, -1.0)
    blown = x - 5 * wind * idle
    clouds = _noise(noise[:, 0], blown / WIDTH * 0.35, y / HEIGHT * 0.8) + 0.4 * _noise(noise[:, 1], blown / WIDTH * 0.8, y / HEIGHT * 1.6)
    clouds = ((clouds - clear) * 1.2).clamp(0, 1) * (1 - (y / horizon) ** 2).clamp(0, 1) * 0.75
    canvas.image.lerp_(torch.ones_like(haze).expand_as(canvas.image) * 0.96, clouds.unsqueeze(2).expand_as(canvas.image))
    canvas.puff(sun_x, sun_y, 34.0, glow * 1.02, 0.55)
    canvas.circle(sun_x, sun_y, 6.5, glow.clamp(max=1) * 0.6 + 0.4)

    far = torch.lerp(draw.colour([0.36, 0.44, 0.42], [0.50, 0.56, 0.56]), haze, 0.45)
    ridge = draw(10, 26) + 7 * torch.sin(x * draw(0.016, 0.03) + draw(0, 6.3)) + 2.5 * torch.sin(x * draw(0.05, 0.09) + draw(0, 6.3))
    canvas.area(lambda x, y: horizon - ridge - y, far, lit=(horizon - 26, 30, 0.10))

    # quarry: a stepped rock face
    rock = draw.colour([0.50, 0.44, 0.38], [0.66, 0.58, 0.48])
    face = draw(24, 44) + 8 * _noise(noise[:, 2], x / WIDTH * 0.9, 0 * y + 0.5)
    strata = 0.07 * torch.sin(y * 0.7 + 3 * _noise(noise[:, 1], x / WIDTH, y / HEIGHT)) + 0.10 * _noise(noise[:, 0], x / WIDTH * 3, y / HEIGHT * 3)
    side = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    slope = (side * (x - 144) / 60 + draw(-0.4, 0.8)).clamp(0, 1)
    canvas.area(lambda x, y: horizon - face * slope - y, rock * (1 + strata).unsqueeze(2), chosen(place, 0))
    # forest: a line of firs, each tip at its own height; a gust runs along it
    fir = draw.colour([0.13, 0.24, 0.16], [0.22, 0.34, 0.22])
    pitch = draw(11, 15)
    at = wind * (x - WIDTH / 2) / 40
    lean = 3 * wind * (torch.sin(2.4 * idle - at) + torch.sin(at)) * ((horizon - y) / 36).clamp(0, 1)
    tree = (x - lean) / pitch + draw(0, 1)
    tall = 26 + 11 * _noise(noise[:, 1], (tree.floor() * 0.137) % 1, 0 * y + 0.3)
    tip = tall * (1 - 0.75 * (2 * (tree % 1) - 1).abs()) + 1.5 * torch.sin(x * 2.1)
    canvas.area(lambda x, y: horizon - tip - y, fir, chosen(place, 1), lit=(horizon - 20, 18, 0.25))
    # building site: a shell of floors, and a crane
    wall = draw.colour([0.58, 0.54, 0.50], [0.74, 0.70, 0.66])
    bx, bw, bh = draw(30, 258), draw(22, 36), draw(24, 38)
    openings = (((x - bx) / 9) % 1 - 0.5).abs().lt(0.28) & ((y - horizon) / 12 % 1 - 0.5).abs().lt(0.27)
    canvas.box(bx, horizon - bh + 8, bw, bh, wall, chosen(place, 2), round=1.0, lit=(horizon - bh, bh, 0.12))
    canvas.paint((bx - bw, horizon - 2 * bh, bx + bw, horizon),
                 lambda x, y: torch.maximum((x - bx).abs() - bw + 3, horizon - 2 * bh + 11 - y),
                 wall * 0.55, chosen(place, 2) * _crop(openings, canvas, bx - bw, horizon - 2 * bh, bx + bw, horizon))
    steel = draw.colour([0.80, 0.55, 0.15], [0.90, 0.70, 0.25])
    cx = bx + torch.where(bx < 144, 1.0, -1.0) * (bw + 20)
    canvas.capsule(cx, horizon, cx, 22.0, 1.2, steel * 0.85, chosen(place, 2))
    canvas.capsule(cx - 22, 24.0, cx + 48, 24.0, 1.1, steel * 0.85, chosen(place, 2))
    canvas.capsule(cx + 34, 24.0, cx + 34, draw(44, 66), 0.5, steel * 0.4, chosen(place, 2))

    # the ground, its texture in perspective
    earth = draw.colour([0.44, 0.34, 0.23], [0.62, 0.51, 0.38])
    depth = ((y - horizon) / (HEIGHT - horizon)).clamp(0, 1)
    u, v = (x - 144) / (0.45 + depth) / 600 + 0.5, 0.15 + 0.8 * depth**0.8
    grain = 0.16 * _noise(noise[:, 0], u, v) + 0.12 * _noise(noise[:, 1], u * 2.3 % 1, v * 1.7 % 1)
    grain = grain + 0.09 * _noise(noise[:, 2], u * 5.1 % 1, v * 3.3 % 1) * depth
    canvas.area(lambda x, y: horizon - y, earth * (0.84 + 0.24 * depth + grain).unsqueeze(2))
    for _ in range(5):
        px, py, r = draw(4, 284), horizon + draw(22, 54), draw(1.6, 3.6)
        canvas.circle(px + 1, py + 1, r, earth * 0.55, 0.6)
        canvas.circle(px, py, r, earth * draw(0.85, 1.25).unsqueeze(2), lit=(py, r, 0.25))
    return canvas, horizon, earth, light


def _crop(mask, canvas, x0, y0, x1, y1):
    rows, columns = canvas._cut(x0, y0, x1, y1)
    return mask[..., rows, columns].float()


# ---------------------------------------------------------------- the machines


def _excavator(draw, canvas, moving, ground, earth, action, speed, time, idle):
    paint = draw.colour([0.86, 0.56, 0.04], [0.98, 0.74, 0.16])
    other = draw.colour([0.20, 0.32, 0.20], [0.86, 0.44, 0.40])
    paint = torch.where((draw(0, 1) < 0.3).unsqueeze(2), other, paint)
    dark, steel = draw.colour([0.13] * 3, [0.20] * 3), draw.colour([0.42] * 3, [0.52] * 3)
    glass = draw.colour([0.46, 0.62, 0.70], [0.64, 0.78, 0.84])
    face = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    k = draw(0.95, 1.08)
    x0, y0 = 144 - face * draw(44, 62), ground + 20
    # arm: on the digging cycle, or leaving it for a goal (from low down to be raised, with a full bucket to be emptied)
    dig, lift, empty = ((action == i).float().view(-1, 1, 1, 1) for i in range(3))
    phase = draw(0, 1)
    phase = dig * phase + lift * (0.18 + 0.42 * phase) + empty * (0.55 + 0.3 * phase)
    at = phase + dig * speed * time / 4.4
    boom = _cycle([50, 42, 29, 19, 17, 27, 44, 53], at)
    stick = _cycle([-48, -46, -53, -72, -97, -107, -92, -63], at)
    bucket = _cycle([-72, -80, -96, -128, -168, -200, -192, -140], at)
    load = _cycle([0, 0, 0, 0.35, 0.8, 1, 1, 0.85], at).clamp(0, 1)
    boom = boom + lift * (_towards(boom, 66.0, speed * time, 1.2) - boom)
    stick = stick + lift * (_towards(stick, -40.0, speed * time, 0.9) - stick)
    stick = stick + empty * (_towards(stick, -30.0, speed * time, 1.0) - stick)
    bucket = bucket + empty * (_towards(bucket, -48.0, speed * time, 2.0) - bucket)
    spill = empty * load
    load = load * (1 - empty + empty * torch.exp(-2.2 * speed * time))

    rad = math.pi / 180
    cos, sin = (lambda a: torch.cos(a * rad)), (lambda a: torch.sin(a * rad))
    px, py = x0 + face * 14 * k, y0 - 35 * k
    ex, ey = px + face * 66 * k * cos(boom), py - 66 * k * sin(boom)
    mx, my = (px + ex) / 2 - face * 10 * k * sin(boom), (py + ey) / 2 - 10 * k * cos(boom)
    sx, sy = ex + face * 45 * k * cos(stick), ey - 45 * k * sin(stick)

    # standing parts, drawn once
    canvas.paint((x0 - 70, y0 - 6, x0 + 70, y0 + 12), lambda x, y: (torch.hypot((x - x0) / 62, (y - y0 - 1) / 6) - 1) * 6, earth * 0.5, 0.55)
    canvas.box(x0, y0 - 8 * k, 32 * k, 8.5 * k, dark, round=8.0, outline=0.3)
    canvas.box(x0, y0 - 8 * k, 27 * k, 4.5 * k, dark * 1.9, round=4.0)
    for i in (-21, -10.5, 0, 10.5, 21):
        canvas.circle(x0 + i * k, y0 - 8 * k, 4.0 * k, steel, outline=0.45)
    canvas.box(x0, y0 - 19 * k, 15 * k, 3 * k, dark)
    canvas.capsule(x0 - face * 20 * k, y0 - 40 * k, x0 - face * 20 * k, y0 - 50 * k, 2.0 * k, dark * 1.5)
    canvas.box(x0 - face * 8 * k, y0 - 29 * k, 29 * k, 10 * k, paint, round=3.0, outline=0.28, lit=(y0 - 29 * k, 10 * k, 0.16))
    canvas.box(x0 - face * 30 * k, y0 - 29 * k, 9 * k, 11 * k, paint * 0.62, round=3.0, outline=0.3, lit=(y0 - 29 * k, 11 * k, 0.2))
    for i in range(4):
        canvas.box(x0 - face * (26 - 4.2 * i) * k + face * 6 * k, y0 - 30 * k, 0.9 * k, 5 * k, dark * 1.3, round=0.5)
    canvas.box(x0 + face * 4 * k, y0 - 48 * k, 13 * k, 14 * k, paint * 0.86, round=3.0, outline=0.3, lit=(y0 - 48 * k, 14 * k, 0.14))
    canvas.box(x0 + face * 5 * k, y0 - 50 * k, 9.5 * k, 9 * k, glass, round=1.5, outline=0.35, lit=(y0 - 50 * k, 9 * k, 0.22))
    canvas.capsule(x0 + face * 1 * k, y0 - 58 * k, x0 + face * 1 * k, y0 - 42 * k, 0.8 * k, dark * 1.2)

    # moving parts
    c = moving
    for slot in range(3):  # exhaust: a puff each 1.2 s, older ones higher and thinner
        age = ((time + idle) / 1.2 + phase * 3 + slot / 3) % 1
        c.puff(x0 - face * (20 + 9 * age) * k, y0 - (52 + 26 * age) * k, (3 + 7 * age) * k, dark * 2.6, 0.5 * (1 - age))
    c.capsule(px + face * 9 * k, py + 7 * k, mx, my, 2.2 * k, steel)
    c.capsule(px, py, mx, my, 6.2 * k, paint * 0.92, outline=0.3, r_end=5.8 * k)
    c.capsule(mx, my, ex, ey, 5.8 * k, paint * 0.92, outline=0.3, r_end=4.4 * k)
    c.capsule((mx + ex) / 2, (my + ey) / 2 - 6 * k, ex + face * 4 * k * cos(stick + 60), ey - 8 * k, 1.7 * k, steel)
    c.capsule(ex, ey, sx, sy, 4.6 * k, paint * 0.80, outline=0.3, r_end=3.2 * k)
    c.circle(ex, ey, 2.6 * k, dark * 1.4)
    ux, uy = face * cos(bucket), -sin(bucket)  # along the bucket, hinge to teeth
    wx, wy = face * sin(bucket), cos(bucket)  # across it, towards the opening

    def at_bucket(a, b):
        return sx + k * (a * ux + b * wx), sy + k * (a * uy + b * wy)

    c.circle(*at_bucket(8, 1), 6.5 * k, earth * 0.62, load)
    c.polygon([at_bucket(-2, -3), at_bucket(9, -9), at_bucket(17, -2), at_bucket(15, 2), at_bucket(-2, 3)], dark * 1.9, outline=0.25)
    for b in (-1.0, 2.0):
        c.capsule(*at_bucket(15, b), *at_bucket(20, b + 1), 1.1 * k, steel * 1.2)
    c.circle(sx, sy, 2.4 * k, steel)
    tx, ty = at_bucket(14, 0)
    # earth falling out: on the cycle while it dumps, or when told to empty the bucket
    dumping = dig * (((at % 1) - 0.84) / 0.05).clamp(0, 1) * ((1.06 - (at % 1)) / 0.06).clamp(0, 1) + (spill * torch.exp(-1.6 * speed * time)).clamp(0, 1)
    dumping = dumping * torch.exp(-2.0 * idle)
    for slot in range(5):
        age = (dig * at * 6 + empty * speed * time / 0.75 + slot / 5 + idle / 0.75) % 1
        drift = (slot % 3 - 1) * 4.0 * k
        c.circle(tx + drift, ty + 46 * age * age * k + 2, (4.2 - 0.4 * slot) * k, earth * 0.62, dumping * (1 - age))
    # the heap it digs in hides what is inside it
    hx = x0 + face * 80 * k
    c.paint((hx - 30, y0 - 12, hx + 30, y0 + 19), lambda x, y: (torch.hypot((x - hx) / 28, (y - y0 - 5) / 13) - 1) * 13, earth * 0.74,
            lit=(y0, 10, 0.22))
    dust = dig * (1 - ((((at % 1) - 0.45) / 0.17) ** 2)).clamp(0, 1) * torch.exp(-1.2 * idle)
    for slot in range(2):
        age = (at * 4 + slot / 2 + 0.5 * idle) % 1
        c.puff(hx + face * (slot * 16 - 8) * k, y0 - (5 + 10 * age) * k, (8 + 9 * age) * k, earth * 1.35, 0.55 * dust * (1 - age))


def _wheel_loader(draw, canvas, moving, ground, earth, action, speed, time, idle):
    paint = draw.colour([0.84, 0.50, 0.04], [0.98, 0.76, 0.18])
    dark, steel = draw.colour([0.12] * 3, [0.19] * 3), draw.colour([0.40] * 3, [0.50] * 3)
    glass = draw.colour([0.46, 0.62, 0.70], [0.64, 0.78, 0.84])
    face = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    k = draw(0.95, 1.08)
    y0 = ground + 21
    phase = draw(0, 1)
    left, right, up, down = ((action == i).float().view(-1, 1, 1, 1) for i in range(4))
    start_x = draw(104, 184) - 26 * (right - left)
    way = 38 * speed * time * (right - left)
    x0 = start_x + way
    bob = 0.5 * torch.sin(way / 7)
    arm = draw(-6, 24)
    arm = arm + up * (_towards(arm, 56.0, speed * time, 1.3) - arm) + down * (_towards(arm, -40.0, speed * time, 1.3) - arm)
    rad = math.pi / 180
    tilt = (draw(0, 30) + 0.25 * arm) * rad
    radius = 15 * k
    c = moving

    c.paint((x0 - 66, y0 - 6, x0 + 66, y0 + 10), lambda x, y: (torch.hypot((x - x0) / 58, (y - y0 - 1) / 6) - 1) * 6, earth * 0.5, 0.55)
    # dust hangs where the rear wheel has been: puffs stand on the ground at fixed places
    drives = right + left
    for slot in range(3):
        pitch = 13.0
        place = torch.floor(way.abs() / pitch) - slot
        age = (way.abs() / pitch - place) / 3 + 0.4 * idle
        px = start_x + (right - left) * (place * pitch - 30 * k)
        c.puff(px, y0 - 3 - 9 * age, 6 + 11 * age, earth * 1.3, 0.5 * drives * (1 - age).clamp(0, 1) * ((way.abs() - place * pitch) / 5).clamp(0, 1) * (place >= 0))
    for slot in range(3):
        age = ((time + idle) / 1.2 + phase * 3 + slot / 3) % 1
        c.puff(x0 - face * (38 + 6 * age) * k, y0 - (52 + 24 * age) * k, (3 + 7 * age) * k, dark * 2.6, 0.5 * (1 - age))
    c.capsule(x0 - face * 38 * k, y0 - 38 * k, x0 - face * 38 * k, y0 - 50 * k, 2.0 * k, dark * 1.5)
    yb = y0 + bob
    c.box(x0 - face * 26 * k, yb - 31 * k, 24 * k, 11 * k, paint, round=4.0, outline=0.28, lit=(yb - 31 * k, 11 * k, 0.18))
    for i in range(4):
        c.box(x0 - face * (44 - 4.4 * i) * k, yb - 31 * k, 0.9 * k, 5 * k, dark * 1.3, round=0.5)
    c.box(x0 + face * 16 * k, yb - 25 * k, 19 * k, 8 * k, paint * 0.84, round=3.0, outline=0.28, lit=(yb - 25 * k, 8 * k, 0.18))
    c.box(x0 - face * 4 * k, yb - 53 * k, 15 * k, 16 * k, paint * 0.66, round=3.0, outline=0.3, lit=(yb - 53 * k, 16 * k, 0.14))
    c.box(x0 - face * 3 * k, yb - 55 * k, 11.5 * k, 10.5 * k, glass, round=1.5, outline=0.35, lit=(yb - 55 * k, 10 * k, 0.22))
    c.capsule(x0 - face * 6 * k, yb - 65 * k, x0 - face * 6 * k, yb - 46 * k, 0.8 * k, dark * 1.2)
    for axle in (-26, 24):
        wx, wy = x0 + face * axle * k, y0 - radius
        c.circle(wx, wy, radius, dark, outline=0.4)
        c.circle(wx, wy, radius * 0.56, paint * 0.92, outline=0.3)
        turn = way / radius + phase * math.pi
        for spoke in range(3):
            a = turn + spoke * math.pi / 3
            dx, dy = torch.cos(a) * radius * 0.45, torch.sin(a) * radius * 0.45
            c.capsule(wx - dx, wy - dy, wx + dx, wy + dy, 1.2 * k, dark * 1.6)
        c.circle(wx, wy, 2.6 * k, steel)
    hx, hy = x0 + face * 12 * k, yb - 38 * k
    bx, by = hx + face * 50 * k * torch.cos(arm * rad), hy - 50 * k * torch.sin(arm * rad)
    c.capsule(hx + face * 4 * k, hy + 12 * k, (hx + bx) / 2, (hy + by) / 2 + 2 * k, 2.0 * k, steel)
    c.capsule(hx, hy, bx, by, 4.8 * k, paint * 0.76, outline=0.3, r_end=3.8 * k)
    ct, st = torch.cos(tilt), torch.sin(tilt)

    def at_bucket(a, b):
        return bx + face * k * (a * ct - b * st), by - k * (a * st + b * ct)

    c.circle(*at_bucket(10, -1), 8.0 * k, earth * 0.64, outline=0.15)
    c.polygon([at_bucket(-3, 8), at_bucket(-3, -10), at_bucket(4, -12), at_bucket(24, -12), at_bucket(24, -10), at_bucket(3, 8)],
              dark * 2.0, outline=0.25)
    c.circle(bx, by, 2.6 * k, steel)


# wood chips leave the chute at a steady beat; their scatter repeats, so that it can be learned
_SCATTER = ((0.0, 4.0, 0.9), (4.5, 3.2, -1.3), (-3.5, 3.7, 1.6), (1.5, 4.3, -0.8), (-5.5, 3.3, 1.2))


def _wood_chipper(draw, canvas, moving, ground, earth, action, speed, time, idle):
    paint = draw.colour([0.16, 0.34, 0.18], [0.88, 0.56, 0.30])
    dark, steel = draw.colour([0.12] * 3, [0.19] * 3), draw.colour([0.40] * 3, [0.50] * 3)
    wood = draw.colour([0.44, 0.29, 0.15], [0.58, 0.40, 0.24])
    chip = draw.colour([0.84, 0.66, 0.40], [0.94, 0.80, 0.56])
    side = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)  # the hopper's side
    k = draw(0.95, 1.08)
    x0, y0 = draw(122, 166), ground + 20
    phase = draw(0, 1)
    left, right, pull = ((action == i).float().view(-1, 1, 1, 1) for i in range(3))
    rad = math.pi / 180
    start = draw(-48, 48)
    goal = 48 * (right - left) + pull * start

    def chute_angle(t):
        return _towards(start, goal, speed * t.clamp(min=0), 1.0) * rad

    ran = speed * time
    ox, oy = x0 - side * 6 * k, y0 - 62 * k
    length = 28 * k

    canvas.paint((x0 - 70, y0 - 6, x0 + 70, y0 + 12), lambda x, y: (torch.hypot((x - x0) / 56, (y - y0 - 1) / 6) - 1) * 6, earth * 0.5, 0.55)
    canvas.capsule(x0 - side * 34 * k, y0 - 14 * k, x0 - side * 58 * k, y0 - 8 * k, 1.6 * k, dark * 1.4)
    c = moving
    # the log goes in
    lx = x0 + side * (92 * k + pull * draw(16, 56) - (8 + 34 * pull) * ran)
    for piece, (shift, thick) in enumerate(((0.0, 6.4), (8.0, 4.2))):
        c.capsule(lx + side * shift * 1.5, y0 - (37 - shift) * k, lx + side * (shift * 1.5 - 62) * k, y0 - (35 - shift) * k, thick * k, wood * (1 - 0.12 * piece), outline=0.3)
        c.circle(lx + side * shift * 1.5, y0 - (37 - shift) * k, (thick - 1.4) * k, wood * 1.45, outline=0.25)
    # chips: slot by slot, each slot's chip leaves every `slots * beat` seconds
    beat, slots, v0, gravity = 0.15, 17, 72.0, 62.0
    for slot in range(slots):
        turn = torch.floor((ran / beat - phase * 5 - slot) / slots)
        born = (phase * 5 + slot + turn * slots) * beat / speed  # in seconds since the action began
        age = (time + idle - born) * (0.7 + 0.3 * speed)
        scatter, size, spin = _SCATTER[slot % len(_SCATTER)]
        angle = chute_angle(born) + scatter * rad
        cx = ox + length * torch.sin(angle) + v0 * torch.sin(angle) * age
        cy = oy - length * torch.cos(angle) - v0 * 0.85 * torch.cos(angle) * age + gravity * age * age
        alive = ((cy < y0 + 16) & (age >= 0)).float() * (1 - pull)
        c.box(cx, cy, size * k, size * 0.6 * k, chip * (0.9 + 0.05 * (slot % 5)), alive, turn=spin * 4 * age + slot, round=0.4, outline=0.2)
    now = chute_angle(time)
    c.capsule(ox, oy, ox + length * torch.sin(now), oy - length * torch.cos(now), 6.0 * k, paint * 0.74, r_end=4.4 * k, outline=0.3)
    c.circle(ox + length * torch.sin(now), oy - length * torch.cos(now), 3.0 * k, dark)
    c.box(x0 - side * 4 * k, y0 - 38 * k, 25 * k, 20 * k, paint, round=4.0, outline=0.28, lit=(y0 - 38 * k, 20 * k, 0.18))
    c.polygon([(x0 + side * 18 * k, y0 - 48 * k), (x0 + side * 46 * k, y0 - 58 * k), (x0 + side * 46 * k, y0 - 20 * k), (x0 + side * 18 * k, y0 - 24 * k)],
              paint * 0.82, outline=0.3, lit=(y0 - 38 * k, 20 * k, 0.2))
    c.circle(ox, oy + 4 * k, 7.4 * k, paint * 0.86, outline=0.3)
    fx, fy = x0 - side * 12 * k, y0 - 37 * k
    c.circle(fx, fy, 12 * k, dark * 1.6, outline=0.3)
    for blade in range(3):
        a = (ran + 0.6 * idle) * 2.2 + phase * math.pi + blade * math.pi / 3
        dx, dy = torch.cos(a) * 9.5 * k, torch.sin(a) * 9.5 * k
        c.capsule(fx - dx, fy - dy, fx + dx, fy + dy, 1.4 * k, steel * 1.1)
    c.circle(fx, fy, 3 * k, paint, outline=0.3)
    for axle in (-16, 8):
        c.circle(x0 - side * axle * k, y0 - 9 * k, 10 * k, dark, outline=0.4)
        c.circle(x0 - side * axle * k, y0 - 9 * k, 4.5 * k, steel, outline=0.3)
    for slot in range(3):
        age = ((time + idle) / 1.2 + phase * 3 + slot / 3) % 1
        c.puff(x0 - side * (26 + 8 * age) * k, y0 - (60 + 24 * age) * k, (3 + 7 * age) * k, dark * 2.6, 0.45 * (1 - age))


_DRAW = {"excavator": _excavator, "wheel loader": _wheel_loader, "wood chipper": _wood_chipper}


# ---------------------------------------------------------------- the clip


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
) -> tuple[torch.Tensor, list[str]]:
    """Draw one clip for each seed.

    Args:
        machine: one of `MACHINES`.
        seeds: one whole number a clip; it decides colours, place, light, pose and, where not given, action and speed.
        action: one of `ACTIONS[machine]`, or None for a random one a clip.
        speed: one of `SPEEDS`, or None for a random one a clip.
        start: seconds between the beginning of the action and the first frame, or None for a random 0 to 0.5 s (0 to
            2 s in an ambient clip, whose machine stops at its first frame).
        frames: number of frames; size: (width, height) in pixels; fps: frames a second.
        ambient: each clip's amount of ambient motion, 0 to 1; or None for a machine that goes on with its action.
        steady_from: the frame from which on the camera no longer sways, or None: how it sways is all in a clip that no
            single frame tells.

    Returns:
        Frames [B, T, 3, height, width], float in 0..1, and each clip's prompt ("the excavator idles" if ambient).

    Raises:
        ValueError: unknown machine, action or speed.
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

    standing, ground, earth, light = _background(draw, size, device, idle)
    sway_x, sway_y = draw(0, 6.3), draw(0, 6.3)
    moving = Canvas(standing.image.expand(-1, frames, -1, -1, -1))
    _painted_in_two_layers(_DRAW[machine], draw, standing, moving, frames, ground, earth, which, rate, time, idle)
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
    names = [prompt_of(machine, actions[a], speeds[s]) for a, s in zip(which.tolist(), pace.tolist(), strict=True)]
    return video.clamp_(0, 1), names


class _Later:
    """Records painting calls, so that a machine's moving parts can be painted after all of its standing ones."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def _painted_in_two_layers(draw_machine, draw, standing, moving, frames, ground, earth, which, rate, time, idle):
    later = _Later()
    draw_machine(draw, standing, later, ground, earth, which, rate, time, idle)
    # only now: one standing picture, copied to every frame
    moving.image = standing.image.expand(-1, frames, -1, -1, -1).clone()
    for name, args, kwargs in later.calls:
        getattr(moving, name)(*args, **kwargs)


def _handheld(video, phase_x, phase_y, time, scale, zoom=None):
    """A hand-held camera's sway: at most a third of a scene unit, resampled bicubically, with a zoom [B, T, 1, 1]."""
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
