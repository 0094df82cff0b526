"""What a forecast says, and how it shows itself: one offload mode in detail, or all of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from helpers import svg
from helpers.cards import Card
from helpers.charts import Bar, Picture, Series, Table, bars, thin, timeline
from helpers.stages import Request

GIB = 2**30
STAGES = {"encode_image": "encode the image", "denoise": "denoise, one step", "decode": "decode"}
CONTEXT_GIB = 0.5  # the CUDA context and the driver on the card: not allocated by PyTorch, but not free either


@dataclass(frozen=True)
class Stage:
    """One stage's forecast. Sizes are GiB of memory that PyTorch allocates on the card.

    Attributes:
        peak_gib: The highest sum of weights and activations; `weights_gib` and `activations_gib` are its two parts.
        operation, module: What runs at that moment, and in which module.
        seconds: An estimate, copies included.
        timeline: (seconds, weights, weights and activations), thinned for drawing.
    """

    name: str
    peak_gib: float
    weights_gib: float
    activations_gib: float
    operation: str
    module: str
    seconds: float
    timeline: tuple[tuple[float, float, float], ...] = field(repr=False)


@dataclass(frozen=True, repr=False)
class Forecast:
    """What one offload mode will need.

    Attributes:
        stages: `Stage` by name: encode_image, denoise (one step, guidance included), decode.
        peak_vram_gib: The highest peak of all stages.
        peak_ram_gib, ram: RAM of the process at its fullest, and at each moment by name, in GiB.
        moved_gib: Weights that travel to the card in one denoising step, GiB.
        tflops: 10^12 floating-point operations in one step.
        step_seconds, resident_step_seconds: Estimates for the card: with this mode's copies, and without.
        fails: Why this mode cannot work at all, or "".
        left_out: What the forecast does not know, a sentence each.
    """

    model: str
    offload: str
    request: Request
    card: Card
    stages: Mapping[str, Stage]
    peak_ram_gib: float
    ram: Mapping[str, float]
    moved_gib: float
    tflops: float
    step_seconds: float
    resident_step_seconds: float
    fails: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def peak_vram_gib(self) -> float:
        return max(stage.peak_gib for stage in self.stages.values())

    @property
    def peak_stage(self) -> Stage:
        return max(self.stages.values(), key=lambda stage: stage.peak_gib)

    def fits(self, vram_budget_gb: float | None = None, ram_budget_gb: float | None = None) -> bool:
        """Whether it stays within the budgets in GiB; the CUDA context counts as used VRAM."""
        return (
            not self.fails
            and (vram_budget_gb is None or self.peak_vram_gib + CONTEXT_GIB <= vram_budget_gb)
            and (ram_budget_gb is None or self.peak_ram_gib <= ram_budget_gb)
        )

    def __repr__(self) -> str:
        peak = self.peak_stage
        if self.fails:
            return f"{self.model}, {self.offload}: does not work: {self.fails}"
        lines = [
            f"{self.model}, {self.offload}, {_size(self.request)}: forecast for {self.card.name}",
            f"  peak VRAM {self.peak_vram_gib:.2f} GiB while it {_verb(peak.name)}: {peak.weights_gib:.2f} weights + "
            f"{peak.activations_gib:.2f} activations ({peak.operation} in {peak.module or 'the pipeline'})",
            *(
                f"  {STAGES[one.name]:<18}{one.peak_gib:7.2f} GiB  about {one.seconds:.3g} s"
                for one in self.stages.values()
            ),
            f"  peak RAM {self.peak_ram_gib:.1f} GiB ({max(self.ram, key=self.ram.get)})",
            f"  a step: {self.tflops:,.0f} TFLOP and {self.moved_gib:.2f} GiB of weights to the card, "
            f"about {self.step_seconds:.3g} s (all weights on the card: {self.resident_step_seconds:.3g} s)",
        ]
        return "\n".join([*lines, *(f"  not counted: {note}" for note in self.left_out)])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": repr(self), **({} if self.fails else {"image/svg+xml": self._svg()})}

    def timeline(self) -> list[tuple[float, float, float]]:
        """(seconds, weights, weights and activations) through all stages, one denoising step among them; GiB."""
        points, start = [], 0.0
        for stage in self.stages.values():
            points += [(start + seconds, weights, both) for seconds, weights, both in stage.timeline]
            start += stage.seconds
        return points

    def _svg(self) -> str:
        bands, start = [], 0.0
        for stage in self.stages.values():
            bands.append((STAGES[stage.name], start, stage.seconds))
            start += stage.seconds
        points = self.timeline()
        weights = Series("weights", [(seconds, one) for seconds, one, _ in points], svg.ORANGE, 1.8, "7 3")
        lines = [weights, Series("all", [(seconds, both) for seconds, _, both in points])]
        peak = self.peak_stage
        facts = f"peak: {peak.weights_gib:.2f} GiB of weights + {peak.activations_gib:.2f} of activations"
        return timeline(
            f"{self.model}, {self.offload}, {_size(self.request)}", lines,
            state=f"forecast, {self.card.name}", facts=f"{facts} · RAM {self.peak_ram_gib:.1f} GiB", bands=bands,
            limits=[("card", self.card.vram_gib)] if self.card.vram_gib < 3 * self.peak_vram_gib else [],
        )  # fmt: skip


class Forecasts(Mapping):
    """Forecasts of one model and size by offload mode; shows itself as a table, and `chart()` draws the peaks."""

    def __init__(self, by_mode: Mapping[str, Forecast]) -> None:
        self._by_mode = dict(by_mode)

    def __getitem__(self, offload: str) -> Forecast:
        return self._by_mode[offload]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_mode)

    def __len__(self) -> int:
        return len(self._by_mode)

    def lighter(self, offload: str, vram_budget_gb: float | None = None) -> list[str]:
        """The modes to try where `offload` overflows: of those that need less VRAM, the ones that fit, fastest first.

        If none fits, all that need less, the lightest first. Empty where no mode needs less.
        """
        most = self[offload].peak_vram_gib
        less = {mode: one for mode, one in self.items() if not one.fails and one.peak_vram_gib < most}
        fitting = [mode for mode, one in less.items() if one.fits(vram_budget_gb)]
        if fitting:
            return sorted(fitting, key=lambda mode: less[mode].step_seconds)
        return sorted(less, key=lambda mode: less[mode].peak_vram_gib)

    def advice(self, offload: str, vram_budget_gb: float | None = None) -> str:
        """What to do where `offload` overflows, and whether that was to be expected, in a sentence or two."""
        one = self[offload]
        budget = "" if vram_budget_gb is None else f", and the budget {vram_budget_gb:g}"
        said = f"The forecast for offload={offload!r} is {one.peak_vram_gib:.2f} GiB{budget}"
        if vram_budget_gb is not None and one.fits(vram_budget_gb):
            said += ", so it should have fit: see what else uses the card"
        if not (modes := self.lighter(offload, vram_budget_gb)):
            return f"{said}. No other mode needs less: take fewer frames, or a smaller picture."
        return f"{said}. Next mode to try: {modes[0]!r}, forecast {self[modes[0]].peak_vram_gib:.2f} GiB."

    def _table(self) -> Table:
        first = next(iter(self.values()))
        rows = []
        for mode, one in self.items():
            if one.fails:
                rows.append((mode, "fails", *[""] * 6))
                continue
            stages = [f"{one.stages[name].peak_gib:.2f}" for name in STAGES]
            seconds = (f"{one.step_seconds:.3g}", f"{one.step_seconds / one.resident_step_seconds:.2f}")
            rows.append((mode, f"{one.peak_vram_gib:.2f}", *stages, f"{one.peak_ram_gib:.1f}", *seconds))
        columns = ("offload", "peak VRAM, GiB", "encode image", "denoise", "decode", "RAM, GiB", "s/step", "x resident")
        return Table(f"{first.model}, {_size(first.request)}: forecast for {first.card.name}", columns, rows)

    def __repr__(self) -> str:
        notes = {f"{mode} fails: {one.fails}" for mode, one in self.items() if one.fails}
        notes |= {f"not counted: {note}" for one in self.values() for note in one.left_out}
        return "\n".join([repr(self._table()), *sorted(notes)])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {**self._table()._repr_mimebundle_(), "text/plain": repr(self)}

    def chart(self, vram_budget_gb: float = 12.0, note: str = "") -> Picture:
        """Five bars of peak VRAM against the budget, with RAM and seconds a step beside them.

        `note` is written below the title in place of the bars' explanation.
        """
        first = next(iter(self.values()))
        rows = []
        for mode, one in self.items():
            if one.fails:
                rows.append(Bar(mode, 0.0, ["fails", "", ""]))
                continue
            cells = [f"{one.peak_vram_gib:.2f}", f"{one.peak_ram_gib:.1f}", f"{one.step_seconds:.3g}"]
            rows.append(Bar(mode, one.peak_vram_gib, cells, hollow=not one.fits(vram_budget_gb)))
        unit, hollow = "peak VRAM, GiB", f"hollow: too much for {vram_budget_gb:g}"
        drawing = bars(
            f"{first.model}, {_size(first.request)}: forecast", rows,
            what=f"{unit}; {note}" if note else f"{unit} ({hollow}); seconds on {first.card.name}",
            columns=["VRAM", "RAM", "s/step"], budget=vram_budget_gb, label=repr(self),
        )  # fmt: skip
        return Picture(drawing, repr(self))

    def timelines(self, vram_budget_gb: float = 12.0) -> Picture:
        """A panel for each mode over the same time and GiB: weights as an area, everything as a line."""
        working = {mode: one for mode, one in self.items() if not one.fails}
        first = next(iter(working.values()))
        curves = {
            mode: thin([(seconds, both, weights) for seconds, weights, both in one.timeline()])
            for mode, one in working.items()
        }
        failing = "".join(f"; {mode} fails" for mode in self if mode not in working)
        highest = 1.08 * max(vram_budget_gb, *(one.peak_vram_gib for one in working.values()))
        body = [
            svg.text(14, 22, f"{first.model}, {_size(first.request)}: forecast", size=13, weight="bold"),
            svg.text(14, 39, f"GiB: shaded weights, line with activations, dashed the budget{failing}", fill=svg.GREY),
        ]
        bottom = 52
        for mode, curve in curves.items():
            frame = svg.Frame(126, bottom + 4, 626, bottom + 76, x_top=curve[-1][0], y_top=highest)
            edge = [(frame.x(seconds), frame.y(weights)) for seconds, _, weights in curve]
            area = [(frame.left, frame.bottom), *edge, (frame.right, frame.bottom)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in area)
            body += frame.y_axis()
            body.append(f'<polygon points="{path}" fill="#f3c9a5"/>')
            line = [(frame.x(seconds), frame.y(both)) for seconds, both, _ in curve]
            body.append(svg.polyline(line, stroke=svg.BLUE))
            y = frame.y(vram_budget_gb)
            body.append(svg.line(frame.left, y, frame.right, y, stroke=svg.INK, width=1.2, dash="10 4"))
            body.append(svg.text(14, frame.top + 28, mode, size=12, weight="bold"))
            peak = f"peak {working[mode].peak_vram_gib:.1f} GiB"
            body.append(svg.text(14, frame.top + 44, peak, size=10))
            bottom = frame.bottom + 6
        start = 0.0
        for stage in working[mode].stages.values():  # below the last panel
            left, right = frame.x(start), frame.x(start + stage.seconds)
            name = svg.fit(STAGES[stage.name], right - left, size=9)
            body.append(svg.text((left + right) / 2, frame.bottom + 14, name, size=9, anchor="middle", fill=svg.GREY))
            start += stage.seconds
        return Picture(svg.document(body, width=640, height=int(bottom) + 20, label=repr(self)), repr(self))

    def as_json(self) -> dict:
        """What `--json` prints: peaks in GiB; a mode that cannot work has `fails` in their place."""
        modes = {}
        for mode, one in self.items():
            stages = {name: stage.peak_gib for name, stage in one.stages.items()}
            modes[mode] = {"fails": one.fails} if one.fails else {
                "peak_vram_gib": one.peak_vram_gib, "peak_ram_gib": one.peak_ram_gib, "step_seconds": one.step_seconds,
                "resident_step_seconds": one.resident_step_seconds, "moved_gib": one.moved_gib, "stages": stages,
                "ram": dict(one.ram), "left_out": list(one.left_out),
            }  # fmt: skip
        return {"modes": modes}


def _size(request: Request) -> str:
    return f"{request.width}x{request.height}, {request.num_frames} frames"


def _verb(stage: str) -> str:
    return {"encode_image": "encodes the image", "denoise": "denoises", "decode": "decodes"}[stage]
