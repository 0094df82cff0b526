"""The place around a machine: sky, clouds, a far ridge, a quarry, forest or building site, and the ground."""

import torch

from .drawing import HEIGHT, WIDTH, Canvas, Draws, noise

PLACES = ("quarry", "forest", "building site")
LIGHTS = ("morning", "noon", "evening")


def background(
    draw: Draws, size: tuple[int, int], device, idle: torch.Tensor
) -> tuple[Canvas, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paint sky, far ridge, place and ground.

    Args:
        size: (width, height) in pixels.
        idle: [B or 1, T, 1, 1], the seconds for which the wind has been blowing.

    Returns:
        The canvas, with as many frames as `idle`; the ground line [B, 1, 1, 1] in scene units; the ground's colour
        [B, 1, 3, 1, 1]; and the index of the light in `LIGHTS` [B].
    """
    batch = len(draw.lattice)
    canvas = Canvas(torch.zeros(batch, idle.shape[1], 3, size[1], size[0], device=device))
    x, y, lattice = canvas.x, canvas.y, draw.lattice
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
    clouds = noise(lattice[:, 0], blown / WIDTH * 0.35, y / HEIGHT * 0.8) + 0.4 * noise(lattice[:, 1], blown / WIDTH * 0.8, y / HEIGHT * 1.6)
    clouds = ((clouds - clear) * 1.2).clamp(0, 1) * (1 - (y / horizon) ** 2).clamp(0, 1) * 0.75
    canvas.image.lerp_(torch.ones_like(haze).expand_as(canvas.image) * 0.96, clouds.unsqueeze(2).expand_as(canvas.image))
    canvas.puff(sun_x, sun_y, 34.0, glow * 1.02, 0.55)
    canvas.circle(sun_x, sun_y, 6.5, glow.clamp(max=1) * 0.6 + 0.4)

    far = torch.lerp(draw.colour([0.36, 0.44, 0.42], [0.50, 0.56, 0.56]), haze, 0.45)
    ridge = draw(10, 26) + 7 * torch.sin(x * draw(0.016, 0.03) + draw(0, 6.3)) + 2.5 * torch.sin(x * draw(0.05, 0.09) + draw(0, 6.3))
    canvas.area(lambda x, y: horizon - ridge - y, far, lit=(horizon - 26, 30, 0.10))

    # quarry: a stepped rock face
    rock = draw.colour([0.50, 0.44, 0.38], [0.66, 0.58, 0.48])
    face = draw(24, 44) + 8 * noise(lattice[:, 2], x / WIDTH * 0.9, 0 * y + 0.5)
    strata = 0.07 * torch.sin(y * 0.7 + 3 * noise(lattice[:, 1], x / WIDTH, y / HEIGHT)) + 0.10 * noise(lattice[:, 0], x / WIDTH * 3, y / HEIGHT * 3)
    side = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    slope = (side * (x - 144) / 60 + draw(-0.4, 0.8)).clamp(0, 1)
    canvas.area(lambda x, y: horizon - face * slope - y, rock * (1 + strata).unsqueeze(2), chosen(place, 0))
    # forest: a line of firs, each with a different height; a gust runs along it
    fir = draw.colour([0.13, 0.24, 0.16], [0.22, 0.34, 0.22])
    pitch = draw(11, 15)
    at = wind * (x - WIDTH / 2) / 40
    lean = 3 * wind * (torch.sin(2.4 * idle - at) + torch.sin(at)) * ((horizon - y) / 36).clamp(0, 1)
    tree = (x - lean) / pitch + draw(0, 1)
    tall = 26 + 11 * noise(lattice[:, 1], (tree.floor() * 0.137) % 1, 0 * y + 0.3)
    tip = tall * (1 - 0.75 * (2 * (tree % 1) - 1).abs()) + 1.5 * torch.sin(x * 2.1)
    canvas.area(lambda x, y: horizon - tip - y, fir, chosen(place, 1), lit=(horizon - 20, 18, 0.25))
    # building site: the shell of a building, and a crane
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
    grain = 0.16 * noise(lattice[:, 0], u, v) + 0.12 * noise(lattice[:, 1], u * 2.3 % 1, v * 1.7 % 1)
    grain = grain + 0.09 * noise(lattice[:, 2], u * 5.1 % 1, v * 3.3 % 1) * depth
    canvas.area(lambda x, y: horizon - y, earth * (0.84 + 0.24 * depth + grain).unsqueeze(2))
    for _ in range(5):
        px, py, r = draw(4, 284), horizon + draw(22, 54), draw(1.6, 3.6)
        canvas.circle(px + 1, py + 1, r, earth * 0.55, 0.6)
        canvas.circle(px, py, r, earth * draw(0.85, 1.25).unsqueeze(2), lit=(py, r, 0.25))
    return canvas, horizon, earth, light


def _crop(mask, canvas, x0, y0, x1, y1):
    """The part of a mask of the whole picture that a shape in the box can touch."""
    rows, columns = canvas.touched(x0, y0, x1, y1)
    return mask[..., rows, columns].float()
