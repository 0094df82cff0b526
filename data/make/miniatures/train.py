"""Train a miniature on one GPU in minutes.

    python -m data.make.miniatures.train ltx_video           # trains, then assembles data/miniatures/ltx_video
    python -m data.make.miniatures.train ltx_video --vae-minutes 1 --denoiser-minutes 1 --work /tmp/quick --no-assemble
    torchrun --nproc-per-node 4 -m data.make.miniatures.train ltx_video  # several GPUs, each drawing its own clips

The stages: the encoder of prompts (of pictures, in a model without prompts), the VAE, the statistics of the latents,
the denoiser and, for some families, the VAE's decoder once more, on generated latents. A stage is skipped if the work
folder already has its result. Each stage has a time budget instead of a number of steps: on any GPU, the learning rate
has decayed by the time it ends. An interrupted run resumes from its last saved state. All training data is drawn by
`data.make.clips.scenes` on the fly.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from data.make import ROOT
from helpers.models import MODELS

from . import processes
from .families import family_of
from .processes import RANK, barrier, say
from .stages import Run, finish_decoder, train_denoisers, train_vae

STAGE_NAMES = {"vae": "VAE", "decoder": "decoder, on what the denoiser makes"}  # in the model card


def add_stages(folder: Path, log: dict, start_from: Path | None, denoisers_too: bool = True) -> None:
    """Add the log's stages to the miniature's `metrics.json`, after those of the weights that it started from.

    Running this again, for a finished run that is assembled once more, adds no stage twice.

    Args:
        folder: The miniature.
        log: By stage, from `training.json` in the work folder.
        start_from: The miniature whose weights the run started from.
        denoisers_too: Whether its denoisers were used as well, or only its VAE.
    """
    path, earlier_path = folder / "metrics.json", (start_from or folder) / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    earlier = json.loads(earlier_path.read_text())["training"] if start_from and earlier_path.exists() else []
    earlier = [one for one in earlier if denoisers_too or one["stage"].startswith(tuple(STAGE_NAMES.values()))]
    stages = [{"stage": STAGE_NAMES.get(stage, stage), **one} for stage, one in log.items() if one["steps"]]
    metrics["training"] = earlier + [one for one in stages if one not in earlier]
    path.write_text(json.dumps(metrics, indent=1) + "\n")


def remove_origins(folder: Path) -> None:
    """Remove from a pipeline's config files the paths that its components were loaded from."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def train(run: Run) -> dict:
    """All stages in order; returns their log."""
    family, options, work = run.family, run.options, run.work
    log_path = work / "training.json"
    log = json.loads(log_path.read_text()) if log_path.exists() else {}
    if RANK == 0:
        family.save_encoder(work, options.start_from)
        if options.start_from and not options.vae_minutes and not (work / "vae").exists():
            shutil.copytree(options.start_from / "vae", work / "vae")
    barrier()
    if not run.is_trained("vae"):
        vae, log["vae"] = train_vae(run)
        if RANK == 0:
            vae.half().save_pretrained(work / "vae")
            log_path.write_text(json.dumps(log))
    barrier()
    if options.denoiser_minutes and not all(map(run.is_trained, family.denoisers)):
        log |= train_denoisers(run, run.read_vae())
        if RANK == 0:
            log_path.write_text(json.dumps(log))
    barrier()
    if family.finishes_decoder and options.denoiser_minutes and options.decoder_minutes and "decoder" not in log:
        vae, log["decoder"] = finish_decoder(run, run.read_vae())
        if RANK == 0:
            (work / "vae").rename(work / "vae_before")
            vae.half().save_pretrained(work / "vae")
            log_path.write_text(json.dumps(log))
    barrier()
    return log


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=f"one of {', '.join(MODELS)}")
    parser.add_argument(
        "--work", type=Path, help="folder for states and trained components (default: outputs/train/MODEL)"
    )
    parser.add_argument(
        "--start-from", type=Path,
        help="a miniature whose weights to start from; with --vae-minutes 0 its VAE is used unchanged",
    )  # fmt: skip
    parser.add_argument(
        "--denoisers-too", action=argparse.BooleanOptionalAction, default=True,
        help="start the denoisers from that miniature as well (default: yes)",
    )  # fmt: skip
    parser.add_argument("--vae-minutes", type=float, default=6.0)
    parser.add_argument("--denoiser-minutes", type=float, default=9.0)
    parser.add_argument("--decoder-minutes", type=float, default=2.0)
    parser.add_argument("--within", type=float, help="minutes for the whole run; the denoiser gets the remaining time")
    parser.add_argument("--vae-clips", type=int, default=2400, help="clips to train the VAE on (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=9000, help="clips for the denoiser (default: %(default)s)")
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vae-lr", type=float, default=2e-3)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument(
        "--cuda-graph", action=argparse.BooleanOptionalAction, default=True, help="record steps as a CUDA graph"
    )
    parser.add_argument("--assemble", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    options = parse()
    work = options.work or ROOT / "outputs" / "train" / options.model
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes.start(device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    run = Run(options.model, family_of(options.model), options, work, device)
    log = train(run)
    if options.assemble and RANK == 0:
        folder = ROOT / "data" / "miniatures" / options.model
        run.family.assemble(work, folder)
        remove_origins(folder)
        add_stages(folder, log, options.start_from, options.denoisers_too)
        say("assembled", folder, "- its model card: python -m data.make.miniatures.model_card", options.model)
    processes.stop()


if __name__ == "__main__":
    main()
