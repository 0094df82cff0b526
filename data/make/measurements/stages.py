"""Hold the forecasts against a real GPU: every stage and offload mode of the five models, with random weights.

python -m data.make.measure_stages                        # all set-ups, on the first GPU; goes on where it stopped
python -m data.make.measure_stages --only svd_xt --minutes 5
python -m data.make.measure_stages --compare              # without a GPU: today's forecasts of what was measured
python -m data.make.measure_stages --draw                 # the same, and the chart of it

The real pipelines are called as in the lessons, on dummy checkpoints of the full size (`helpers.dummies`), for two
denoising steps and the decoding. Each set-up runs in a process of its own. The record goes to
data/measurements/stages_<gpu>.json, with the forecasts of that day; the chart beside it sets those of today's code
against what was measured, misses included.
"""

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from helpers import runs, svg
from helpers.architecture import CONFIGS, Architecture
from helpers.cards import CARDS, measure_card
from helpers.checks import OFFLOAD_MODES
from helpers.dummies import CACHE, dummy_folder, gguf_path
from helpers.forecast import forecasts
from helpers.forecast_result import GIB, STAGES
from helpers.placement import Placement

from .train import ROOT

# (model, width, height, frames): the sizes of the six set-ups, and a larger one of each model
SET_UPS = [
    ("ltx_video", 768, 512, 121),
    ("svd_xt", 1024, 576, 25),
    ("wan22_ti2v_5b", 640, 384, 121),
    ("wan22_i2v_a14b", 1280, 720, 13),
    ("cogvideox_5b_i2v", 720, 480, 49),
    ("wan22_i2v_a14b", 640, 384, 81),
    ("ltx_video", 1216, 704, 161),
    ("wan22_ti2v_5b", 1280, 704, 121),
    ("svd_xt", 1280, 768, 25),
    ("wan22_i2v_a14b", 1280, 720, 81),
]
STEPS = 2


