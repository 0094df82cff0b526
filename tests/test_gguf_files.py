"""What is no expert of Wan is refused before it is loaded, with a reason; what is one is described."""

import json

import gguf
import numpy as np
import pytest
import torch

from helpers.models.architecture import Architecture
from helpers.models.catalogue import MINIATURES
from helpers.models.gguf_files import (
    GGUFError,
    TensorFile,
    check_gguf,
    original_name,
    packed_nbytes,
    quantized,
    write_gguf,
)

pytestmark = pytest.mark.models

FOLDER = MINIATURES / "wan22_i2v_a14b"
HIGH, LOW = (FOLDER / f"{noise}Noise" / f"Wan2.2-I2V-A14B-{noise}Noise-Q4_0.gguf" for noise in ("High", "Low"))
CONFIG = json.loads((FOLDER / "transformer" / "config.json").read_text())


def refused(path, component="transformer", config=CONFIG):
    with pytest.raises(GGUFError) as error:
        check_gguf(path, component, config)
    return str(error.value)


def test_both_experts_are_what_they_say():
    for path, component in ((HIGH, "transformer"), (LOW, "transformer_2")):
        summary = check_gguf(path, component, CONFIG)
        assert summary.nbytes["Q4_0"] * 32 == summary.elements["Q4_0"] * 18
        assert summary.elements["Q4_0"] > 0.9 * sum(summary.elements.values())
        assert path.name in repr(summary) and "4.50" in repr(summary)
        assert summary._repr_mimebundle_()["text/html"].count("<tr>") == 2 + len(summary.tensors)
    assert HIGH.read_bytes() != LOW.read_bytes()


@pytest.mark.parametrize("kept", [3, 10, 500, 20_000, -4000])
def test_a_file_that_is_cut_off(tmp_path, kept):
    path = tmp_path / "HighNoise.gguf"
    path.write_bytes(HIGH.read_bytes()[:kept])
    assert "is not a GGUF file" in refused(path) if kept == 3 else "download it again" in refused(path)


def test_what_is_another_thing(tmp_path):
    assert "both experts are needed" in refused(tmp_path / "missing.gguf")
    swapped = "is the {}-noise expert, but this is the place of the {}-noise expert: swap"
    assert swapped.format("low", "high") in refused(LOW)
    assert swapped.format("high", "low") in refused(HIGH, "transformer_2")
    assert "another of Wan's models" in refused(HIGH, config=CONFIG | {"num_layers": 40})
    assert "another of Wan's models" in refused(HIGH, config=CONFIG | {"in_channels": 16})

    text = tmp_path / "text.gguf"
    text.write_text("<html>404</html>")
    assert "is not a GGUF file" in refused(text)
    llama = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(llama, "llama")
    writer.add_tensor("output.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    assert "architecture 'llama'" in refused(llama)


def test_a_type_that_diffusers_cannot_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.quantizers.gguf.utils.SUPPORTED_GGUF_QUANT_TYPES", [])
    assert "is packed as Q4_0, which diffusers cannot read: take a file of another type, Q4_K_M" in refused(HIGH)


def test_a_file_that_breaks_off_leaves_nothing(tmp_path):
    tensor = quantized("a", torch.ones(2, 32).numpy(), "Q4_0")
    short = TensorFile(tensor.name, tensor.shape, "Q4_0", [tensor.pieces[0][:1]])
    assert tensor.nbytes == packed_nbytes((2, 32), "Q4_0") == 36
    with pytest.raises(ValueError, match="a: expected 36 bytes, but its pieces have "):
        write_gguf(tmp_path / "a.gguf", [short])
    assert list(tmp_path.iterdir()) == []


def test_names_go_back_to_the_originals():
    """diffusers' own conversion is the judge."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    names = [name for name, _ in Architecture("wan22_i2v_a14b").component("transformer").named_parameters()]
    originals = {original_name(name): torch.empty(0) for name in names}
    assert len(originals) == len(names)
    assert {"blocks.39.self_attn.q.weight", "blocks.0.modulation", "head.modulation"} <= set(originals)
    assert set(convert_wan_transformer_to_diffusers(originals)) == set(names)


def test_quantized_weights_come_back_within_a_step(tmp_path):
    values = np.random.default_rng(0).normal(0, 0.1, (64, 96)).astype(np.float32)
    write_gguf(tmp_path / "one.gguf", [quantized("a.weight", values, "Q4_0"), quantized("b.bias", values[0], "F32")])
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "one.gguf").tensors}
    packed = tensors["a.weight"]
    assert packed.tensor_type == gguf.GGMLQuantizationType.Q4_0 and packed.n_bytes == values.size // 32 * 18
    back = gguf.quants.dequantize(packed.data, packed.tensor_type)
    steps = np.abs(values).reshape(64, 3, 32).max(-1, keepdims=True) / 8
    assert (np.abs(back.reshape(64, 3, 32) - values.reshape(64, 3, 32)) <= 1.01 * steps).all()
    assert np.array_equal(tensors["b.bias"].data, values[0])


def test_a_tensor_of_the_wrong_length_is_refused(tmp_path):
    path = tmp_path / "one.gguf"
    with pytest.raises(ValueError, match="expected 16 bytes, but its pieces have 8"):
        write_gguf(path, [TensorFile("a", (4,), "F32", [np.zeros(2, np.float32)])])
    assert not list(tmp_path.iterdir())
