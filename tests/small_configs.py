"""The five real models' architecture files with fewer and narrower layers: the same classes, quick on a CPU."""

import json
import shutil
from pathlib import Path

from helpers.models.catalogue import CONFIGS

WAN = {"num_layers": 1, "num_attention_heads": 2, "ffn_dim": 512}
WAN_VAE = {"base_dim": 16, "decoder_base_dim": 16, "num_res_blocks": 1}
CHANNELS = [32, 32, 32, 32]
NARROW = {
    "ltx_video/transformer": {"num_layers": 1, "num_attention_heads": 4, "cross_attention_dim": 256},
    "ltx_video/vae": {
        "block_out_channels": [16, 16, 32, 32], "decoder_block_out_channels": [16, 16, 32, 32],
        "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5,
    },
    "wan22_ti2v_5b/transformer": WAN,
    "wan22_ti2v_5b/vae": WAN_VAE,
    "wan22_i2v_a14b/transformer": WAN,
    "wan22_i2v_a14b/transformer_2": WAN,
    "wan22_i2v_a14b/vae": WAN_VAE,
    "cogvideox_5b_i2v/transformer": {
        "num_layers": 1, "num_attention_heads": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
    },
    "cogvideox_5b_i2v/vae": {"block_out_channels": CHANNELS, "layers_per_block": 1},
    "svd_xt/unet": {
        "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "num_attention_heads": [1, 1, 2, 2],
        "cross_attention_dim": 64,
    },
    "svd_xt/vae": {"block_out_channels": CHANNELS, "layers_per_block": 1},
    "svd_xt/image_encoder": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "projection_dim": 64,
    },
    "*/text_encoder": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 2, "vocab_size": 100},
}  # fmt: skip


def write(folder: Path) -> Path:
    """Write all five into `folder`, each under its model's name; returns the folder."""
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)
    for pattern, changes in NARROW.items():
        for path in folder.glob(f"{pattern}/config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