def load(arch: Architecture, folder: Path):
    """The pipeline without its text half, in RAM, loaded as the lessons load it."""
    import diffusers

    dtype = arch.dtype(arch.denoisers[0])
    parts = {name: None for name in ("text_encoder", "tokenizer") if name in arch.index}
    for name in arch.denoisers if arch.quantization else ():
        parts[name] = diffusers.WanTransformer3DModel.from_single_file(
            str(gguf_path(folder, name, arch.quantization)), config=str(folder), subfolder=name, torch_dtype=dtype,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        )  # fmt: skip
    if arch.family == "Wan":
        parts["vae"] = diffusers.AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    pipe = getattr(diffusers, arch.pipeline).from_pretrained(folder, dtype=dtype, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(arch: Architecture, pipe, width: int, height: int, frames: int, device: str) -> dict:
    """What the pipeline is called with, guidance on: a grey picture and random embeddings."""
    from PIL import Image

    dtype = arch.dtype(arch.denoisers[0])
    given = dict(
        image=Image.new("RGB", (width, height), "grey"), width=width, height=height, num_frames=frames,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    if arch.family == "StableVideoDiffusion":
        return given | dict(decode_chunk_size=8)
    config = getattr(pipe, arch.denoisers[0]).config
    tokens, channels = {
        "LTX": lambda: (128, config.caption_channels),
        "Wan": lambda: (512, config.text_dim),
        "CogVideoX": lambda: (config.max_text_seq_length, config.text_embed_dim),
    }[arch.family]()
    embeds = {
        name: torch.randn(1, tokens, channels).to(device, dtype) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    if arch.family == "LTX":
        mask = torch.ones(1, tokens, dtype=torch.int64, device=device)
        embeds |= dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask)
    return given | embeds | dict(guidance_scale=5.0)


def place(pipe, arch: Architecture, offload: str, device: str) -> None:
    """Put the mode's hooks on the pipeline, by the calls of the lessons."""
    import accelerate
    from diffusers.hooks import apply_group_offloading

    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        if device == "cuda":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            for name in arch.on_card:
                accelerate.cpu_offload(getattr(pipe, name), torch.device(device))
    else:
        whole = [name for name in arch.on_card if name not in arch.denoisers]
        hooks = [accelerate.cpu_offload_with_hook(getattr(pipe, name), torch.device(device))[1] for name in whole]

        def send_home(*_) -> None:
            for hook in hooks:
                hook.offload()

        for name in arch.denoisers:
            apply_group_offloading(
                getattr(pipe, name), onload_device=torch.device(device), offload_device=torch.device("cpu"),
                offload_type="leaf_level" if offload == "group_leaf" else "block_level", num_blocks_per_group=1,
                use_stream=device == "cuda", record_stream=device == "cuda",
            )  # fmt: skip
            getattr(pipe, name).register_forward_pre_hook(send_home)


class Stopwatch:
    """Peaks and seconds of the stages of one pipeline call; the stage changes when a module is first called."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.peaks, self.seconds, self.steps = {}, {}, []
        self.stage, self.began = "encode_image", self.now()

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def enter(self, stage: str) -> None:
        if stage == self.stage:
            return
        now = self.now()
        self.seconds[self.stage] = now - self.began
        self.peaks[self.stage] = torch.cuda.max_memory_allocated() / GIB if self.cuda else None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.stage, self.began = stage, now

    def step(self, pipe, number: int, timestep: object, tensors: dict) -> dict:
        self.steps.append(self.now())
        return tensors


def measure(model: str, width: int, height: int, frames: int, offload: str, device: str, folder: Path, arch) -> dict:
    """One pipeline call in one mode; returns its record."""
    pipe = load(arch, folder)
    if arch.family == "StableVideoDiffusion":
        pipe.unet.enable_forward_chunking()
    else:
        pipe.vae.enable_tiling()
    place(pipe, arch, offload, device)
    given = arguments(arch, pipe, width, height, frames, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    watch = Stopwatch(device)
    for name in arch.denoisers:
        getattr(pipe, name).register_forward_pre_hook(lambda *_: watch.enter("denoise"))
    decode = pipe.vae.decode

    def watched_decode(*given, **options):  # a hook of the decoder would be too late: then the VAE has come
        watch.enter("decode")
        return decode(*given, **options)

    pipe.vae.decode = watched_decode
    reserved = torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None
    pipe(**given, output_type="np", callback_on_step_end=watch.step)
    watch.enter("end")
    if device == "cuda":
        reserved = torch.cuda.max_memory_reserved() / GIB
    return {
        "peaks": watch.peaks, "seconds": watch.seconds, "step_seconds": watch.steps[-1] - watch.steps[-2],
        "vae_home": True, "peak_reserved_gib": reserved, "ram_gib": psutil.Process().memory_info().rss / GIB,
    }  # fmt: skip


def child(job: dict) -> None:
    """All modes of one set-up; prints a line of JSON for each."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, size = job["model"], (job["width"], job["height"], job["num_frames"])
    arch = Architecture(Path(job["configs"]) / model)
    folder = dummy_folder(model, arch.on_card, Path(job["cache"]), Path(job["configs"]))
    for offload in job["modes"]:
        row = {key: job[key] for key in ("model", "width", "height", "num_frames")} | {"offload": offload}
        try:
            row |= measure(model, *size, offload, device, folder, arch)
        except torch.OutOfMemoryError as error:
            row["failed"] = f"out of memory: {str(error)[:200]}"
        except Exception as error:  # a mode that cannot work is a result, too: sequential offload of GGUF
            row["failed"] = f"{type(error).__name__}: {str(error)[:200]}"
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print("ROW " + json.dumps(row), flush=True)


def compare(row: dict, configs: Path, card: str) -> dict:
    """The row with the forecast of the same run beside it, and how far it missed.

    `step_seconds` was measured between the ends of the two steps. Where a model has two experts, each makes one of
    them, so that the second contains model offload's exchange of the two: the forecast is that of a step and of the
    exchange.
    """
    one = forecasts(
        configs / row["model"], width=row["width"], height=row["height"], num_frames=row["num_frames"], card=card,
        modes=(row["offload"],), vae_home=row.get("vae_home", False),  # the first rows left the VAE on the card
    )[row["offload"]]  # fmt: skip
    if "failed" in row or one.fails:
        return row | {"forecast_fails": one.fails}
    expected = {name: stage.peak_gib for name, stage in one.stages.items()}
    missed = {name: expected[name] - peak for name, peak in row["peaks"].items() if peak is not None}
    arch = Architecture(configs / row["model"])
    placement = Placement({name: arch.part(name) for name in arch.on_card}, row["offload"])
    return row | {
        "forecast_peaks": expected, "missed_gib": missed, "forecast_ram_gib": one.peak_ram_gib,
        "forecast_step_seconds": one.step_seconds + placement.swap_seconds(one.card),
    }  # fmt: skip


def peak_misses(row: dict) -> dict[str, str]:
    """What to say of the row's stages that are neither within 5 % nor within 0.15 GiB, by stage."""
    return {
        stage: f"{_run(row)} {stage}: {row['forecast_peaks'][stage]:.2f} for {row['peaks'][stage]:.2f} GiB"
        for stage, miss in row.get("missed_gib", {}).items()
        if abs(miss) > max(0.15, 0.05 * row["peaks"][stage])
    }


def step_miss(row: dict) -> str:
    """What to say of the row's step if it is not within 25 %."""
    expected = row.get("forecast_step_seconds")
    if expected is None or abs(expected / row["step_seconds"] - 1) <= 0.25:
        return ""
    return f"{_run(row)} step: {expected:.2f} for {row['step_seconds']:.2f} s"


def _run(row: dict) -> str:
    return f"{row['model']} {row['width']}x{row['height']}x{row['num_frames']} {row['offload']}"


def table(rows: list[dict]) -> str:
    """A line for each run: forecast / measured GiB of each stage and seconds of a step."""
    lines = [f"{'forecast / measured':<42}" + "".join(f"{stage + ', GiB':>20}" for stage in STAGES) + "      step, s"]
    for row in rows:
        if "missed_gib" not in row:
            lines.append(f"{_run(row):<42}  {'fails, as forecast' if row['forecast_fails'] else 'failed'}")
            continue
        peaks = [f"{row['forecast_peaks'][stage]:.2f} / {row['peaks'][stage]:.2f}" for stage in row["missed_gib"]]
        step = f"{row['forecast_step_seconds']:.2f} / {row['step_seconds']:.2f}"
        lines.append(f"{_run(row):<42}" + "".join(f"{peak:>20}" for peak in peaks) + f"{step:>13}")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """How many stages are within 5 % or 0.15 GiB, how many steps within 25 %, and those that are not."""
    count = sum(len(row.get("missed_gib", ())) for row in rows)
    timed = sum("forecast_step_seconds" in row for row in rows)
    peaks = [text for row in rows for text in peak_misses(row).values()]
    steps = list(filter(None, map(step_miss, rows)))
    near = (
        f"{count - len(peaks)} of {count} stages within 5 % or 0.15 GiB; "
        f"{timed - len(steps)} of {timed} steps within 25 %"
    )
    return "\n".join([near, *peaks, *steps])


SHAPES = {  # name: outline and colour of the points
    "encode_image": ("M-4,0 4,0 M0,-4 0,4", svg.ORANGE),
    "denoise": ("M-3.5,-3.5 h7 v7 h-7 z", svg.BLUE),
    "decode": ("M0,-5 5,4 -5,4 z", svg.PURPLE),
    "step": ("M-4,-4 4,4 M-4,4 4,-4", svg.BLUE),
}


def chart(rows: list[dict], gpu: str) -> str:
    """Forecast against measured, as SVG: a point on the diagonal is a forecast that came true."""
    rows = [row for row in rows if "missed_gib" in row]
    peaks = [(row["peaks"][stage], row["forecast_peaks"][stage], stage) for row in rows for stage in row["missed_gib"]]
    steps = [(row["step_seconds"], row["forecast_step_seconds"], "step") for row in rows]
    body = [
        svg.text(14, 22, f"Forecast against measured, on {gpu}", size=13, weight="bold"),
        *_panel(14, "peak allocated of each stage, GiB; dashed: 5 %", peaks, 0.05),
        *_panel(514, "seconds of a step; dashed: 25 %", steps, 0.25),
    ]
    for index, (stage, name) in enumerate(STAGES.items()):
        y = 428 + 16 * index
        body += [_point(348, y - 4, stage), svg.text(360, y, name)]
    return svg.document(body, width=996, height=524, label=summary(rows))


def _panel(left: float, title: str, points: list[tuple[float, float, str]], share: float) -> list[str]:
    """Points (measured, forecast, shape) around the diagonal, with lines `share` above and below it."""
    top = 1.05 * max((max(one[:2]) for one in points), default=1.0)
    frame = svg.Frame(left + 42, 60, left + 462, 480, x_top=top, y_top=top)
    body = [
        svg.text(left, 40, title, fill=svg.GREY), *frame.x_axis(), *frame.y_axis(),
        svg.text(frame.right, frame.bottom + 30, "measured", anchor="end", fill=svg.GREY),
        svg.text(frame.left + 4, frame.top - 4, "forecast", fill=svg.GREY),
    ]  # fmt: skip
    for slope, dash in ((1.0, ""), (1 - share, "4 4"), (1 + share, "4 4")):
        end = min(top, top / slope)
        line = (frame.left, frame.bottom, frame.x(end), frame.y(end * slope))
        body.append(svg.line(*line, stroke=svg.GREY if dash else svg.INK, dash=dash))
    return body + [_point(frame.x(measured), frame.y(forecast), shape) for measured, forecast, shape in points]


def _point(x: float, y: float, shape: str) -> str:
    outline, colour = SHAPES[shape]
    at = f'transform="translate({x:.1f},{y:.1f})"'
    return f'<path d="{outline}" {at} fill="none" stroke="{colour}" stroke-width="1.6"/>'


def show(path: Path, configs: Path, draw: bool) -> None:
    """Print today's forecasts beside a record's figures, and draw them beside the record."""
    record = json.loads(path.read_text())
    rows = [compare(row, configs, card_of(record["device"])) for row in record["rows"]]
    print(f"{record['device']}, measured {record['date'][:10]}\n{table(rows)}\n{summary(rows)}")
    if draw:
        path.with_suffix(".svg").write_text(chart(rows, record["device"]) + "\n")


def card_of(gpu: str) -> str:
    """The name in `helpers.cards.CARDS` of a GPU."""
    return next((name for name in CARDS if name.removesuffix(" 12GB") in gpu), "H100")


def rows_of(job: dict, limit: float) -> Iterator[dict]:
    """The rows that a process of its own prints for one set-up, as they come; it is stopped after `limit` seconds."""
    command = [sys.executable, "-m", "data.make.measure_stages", "--child", json.dumps(job)]
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    clock = threading.Timer(limit, process.kill)
    clock.start()
    try:
        for line in process.stdout:
            if line.startswith("ROW "):
                yield json.loads(line[4:])
    finally:
        clock.cancel()
        process.wait()


def save(record: dict, path: Path) -> None:
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    runs.save(record | {"versions": runs.versions(), "date": date}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="a model's name")
    parser.add_argument("--modes", nargs="+", default=list(OFFLOAD_MODES), choices=OFFLOAD_MODES)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further set-up after this long")
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--configs", type=Path, default=CONFIGS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sizes", help="other set-ups: MODEL:WIDTHxHEIGHTxFRAMES, separated by commas")
    parser.add_argument("--compare", action="store_true", help="only set today's forecasts against the records")
    parser.add_argument("--draw", action="store_true", help="the same, and draw it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(json.loads(args.child))
    measurements = ROOT / "data" / "measurements"
    if args.compare or args.draw:
        for path in [args.out] if args.out else sorted(measurements.glob("stages_*.json")):
            show(path, args.configs, args.draw)
        return None

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    known = card_of(gpu)
    path = args.out or measurements / f"stages_{known.lower().replace(' ', '_')}.json"
    record = json.loads(path.read_text()) if path.exists() else {"device": gpu, "rows": []}
    set_ups = SET_UPS
    if args.sizes:
        named = (one.split(":") for one in args.sizes.split(","))
        set_ups = [(model, *map(int, size.split("x"))) for model, size in named]
    deadline = time.monotonic() + 60 * args.minutes
    for model, width, height, frames in set_ups:
        key = {"model": model, "width": width, "height": height, "num_frames": frames}
        done = [row["offload"] for row in record["rows"] if key.items() <= row.items()]
        modes = [mode for mode in args.modes if args.again or mode not in done]
        if not modes or (args.only and model != args.only):
            continue
        if time.monotonic() > deadline:
            print(f"time is up before {model} {width}x{height}x{frames}: run the same command again", flush=True)
            break
        job = key | {"modes": modes, "configs": str(args.configs), "cache": str(args.cache)}
        for row in rows_of(job, limit=max(60.0, deadline - time.monotonic() + 60)):
            row = compare(row, args.configs, known)
            shown = ("model", "offload", "peaks", "missed_gib", "step_seconds", "failed")
            print(json.dumps({name: row.get(name) for name in shown}), flush=True)
            same = key | {"offload": row["offload"]}
            record["rows"] = [*(old for old in record["rows"] if not same.items() <= old.items()), row]
            save(record, path)
    if torch.cuda.is_available():
        record["rates"] = vars(measure_card())
        save(record, path)
        show(path, args.configs, draw=True)


if __name__ == "__main__":
    main()
