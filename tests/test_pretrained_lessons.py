"""The lessons after the first with `weights=pretrained`: what they load comes from a Hub on loopback, and nothing else.

Each lesson's cells up to its loaded pipeline run unmodified against repositories in the published layouts, the
miniatures their weights; the lesson with GGUF files once more without a network. All of lesson 01 runs in
`test_pretrained`, also without a network.
"""

import json
import os
import shutil

import nbformat
import pytest
from safetensors.torch import load, save

from helpers.models import MODELS
from helpers.run_lesson.running import NOTEBOOKS
from tests.hub_server import HubServer, folder_files
from tests.notebook_style import ROOT
from tests.test_pretrained import environment, run_lesson

# The cells that load something, and what they need
LOADING = (
    "setup parameters check cap download clip fit embeddings-cache encoder-from-files load-text-encoder encode-prompt "
    "load"
).split()
MORE = {"02_wan22_ti2v_5b": ["forecast-weights", "overflow"], "03_wan22_i2v_a14b_gguf": ["gguf-files"]}
GGUF = "QuantStack/Wan2.2-I2V-A14B-GGUF"
WEIGHTS = "diffusion_pytorch_model"


def miniature(name):
    files = folder_files(ROOT / "data" / "miniatures" / name)
    return {path: content for path, content in files.items() if "/" in path or path == "model_index.json"}


def in_shards(files, part, stem):
    """One part's weights in two files and an index, as large models are published."""
    tensors = load(files.pop(f"{part}/{stem}.safetensors"))
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    index = {}
    for number, half in enumerate(halves, 1):
        shard = f"{stem}-0000{number}-of-00002.safetensors"
        files[f"{part}/{shard}"] = save({name: tensors[name] for name in half})
        index |= dict.fromkeys(half, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    whole = {"metadata": {"total_size": size}, "weight_map": index}
    files[f"{part}/{stem}.safetensors.index.json"] = json.dumps(whole).encode()
    return files


def wan22_ti2v_5b():
    files = in_shards(miniature("wan22_ti2v_5b"), "text_encoder", "model")
    return {"wan22_ti2v_5b": files}, {"assets/comp_effic.png": 10**6, "examples/i2v_input.JPG": 250_000}


def wan22_i2v_a14b():
    files = miniature("wan22_i2v_a14b")
    experts = {path: files.pop(path) for path in list(files) if path.endswith(".gguf")}
    gguf = {path.replace("Q4_0", "Q4_K_M"): content for path, content in experts.items()}
    decoys = {
        f"{part}/{WEIGHTS}-0000{number}-of-00002.safetensors": 5 * 10**9
        for part in ("transformer", "transformer_2")
        for number in (1, 2)
    }
    decoys |= {path.replace("Q4_0", kind): 10**10 for path in experts for kind in ("Q8_0", "Q3_K_S")}
    return {"wan22_i2v_a14b": files, GGUF: gguf}, decoys


def svd_xt():
    files = {
        path.replace(".safetensors", ".fp16.safetensors"): content for path, content in miniature("svd_xt").items()
    }
    decoys = {path.replace(".fp16", ""): 2 * 10**9 for path in files if path.endswith(".safetensors")}
    return {"svd_xt": files}, decoys | {"svd_xt.safetensors": 9 * 10**9, "svd_xt_image_decoder.safetensors": 10**9}


def cogvideox_5b_i2v():
    files = in_shards(miniature("cogvideox_5b_i2v"), "transformer", WEIGHTS)
    return {"cogvideox_5b_i2v": in_shards(files, "text_encoder", "model")}, {"README_zh.md": 20_000}


CASES = {
    "02_wan22_ti2v_5b": wan22_ti2v_5b,
    "03_wan22_i2v_a14b_gguf": wan22_i2v_a14b,
    "04_stable_video_diffusion": svd_xt,
    "05_cogvideox_5b_i2v": cogvideox_5b_i2v,
}


@pytest.fixture
def inside_the_project():
    """A folder for notebooks, from which they find the project as they do from their own."""
    folder = ROOT / "outputs" / f"loading-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", CASES)
def test_a_lesson_loads_what_it_needs_from_the_hub(lesson, tmp_path, inside_the_project):
    repos, decoys = CASES[lesson]()
    hub_names = {name: MODELS[name].hub if name in MODELS else name for name in repos}
    with_decoys = {
        hub_names[name]: files | {p: n for p, n in decoys.items() if p not in files} for name, files in repos.items()
    }
    notebook = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in LOADING + MORE.get(lesson, [])]
    loading = inside_the_project / "loading.ipynb"
    nbformat.write(notebook, loading)
    # At the model's own size, of which nothing is computed here
    own = MODELS[next(iter(repos))].defaults["pretrained"]
    size = {"width": own.width, "height": own.height, "num_frames": own.num_frames}
    with HubServer(with_decoys) as hub:
        first = run_lesson(tmp_path / "first", environment(hub, tmp_path / "home"), loading, **size)
        assert first.returncode == 0, first.stderr
        for name, files in repos.items():
            fetched = hub.fetched(repo=hub_names[name])
            # Of two files with the same content, as the experts' configs are, the second comes from the cache.
            assert set(fetched) <= set(files) and {files[path] for path in fetched} == set(files.values()), name
        if "gguf" not in lesson:  # of single files; `test_pretrained` does without a network, too
            return
        asked = len(hub.requests)
        offline = environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1")
        again = run_lesson(tmp_path / "again", offline, loading, **size)
        assert again.returncode == 0 and len(hub.requests) == asked, again.stderr
