"""What is no expert of Wan is refused before it is loaded, with a reason; what is one is described."""

import json

import gguf
import pytest
import torch

from helpers.checkpoints import MINIATURES
from helpers.gguf_files import GGUFError, TensorFile, check, quantized, write_gguf

FOLDER = MINIATURES / "wan22_i2v_a14b"
HIGH, LOW = (FOLDER / f"{noise}Noise" / f"Wan2.2-I2V-A14B-{noise}Noise-Q4_0.gguf" for noise in ("High", "Low"))
CONFIG = json.loads((FOLDER / "transformer" / "config.json").read_text())


def refused(path, part="transformer", config=CONFIG):
    with pytest.raises(GGUFError) as error:
        check(path, part, config)
    return str(error.value)


def test_both_experts_are_what_they_say():
    for path, part in ((HIGH, "transformer"), (LOW, "transformer_2")):
        opened = check(path, part, CONFIG)
        assert opened.nbytes["Q4_0"] * 32 == opened.numbers["Q4_0"] * 18
        assert opened.numbers["Q4_0"] > 0.9 * sum(opened.numbers.values())
        assert path.name in repr(opened) and "4.50" in repr(opened)
    assert HIGH.read_bytes() != LOW.read_bytes()


@pytest.mark.parametrize("kept", [3, 10, 500, 20_000, -4000])
def test_a_file_that_is_cut_off(tmp_path, kept):
    path = tmp_path / "HighNoise.gguf"
    path.write_bytes(HIGH.read_bytes()[:kept])
    assert "no GGUF file" in refused(path) if kept == 3 else "download it again" in refused(path)


def test_what_is_another_thing(tmp_path):
    assert "both experts are needed" in refused(tmp_path / "missing.gguf")
    assert "that of high noise: swap" in refused(LOW)
    assert "that of low noise: swap" in refused(HIGH, "transformer_2")
    assert "another of Wan's models" in refused(HIGH, config=CONFIG | {"num_layers": 40})
    assert "another of Wan's models" in refused(HIGH, config=CONFIG | {"in_channels": 16})

    text = tmp_path / "text.gguf"
    text.write_text("<html>404</html>")
    assert "no GGUF file" in refused(text)
    llama = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(llama, "llama")
    writer.add_tensor("output.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    assert "architecture 'llama'" in refused(llama)


def test_a_file_that_breaks_off_leaves_nothing(tmp_path):
    tensor = quantized("a", torch.ones(2, 32).numpy(), "Q4_0")
    short = TensorFile(tensor.name, tensor.shape, "Q4_0", [tensor.pieces[0][:1]])
    with pytest.raises(ValueError, match="announced"):
        write_gguf(tmp_path / "a.gguf", [short])
    assert list(tmp_path.iterdir()) == []
