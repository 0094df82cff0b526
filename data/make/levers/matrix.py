"""Try every lever in every offload mode on every miniature: does it work, and are the latents those of mode "none"?

    python -m data.make.levers.matrix                                    # 20 minutes on two CPU cores
    python -m data.make.levers.matrix --models ltx_video --levers compile   # these rows again; the others stay

The weights differ from model to model: bf16, fp16 for Stable Video Diffusion and GGUF for Wan2.2-I2V-A14B. Each lever
of each model runs in a process of its own, because some leave traces: `set_attention_backend` changes the default of
every later model.

The record, data/measurements/levers/matrix.json, has a row for each model and lever: "changes" is what the lever does
to the latents with everything resident, as the root mean square of the difference over the deviation of the plain
run's latents; "computed" is the share of the denoiser's last block that still runs; "modes" says for each offload mode
"equal", if the latents are those of mode "none" with the same lever, bit for bit, or by how much they differ, or how
it fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from data.make import ROOT
from data.make.levers.levers import Lever, levers
from data.make.measurements.stage_runs import arguments, load, place
from helpers import measure
from helpers.files import replacing
from helpers.lesson import use_onednn
from helpers.models import MODELS, OFFLOAD_MODES, Architecture, checkpoint

RECORD = ROOT / "data" / "measurements" / "levers" / "matrix.json"
STEPS, FRAMES, SIZE = 6, 9, (96, 64)  # CogVideoX makes only its own size


class Blocks:
    """Counts how often the last block of each denoiser runs; a block that a cache skips runs none of its layers."""

    def __init__(self, pipe, arch: Architecture):
        self.calls = self.passes = 0
        for name in arch.denoisers:
            denoiser = getattr(pipe, name)
            linear = [one for one in denoiser.modules() if isinstance(one, torch.nn.Linear)]
            denoiser.register_forward_hook(self._passed)
            blocks = getattr(denoiser, "blocks", None) or getattr(denoiser, "transformer_blocks", None)
            if blocks is not None:
                linear = [one for one in blocks[-1].modules() if isinstance(one, torch.nn.Linear)]
                linear[0].register_forward_hook(self._ran)
            else:
                self.calls = None

    def _passed(self, *_) -> None:
        self.passes += 1

    def _ran(self, *_) -> None:
        self.calls += 1

    @property
    def computed(self) -> float | None:
        """The share of passes in which the last block ran."""
        return round(self.calls / self.passes, 3) if self.calls else None  # compiled blocks call no hooks


def latents_of(model: str, lever: Lever, offload: str, device: str) -> tuple[torch.Tensor, float | None]:
    """The latents of some steps on the miniature, and the share of its last block that ran."""
    folder = Path(checkpoint(model, "miniature").repo)
    arch = Architecture(folder)
    pipe = load(arch, folder)
    lever.pull(pipe, arch, STEPS)
    place(pipe, arch, offload, device)
    blocks = Blocks(pipe, arch)
    fixed = MODELS[model].fixed_size and MODELS[model].defaults["miniature"]
    size = (fixed.width, fixed.height) if fixed else SIZE
    torch.manual_seed(0)  # the same random embeddings in every run
    given = arguments(arch, pipe, *size, FRAMES, device)
    given |= dict(num_inference_steps=STEPS, output_type="latent") | lever.call(arch)
    return pipe(**given).frames.float().cpu(), blocks.computed


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The root mean square of the difference, over the deviation of `other`."""
    return float((one - other).square().mean().sqrt() / other.std())


def why(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.split('. ')[0][:120]}"


def try_lever(model: str, name: str) -> dict:
    """One lever on one model, in every mode."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_onednn()
    lever, plain, resident = levers(device)[name], None, None
    row = {"model": model, "lever": name, "title": lever.title, "changes": None, "computed": None, "modes": {}}
    for offload in OFFLOAD_MODES:
        torch.compiler.reset()
        if plain is None:  # first of all: a lever can leave traces
            plain, _ = latents_of(model, Lever("plain"), "none", device)
        try:
            latents, computed = latents_of(model, lever, offload, device)
        except Exception as error:  # that a lever fails is what this is to find out
            row["modes"][offload] = why(error)
            continue
        if resident is None and offload == "none":
            resident = latents
            row |= {"changes": round(difference(latents, plain), 4), "computed": computed}
        if resident is not None:
            same = torch.equal(latents, resident)
            row["modes"][offload] = "equal" if same else f"differs by {difference(latents, resident):.2g}"
        else:
            row["modes"][offload] = "works"
    return row


def in_a_process(model: str, name: str) -> dict:
    """The same in a process of its own, which cannot disturb the others."""
    command = [sys.executable, "-m", "data.make.levers.matrix", "--child", model, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if not rows:
        raise RuntimeError(f"{model}, {name}: the process ended without a result\n{done.stderr[-1000:]}")
    return json.loads(rows[-1])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--levers", nargs="+", choices=levers("cpu"), default=list(levers("cpu")), metavar="LEVER")
    parser.add_argument("--json", action="store_true", help="print the record in place of writing it")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print("ROW " + json.dumps(try_lever(*args.child)), flush=True)
        return
    rows = {} if args.json or not RECORD.exists() else {
        (row["model"], row["lever"]): row for row in json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    }  # fmt: skip
    order = [(model, name) for model in MODELS for name in levers("cpu")]
    for model, name in [(model, name) for model in args.models for name in args.levers]:
        rows[model, name] = row = in_a_process(model, name)
        print(f"{model:18s} {row['title']:20s} {row['modes']}", file=sys.stderr, flush=True)
        record = {
            "rows": [rows[one] for one in order if one in rows], "steps": STEPS, "num_frames": FRAMES,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": measure.versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        if not args.json:  # after each row, so that a run that was stopped has not lost the others
            with replacing(RECORD) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
