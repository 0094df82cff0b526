"""Measure both ways of encoding a prompt at full size, and write data/measurements/encoding.json.

python -m data.make.measurements.encoding                        # umT5-XXL; creates 11 GB of dummy weights on first use
python -m data.make.measurements.encoding --ways layer_by_layer  # on a machine without 24 GB of free RAM
python -m data.make.measurements.encoding --layers 8             # both ways, with 8 of the encoder's 24 layers

Each way runs in a separate process, on two threads, and reads files that are not in the page cache. The file keeps the
rows of other machines, models and numbers of layers, and of the ways that this run leaves out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file

from data.make import ROOT
from helpers.lesson import encoder_from_files
from helpers.measure import VRAMMeter, save, versions
from helpers.models import MODELS, Checkpoint, dummy_folder
from helpers.units import GIB

PATH = ROOT / "data" / "measurements" / "encoding.json"
WAYS = ("fp32", "layer_by_layer")
THREADS = 2


def encoder_of(folder: str, way: str) -> torch.nn.Module:
    """The text encoder in fp32, loaded in one of the lessons' two ways."""
    import transformers

    name = json.loads((Path(folder) / "model_index.json").read_text())["text_encoder"][1]
    encoder_class = getattr(transformers, name)
    if way == "fp32":
        return encoder_class.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    return encoder_from_files(Checkpoint(folder), encoder_class)


def measure(folder: str, way: str, tokens: int, embeds_path: Path) -> dict:
    """Load the encoder and encode a prompt of `tokens` tokens once; returns seconds and peak RAM in GiB."""
    torch.set_num_threads(THREADS)
    for path in (Path(folder) / "text_encoder").glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    ids = torch.randint(3, 100, (1, tokens), generator=torch.Generator().manual_seed(0))
    import transformers  # noqa: F401 - imported here so that its time is not counted

    with VRAMMeter(way, interval=0.02) as meter, torch.no_grad():
        meter.mark("load")
        encoder = encoder_of(folder, way)
        meter.mark("encode")
        embeds = encoder(ids, torch.ones_like(ids)).last_hidden_state
    save_file({"embeds": embeds}, embeds_path)
    seconds = {phase.name: round(phase.seconds, 2) for phase in meter.phases}
    return {
        "seconds": round(meter.seconds, 2), "phases": seconds, "peak_ram_gib": round(meter.peak_ram_gib, 2),
        "before_gib": round(meter.baseline_ram_gib, 2),
    }  # fmt: skip


def shortened(folder: Path, layers: int, scratch: Path) -> Path:
    """A checkpoint in `scratch` with only the first layers of the text encoder: a changed config, and links."""
    (scratch / "text_encoder").mkdir()
    (scratch / "model_index.json").symlink_to(folder / "model_index.json")
    for path in (folder / "text_encoder").iterdir():
        if path.name != "config.json":
            (scratch / "text_encoder" / path.name).symlink_to(path)
    config = json.loads((folder / "text_encoder" / "config.json").read_text()) | {"num_layers": layers}
    (scratch / "text_encoder" / "config.json").write_text(json.dumps(config))
    return scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[name for name, one in MODELS.items() if one.max_prompt_tokens],
                        default="wan22_i2v_a14b")  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=16, help="length of the prompt in tokens (default: 16)")
    parser.add_argument("--layers", type=int, help="use only the first layers of the encoder (default: all)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # the checkpoint, and the file for the embeddings
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.ways[0], args.tokens, Path(args.one[1]))))
        return
    folder = dummy_folder(args.model, ["text_encoder"])
    layers = args.layers or json.loads((folder / "text_encoder" / "config.json").read_text())["num_layers"]
    ram = round(psutil.virtual_memory().total / GIB, 1)
    machine = {"ram_gib": ram, "threads": THREADS, "gpu": None}
    rows, embeds = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = shortened(folder, args.layers, Path(scratch)) if args.layers else folder
        for way in args.ways:
            path = Path(scratch) / f"{way}.safetensors"
            command = [sys.executable, "-m", "data.make.measurements.encoding", "--one", str(folder), str(path)]
            time.sleep(2)  # until the system has reclaimed the memory of the previous process
            command += ["--ways", way, "--tokens", str(args.tokens)]
            done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE)
            found = json.loads(done.stdout.splitlines()[-1])
            embeds[way] = load_file(path)["embeds"]
            row = {"model": args.model, "layers": layers, "way": way, "tokens": args.tokens} | machine | found
            if way != "fp32" and "fp32" in embeds:
                row["largest_difference"] = (embeds[way] - embeds["fp32"]).abs().max().item()
                row["largest_value"] = embeds["fp32"].abs().max().item()
                row["times_fp32_seconds"] = round(row["seconds"] / rows[0]["seconds"], 3)
            row |= {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
            rows.append(row)
            print(json.dumps(row))
    key = ("model", "layers", "way", "tokens", "ram_gib")
    new = {tuple(row[name] for name in key) for row in rows}
    kept = json.loads(PATH.read_text())["rows"] if PATH.is_file() else []
    kept = [row for row in kept if tuple(row[name] for name in key) not in new]
    print(save({"rows": kept + rows}, PATH).relative_to(ROOT))


if __name__ == "__main__":
    main()
