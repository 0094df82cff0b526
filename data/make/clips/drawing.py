"""Shapes painted on batches of pictures, and the random numbers that place them.

Shapes are signed distance fields in *scene units*: the picture is 288 x 160 units and y points down. A canvas of any
size in pixels shows the same scene; 1280x720 crops 0.6 % on the left and right.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F

WIDTH, HEIGHT = 288, 160  # of the picture, in scene units
NUM_DRAWS, NUM_LATTICE = 128, 3 * 24 * 40  # random numbers per scene: single draws, and noise lattices


class Draws:
    """The random numbers of a batch of scenes: one row per seed, handed out column by column.

    All numbers are drawn per seed on the CPU, so a seed gives the same scene whatever the batch, size or device.

    Attributes:
        lattice: [B, 3, 24, 40] in -1..1, for `noise`.
    """

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
        """A random whole number in 0..n-1 per scene, long, shape [B]."""
        return (self(0, n).flatten().long()).clamp(max=n - 1)

    def colour(self, low: Sequence[float], high: Sequence[float]) -> torch.Tensor:
        """A random colour between two RGB colours in 0..1, shape [B, 1, 3, 1, 1]."""
        low, high = (torch.tensor(c, device=self.device).view(1, 1, 3, 1, 1) for c in (low, high))
        bright = self(0, 0.7)  # shared by the three channels, so that hues stay plausible
        return low + (high - low) * torch.stack([bright + self(0, 0.3) for _ in range(3)], dim=2)


class Canvas:
    """A batch of pictures [B, T, 3, H, W] in 0..1; each shape is painted over the earlier ones.

    Positions and sizes are in scene units, shaped [B, 1, 1, 1] (fixed) or [B, T, 1, 1] (moving). Colours are shaped
    [B, 1, 3, 1, 1].
    """

    def __init__(self, image: torch.Tensor):
        self.image = image
        height, width = image.shape[-2:]
        self.scale = height / HEIGHT
        x = (torch.arange(width, device=image.device) + 0.5) / self.scale + (WIDTH - width / self.scale) / 2
        y = (torch.arange(height, device=image.device) + 0.5) / self.scale
        self.x, self.y = x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)

    def touched(self, x0, y0, x1, y1):
        """Slices of the rows and columns inside a box in scene units: all that a shape in the box can touch.

        On a GPU these are always the whole picture, because reading the edges back costs more than painting it all.
        """
        if self.image.is_cuda:
            return slice(None), slice(None)
        edges = [
            float(e.min() if i < 2 else e.max()) if torch.is_tensor(e) else e for i, e in enumerate((x0, y0, x1, y1))
        ]
        xs, ys = self.x.flatten(), self.y.flatten()
        rim = 1 + 1 / self.scale  # antialiasing extends one pixel beyond the shape, which is wide in a small picture
        lo, hi = torch.searchsorted(xs, edges[0] - rim), torch.searchsorted(xs, edges[2] + rim)
        top, bottom = torch.searchsorted(ys, edges[1] - rim), torch.searchsorted(ys, edges[3] + rim)
        return slice(int(top), int(bottom)), slice(int(lo), int(hi))

    def paint(self, box, distance, colour, opacity=None, outline=0.0, lit=None):
        """Paint the region where `distance(x, y)` is below zero, antialiased.

        Args:
            box: (x0, y0, x1, y1) around the shape.
            distance: Signed distance to the shape's edge in scene units, negative inside.
            opacity: 0..1, opaque by default.
            outline: How much to darken the rim, 0..1.
            lit: (centre_y, half_height, amount), which lightens the top and darkens the bottom.
        """
        rows, columns = self.touched(*box)
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
        """Paint a region that may extend across the whole picture."""
        self.paint((-1e3, -1e3, 1e3, 1e3), distance, colour, opacity, **shading)

    def circle(self, cx, cy, r, colour, opacity=None, **shading):
        box = (cx - r, cy - r, cx + r, cy + r)
        self.paint(box, lambda x, y: torch.hypot(x - cx, y - cy) - r, colour, opacity, **shading)

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
        """A convex polygon with its corners in either winding order, rounded by `round`."""
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
        """A soft cloud of dust or smoke: a Gaussian of radius r, cut off at 1.5 r."""
        rows, columns = self.touched(cx - 1.5 * r, cy - 1.5 * r, cx + 1.5 * r, cy + 1.5 * r)
        x, y = self.x[..., columns], self.y[..., rows, :]
        if not x.numel() or not y.numel():
            return
        q = ((x - cx) ** 2 + (y - cy) ** 2) / (r * r)
        cover = opacity * (torch.exp(-2 * q) - math.exp(-4.5)).clamp(min=0)
        view = self.image[..., rows, columns]
        view.lerp_(colour.expand_as(view), cover.unsqueeze(2).expand_as(view))


def _fold(pick, values):
    return reduce(lambda a, b: pick(torch.as_tensor(a), torch.as_tensor(b)), values)


def _least(*values):
    return _fold(torch.minimum, values)


def _most(*values):
    return _fold(torch.maximum, values)


def noise(lattice, u, v):
    """Smooth noise in about -1..1: a lattice [B, h, w] read bicubically at u, v in 0..1 (mirrored outside)."""
    grid = torch.stack(torch.broadcast_tensors(u * 2 - 1, v * 2 - 1), -1)  # [B or 1, T, H, W, 2]
    frames, grid = grid.shape[1], grid.flatten(1, 2)  # all frames stacked vertically, as one picture
    if len(grid) != len(lattice):
        grid = grid.expand(len(lattice), -1, -1, -1)
    read = F.grid_sample(lattice[:, None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return read[:, 0].unflatten(1, (frames, -1))
