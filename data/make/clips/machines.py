"""The three machines: each function draws one of them, at every moment of a clip.

They share one signature. `draw` gives the scene's random numbers; parts that never move are painted on `canvas`, the
others on `moving`. `ground` is the ground line [B, 1, 1, 1] and `earth` its colour [B, 1, 3, 1, 1]; `course` is what the
machine does, one action after another. `speed` [B, 1, 1, 1] scales `time`, the seconds since the first action began;
`idle` are the seconds since the machine stopped, 0 while it works.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Action:
    """One action in the course of each scene.

    Attributes:
        which: [B], the action's index.
        begin, end: [B, 1, 1, 1], in seconds since the first action began, whose `begin` is minus infinity.
    """

    which: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor

    def are(self, count: int) -> tuple[torch.Tensor, ...]:
        """For each of `count` actions, whether this is the one: 0 or 1, [B, 1, 1, 1]."""
        return tuple((self.which == i).float().view(-1, 1, 1, 1) for i in range(count))

    def elapsed(self, time: torch.Tensor) -> torch.Tensor:
        """For how many seconds it has been done by `time`."""
        return torch.minimum(time, self.end).clamp(min=0).sub(self.begin.clamp(min=0)).clamp(min=0)

    def lasts(self, time: torch.Tensor) -> torch.Tensor:
        """Whether it is being done at `time`: 0 or 1."""
        return ((time >= self.begin) & (time < self.end)).float()


def _cycle(keys, phase):
    """A closed smooth curve through equally spaced keys (Catmull-Rom), read at a phase (1 is once around)."""
    keys = torch.tensor(keys, device=phase.device, dtype=torch.float32)
    at = (phase % 1) * len(keys)
    i, f = at.floor().long(), at % 1
    a, b, c, d = (keys[(i + k) % len(keys)] for k in (-1, 0, 1, 2))
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def _towards(start, goal, time, rate):
    """An exponential approach: the next position depends only on the current one."""
    return goal + (start - goal) * torch.exp(-rate * time)


def excavator(draw, canvas, moving, ground, earth, course, speed, time, idle):
    """An excavator that digs, raises its arm or empties its bucket."""
    paint = draw.colour([0.86, 0.56, 0.04], [0.98, 0.74, 0.16])
    other = draw.colour([0.20, 0.32, 0.20], [0.86, 0.44, 0.40])
    paint = torch.where((draw(0, 1) < 0.3).unsqueeze(2), other, paint)
    dark, steel = draw.colour([0.13] * 3, [0.20] * 3), draw.colour([0.42] * 3, [0.52] * 3)
    glass = draw.colour([0.46, 0.62, 0.70], [0.64, 0.78, 0.84])
    face = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    k = draw(0.95, 1.08)
    x0, y0 = 144 - face * draw(44, 62), ground + 20
    # arm: on the digging cycle, or on its way from there to a goal (starting low to be raised, full to be emptied)
    dig, lift, empty = course[0].are(3)
    phase = draw(0, 1)
    phase = dig * phase + lift * (0.18 + 0.42 * phase) + empty * (0.55 + 0.3 * phase)
    cycles = (
        [50, 42, 29, 19, 17, 27, 44, 53], [-48, -46, -53, -72, -97, -107, -92, -63],
        [-72, -80, -96, -128, -168, -200, -192, -140], [0, 0, 0, 0.35, 0.8, 1, 1, 0.85],
    )  # fmt: skip
    at, joints = phase, [_cycle(keys, phase) for keys in cycles]
    digs = falls = spilling = torch.zeros_like(time)
    for part in course:
        dig, lift, empty = part.are(3)
        before, ran, lasts = at, speed * part.elapsed(time), part.lasts(time)
        at = before + dig * ran / 4.4
        # digging pulls the arm back to its cycle, from wherever another action has left it
        joints = [torch.where(dig > 0, _cycle(keys, at) + (joint - _cycle(keys, before)) * torch.exp(-2.5 * ran), joint)
                  for keys, joint in zip(cycles, joints, strict=True)]  # fmt: skip
        boom, stick, bucket, load = joints
        load = load.clamp(0, 1)
        boom = boom + lift * (_towards(boom, 66.0, ran, 1.2) - boom)
        stick = stick + lift * (_towards(stick, -40.0, ran, 0.9) - stick)
        stick = stick + empty * (_towards(stick, -30.0, ran, 1.0) - stick)
        bucket = bucket + empty * (_towards(bucket, -48.0, ran, 2.0) - bucket)
        digs = digs + lasts * dig
        falls = falls + lasts * (dig * at * 6 + empty * ran / 0.75)
        spilling = spilling + lasts * empty * (load * torch.exp(-1.6 * ran)).clamp(0, 1)
        load = load * (1 - empty + empty * torch.exp(-2.2 * ran))
        joints = [boom, stick, bucket, load]

    rad = math.pi / 180
    cos, sin = (lambda a: torch.cos(a * rad)), (lambda a: torch.sin(a * rad))
    px, py = x0 + face * 14 * k, y0 - 35 * k
    ex, ey = px + face * 66 * k * cos(boom), py - 66 * k * sin(boom)
    mx, my = (px + ex) / 2 - face * 10 * k * sin(boom), (py + ey) / 2 - 10 * k * cos(boom)
    sx, sy = ex + face * 45 * k * cos(stick), ey - 45 * k * sin(stick)

    # still parts, drawn once
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
    for slot in range(3):  # exhaust: a puff every 1.2 s, older ones higher and thinner
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
    # earth falling out: while the cycle dumps, or when the action empties the bucket
    dumping = digs * (((at % 1) - 0.84) / 0.05).clamp(0, 1) * ((1.06 - (at % 1)) / 0.06).clamp(0, 1) + spilling
    dumping = dumping * torch.exp(-2.0 * idle)
    for slot in range(5):
        age = (falls + slot / 5 + idle / 0.75) % 1
        drift = (slot % 3 - 1) * 4.0 * k
        c.circle(tx + drift, ty + 46 * age * age * k + 2, (4.2 - 0.4 * slot) * k, earth * 0.62, dumping * (1 - age))
    # the heap hides the part of the arm that is inside it
    hx = x0 + face * 80 * k
    c.paint((hx - 30, y0 - 12, hx + 30, y0 + 19), lambda x, y: (torch.hypot((x - hx) / 28, (y - y0 - 5) / 13) - 1) * 13, earth * 0.74,
            lit=(y0, 10, 0.22))
    dust = digs * (1 - ((((at % 1) - 0.45) / 0.17) ** 2)).clamp(0, 1) * torch.exp(-1.2 * idle)
    for slot in range(2):
        age = (at * 4 + slot / 2 + 0.5 * idle) % 1
        c.puff(hx + face * (slot * 16 - 8) * k, y0 - (5 + 10 * age) * k, (8 + 9 * age) * k, earth * 1.35, 0.55 * dust * (1 - age))


def wheel_loader(draw, canvas, moving, ground, earth, course, speed, time, idle):
    """A wheel loader that drives, or raises or lowers its bucket."""
    paint = draw.colour([0.84, 0.50, 0.04], [0.98, 0.76, 0.18])
    dark, steel = draw.colour([0.12] * 3, [0.19] * 3), draw.colour([0.40] * 3, [0.50] * 3)
    glass = draw.colour([0.46, 0.62, 0.70], [0.64, 0.78, 0.84])
    face = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    k = draw(0.95, 1.08)
    y0 = ground + 21
    phase = draw(0, 1)
    left, right, _, _ = course[0].are(4)
    start_x = draw(104, 184) - 26 * (right - left)
    way, arm, drives = 0 * time, draw(-6, 24), []
    for part in course:
        left, right, up, down = part.are(4)
        ran = speed * part.elapsed(time)
        drives.append((part, right - left, 38 * ran, start_x + way))
        way = way + 38 * ran * (right - left)
        arm = arm + up * (_towards(arm, 56.0, ran, 1.3) - arm) + down * (_towards(arm, -40.0, ran, 1.3) - arm)
    x0 = start_x + way
    bob = 0.5 * torch.sin(way / 7)
    rad = math.pi / 180
    tilt = (draw(0, 30) + 0.25 * arm) * rad
    radius = 15 * k
    c = moving

    c.paint((x0 - 66, y0 - 6, x0 + 66, y0 + 10), lambda x, y: (torch.hypot((x - x0) / 58, (y - y0 - 1) / 6) - 1) * 6, earth * 0.5, 0.55)
    # dust hangs where the rear wheel has been: puffs at fixed places on the ground
    for part, heading, driven, began_at in drives:
        for slot in range(3):
            pitch = 13.0
            place = torch.floor(driven / pitch) - slot
            age = (driven / pitch - place) / 3 + 0.4 * idle + 0.6 * (time - part.end).clamp(min=0)
            px = began_at + heading * (place * pitch - 30 * k)
            c.puff(px, y0 - 3 - 9 * age, 6 + 11 * age, earth * 1.3, 0.5 * heading.abs() * (1 - age).clamp(0, 1) * ((driven - place * pitch) / 5).clamp(0, 1) * (place >= 0))
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


# Wood chips leave the chute at a steady rate. Their scatter repeats, so a model can learn it.
_SCATTER = ((0.0, 4.0, 0.9), (4.5, 3.2, -1.3), (-3.5, 3.7, 1.6), (1.5, 4.3, -0.8), (-5.5, 3.3, 1.2))


def wood_chipper(draw, canvas, moving, ground, earth, course, speed, time, idle):
    """A wood chipper that throws chips to one side or pulls in the log."""
    paint = draw.colour([0.16, 0.34, 0.18], [0.88, 0.56, 0.30])
    dark, steel = draw.colour([0.12] * 3, [0.19] * 3), draw.colour([0.40] * 3, [0.50] * 3)
    wood = draw.colour([0.44, 0.29, 0.15], [0.58, 0.40, 0.24])
    chip = draw.colour([0.84, 0.66, 0.40], [0.94, 0.80, 0.56])
    side = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)  # the hopper's side
    k = draw(0.95, 1.08)
    x0, y0 = draw(122, 166), ground + 20
    phase = draw(0, 1)
    rad = math.pi / 180
    start = draw(-48, 48)

    def chute_angle(t):
        angle = start
        for part in course:
            left, right, pull = part.are(3)
            angle = _towards(angle, 48 * (right - left) + pull * angle, speed * part.elapsed(t), 1.0)
        return angle * rad

    def throws(t):
        return sum(part.lasts(t) * (1 - part.are(3)[2]) for part in course)

    ran = speed * time
    ox, oy = x0 - side * 6 * k, y0 - 62 * k
    length = 28 * k

    canvas.paint((x0 - 70, y0 - 6, x0 + 70, y0 + 12), lambda x, y: (torch.hypot((x - x0) / 56, (y - y0 - 1) / 6) - 1) * 6, earth * 0.5, 0.55)
    canvas.capsule(x0 - side * 34 * k, y0 - 14 * k, x0 - side * 58 * k, y0 - 8 * k, 1.6 * k, dark * 1.4)
    c = moving
    # the log goes in, and what is inside the hopper is gone
    fed = sum((8 + 34 * part.are(3)[2]) * speed * part.elapsed(time) for part in course)
    out = 92 * k + course[0].are(3)[2] * draw(16, 56) - fed
    inside = 14 * k
    for piece, (shift, thick) in enumerate(((0.0, 6.4), (8.0, 4.2))):
        near, far = out + shift * 1.5, out + (shift * 1.5 - 62) * k
        near, far = torch.maximum(near, inside), torch.maximum(far, inside)
        c.capsule(x0 + side * near, y0 - (37 - shift) * k, x0 + side * far, y0 - (35 - shift) * k, thick * k, wood * (1 - 0.12 * piece), outline=0.3)
        c.circle(x0 + side * near, y0 - (37 - shift) * k, (thick - 1.4) * k, wood * 1.45, outline=0.25)
    # chips: the chip of each slot leaves every `slots * beat` seconds
    beat, slots, v0, gravity = 0.15, 17, 72.0, 62.0
    for slot in range(slots):
        turn = torch.floor((ran / beat - phase * 5 - slot) / slots)
        born = (phase * 5 + slot + turn * slots) * beat / speed  # in seconds since the action began
        age = (time + idle - born) * (0.7 + 0.3 * speed)
        scatter, size, spin = _SCATTER[slot % len(_SCATTER)]
        angle = chute_angle(born) + scatter * rad
        cx = ox + length * torch.sin(angle) + v0 * torch.sin(angle) * age
        cy = oy - length * torch.cos(angle) - v0 * 0.85 * torch.cos(angle) * age + gravity * age * age
        alive = ((cy < y0 + 16) & (age >= 0)).float() * throws(born)
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
