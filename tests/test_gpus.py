"""GPUs: the entry behind each device name, the table's rates, and what happens where there is no GPU to measure."""

from types import SimpleNamespace

import pytest
import torch

from helpers.forecast import DEFAULT_GPU, GPU, GPUS, find_gpu, gpu, here, measure_gpu

pytestmark = pytest.mark.forecast

# As CUDA and NVML report them: the device name and its memory in GiB, and the entry's name.
DEVICES = [
    ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB"),
    ("NVIDIA A100-PCIE-40GB", 39.4, "A100 40GB"),
    ("A100-SXM4-40GB", 39.6, "A100 40GB"),
    ("NVIDIA A100-SXM4-80GB", 79.2, "A100 80GB"),
    ("NVIDIA A100 80GB PCIe", 79.2, "A100 80GB PCIe"),
    ("NVIDIA A10", 22.0, "A10"),
    ("NVIDIA A10G", 22.0, "A10G"),
    ("NVIDIA L4", 22.0, "L4"),
    ("NVIDIA L40S", 44.4, "L40S"),
    ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
    ("NVIDIA H100 PCIe", 79.1, "H100 PCIe"),
    ("NVIDIA H200", 139.8, "H200"),
    ("Tesla T4", 14.6, "T4"),
    ("NVIDIA Tesla T4", 15.8, "T4"),
    ("Tesla V100-SXM2-16GB", 15.8, "V100 SXM2 16GB"),
    ("Tesla V100-SXM2-32GB", 31.7, "V100 SXM2 32GB"),
    ("Tesla V100-PCIE-16GB", 15.8, "V100 PCIe 16GB"),
    ("Tesla V100-PCIE-32GB", 31.7, "V100 PCIe 32GB"),
    ("NVIDIA RTX A2000", 5.8, "RTX A2000 6GB"),
    ("NVIDIA RTX A2000 12GB", 11.8, "RTX A2000 12GB"),
    ("NVIDIA RTX A4000", 15.7, "RTX A4000"),
    ("NVIDIA RTX A5000", 23.7, "RTX A5000"),
    ("NVIDIA RTX A6000", 47.5, "RTX A6000"),
    ("NVIDIA RTX 6000 Ada Generation", 47.5, "RTX 6000 Ada"),
    ("NVIDIA GeForce RTX 2060", 5.8, "RTX 2060 6GB"),
    ("NVIDIA GeForce RTX 2060", 11.8, "RTX 2060 12GB"),
    ("GeForce RTX 2080 Ti", 10.8, "RTX 2080 Ti"),
    ("NVIDIA GeForce RTX 3050", 7.8, "RTX 3050 8GB"),
    ("NVIDIA GeForce RTX 3060", 7.8, "RTX 3060 8GB"),
    ("NVIDIA GeForce RTX 3060", 11.75, "RTX 3060 12GB"),
    ("NVIDIA GeForce RTX 3060 Ti", 7.8, "RTX 3060 Ti"),
    ("NVIDIA GeForce RTX 3060 Laptop GPU", 5.8, "RTX 3060 Laptop"),
    ("NVIDIA GeForce RTX 3070", 7.8, "RTX 3070"),
    ("NVIDIA GeForce RTX 3070 Ti", 7.8, "RTX 3070 Ti"),
    ("NVIDIA GeForce RTX 3080", 9.8, "RTX 3080 10GB"),
    ("NVIDIA GeForce RTX 3080", 11.8, "RTX 3080 12GB"),
    ("NVIDIA GeForce RTX 3080 Laptop GPU", 15.8, "RTX 3080 Laptop 16GB"),
    ("NVIDIA GeForce RTX 3080 Ti", 11.8, "RTX 3080 Ti"),
    ("NVIDIA GeForce RTX 3090", 23.7, "RTX 3090"),
    ("NVIDIA GeForce RTX 3090 Ti", 23.7, "RTX 3090 Ti"),
    ("NVIDIA GeForce RTX 4060", 7.6, "RTX 4060"),
    ("NVIDIA GeForce RTX 4060 Laptop GPU", 7.8, "RTX 4060 Laptop"),
    ("NVIDIA GeForce RTX 4060 Ti", 7.6, "RTX 4060 Ti 8GB"),
    ("NVIDIA GeForce RTX 4060 Ti", 15.6, "RTX 4060 Ti 16GB"),
    ("NVIDIA GeForce RTX 4070", 11.6, "RTX 4070"),
    ("NVIDIA GeForce RTX 4070 SUPER", 11.6, "RTX 4070 SUPER"),
    ("NVIDIA GeForce RTX 4070 Ti", 11.6, "RTX 4070 Ti"),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, "RTX 4070 Ti SUPER"),
    ("NVIDIA GeForce RTX 4070 Laptop GPU", 7.8, "RTX 4070 Laptop"),
    ("NVIDIA GeForce RTX 4080", 15.6, "RTX 4080"),
    ("NVIDIA GeForce RTX 4080 SUPER", 15.6, "RTX 4080 SUPER"),
    ("NVIDIA GeForce RTX 4080 Laptop GPU", 11.7, "RTX 4080 Laptop"),
    ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "RTX 4090 Laptop"),
    ("NVIDIA GeForce RTX 5060 Ti", 15.5, "RTX 5060 Ti 16GB"),
    ("NVIDIA GeForce RTX 5070", 11.5, "RTX 5070"),
    ("NVIDIA GeForce RTX 5070 Ti", 15.5, "RTX 5070 Ti"),
    ("NVIDIA GeForce RTX 5080", 15.5, "RTX 5080"),
    ("NVIDIA GeForce RTX 5090", 31.4, "RTX 5090"),
]
# A relative of an entry, a slice of one, or another maker's.
UNKNOWN = [
    ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.6),
    ("NVIDIA A30", 23.5),
    ("NVIDIA GeForce GTX 1660", 5.8),
    ("NVIDIA GeForce RTX 2070 with Max-Q Design", 7.8),
    ("NVIDIA GeForce RTX 3050", 5.7),  # the 6 GB version has fewer SMs
    ("NVIDIA GeForce RTX 4090", 47.4),  # nor is a modified card in the table
    ("NVIDIA GeForce RTX 4090 D", 23.6),
    ("NVIDIA GeForce RTX 5090 Laptop GPU", 23.5),
    ("NVIDIA H100 NVL", 93.0),
    ("NVIDIA H200 NVL", 139.8),
    ("NVIDIA L40", 44.4),
    ("Quadro RTX 6000", 23.7),
    ("Tesla P100-PCIE-16GB", 15.9),
    ("AMD Radeon RX 7900 XTX", 24.0),
    ("Some GPU", 12.0),
    ("", 12.0),
]


@pytest.mark.parametrize(("device", "vram_gib", "name"), DEVICES)
def test_a_device_name_finds_its_own_entry(device, vram_gib, name):
    assert find_gpu(device, vram_gib) is GPUS[name]


@pytest.mark.parametrize(("device", "vram_gib"), UNKNOWN)
def test_a_gpu_that_is_not_in_the_table_is_not_taken_for_another(device, vram_gib):
    assert find_gpu(device, vram_gib) is None


def test_every_entry_is_found_by_its_own_name():
    for name, one in GPUS.items():
        assert find_gpu(f"NVIDIA GeForce {name}", one.vram_gib) is one
        assert gpu(name) is one and gpu(one) is one


def test_a_name_shared_by_two_sizes_of_memory_needs_the_size():
    assert find_gpu("NVIDIA GeForce RTX 3060") is None
    assert find_gpu("NVIDIA GeForce RTX 4070 Ti") is GPUS["RTX 4070 Ti"]


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "tf32", "fp32", "bandwidth", "pinned"),
    [
        ("RTX 4070 Ti", 80.2, 80.2, 40.1, 40.1, 504, 25.2),
        ("RTX 4090", 165.2, 165.2, 82.6, 82.6, 1008, 25.2),
        ("RTX 3060 12GB", 25.6, 25.6, 12.8, 12.7, 360, 25.2),
        ("RTX 3090", 71.2, 71.2, 35.6, 35.6, 936, 25.2),
        ("RTX 2080 Ti", 13.4, 53.8, 13.4, 13.4, 616, 12.6),
        ("RTX 4060", 30.2, 30.2, 15.1, 15.1, 272, 12.6),  # eight lanes
        ("RTX 5090", 209.5, 209.5, 104.8, 104.8, 1792, 50.4),
        ("RTX A6000", 154.8, 154.8, 77.4, 38.7, 768, 25.2),
        ("RTX 6000 Ada", 364.2, 364.2, 182.1, 91.1, 960, 25.2),
        ("T4", 8.1, 65, 8.1, 8.1, 320, 12.6),
        ("V100 SXM2 16GB", 15.7, 125.3, 15.7, 15.7, 900, 12.6),
        ("A10", 125, 125, 62.5, 31.2, 600, 25.2),
        ("A100 80GB", 311.9, 311.9, 155.9, 19.5, 2039, 25.2),
        ("L4", 121, 121, 60, 30.3, 300, 25.2),
        ("H100", 989, 989, 494, 67, 3350, 50.4),
        ("H200", 989, 989, 494, 67, 4800, 50.4),
    ],
)
def test_the_rates_are_those_of_the_data_sheets(name, bf16, fp16, tf32, fp32, bandwidth, pinned):
    rates = GPUS[name].rates
    assert (rates.bf16, rates.fp16, rates.tf32, rates.fp32) == pytest.approx((bf16, fp16, tf32, fp32), abs=0.051)
    assert (rates.bandwidth, rates.pinned) == pytest.approx((bandwidth, pinned))
    assert rates.pageable == 8.0 and rates.to_host == 2.0 and rates.source.startswith("NVIDIA")


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'RTX 4070 Ti'.*The table has"):
        gpu("RTX 4070 To")
    for name in ("RTX 3060", "NVIDIA GeForce RTX 3060"):
        with pytest.raises(ValueError, match="'RTX 3060 8GB' or 'RTX 3060 12GB'"):
            gpu(name)
    with pytest.raises(ValueError, match="no GPU is called 'Voodoo 2': The table has"):
        gpu("Voodoo 2")


@pytest.mark.parametrize("name", ["RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti", "rtx4070ti", "rtx 4070 TI"])
def test_a_name_may_be_written_as_the_driver_or_a_person_writes_it(name):
    assert gpu(name) is GPUS["RTX 4070 Ti"]


@pytest.mark.parametrize(
    ("device", "gib", "major", "expected"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, 8, GPUS["RTX 4070 Ti SUPER"]),
        ("NVIDIA A100-SXM4-80GB", 79.2, 8, GPUS["A100 80GB"]),
        ("Some GPU", 12.0, 12, GPU("Some GPU", 12.0, None, 8.125)),
        ("NVIDIA H100 NVL", 93.0, 9, GPU("NVIDIA H100 NVL", 93.0, None, 32.0)),
    ],
)
def test_this_machines_gpu_has_its_own_name_and_memory(monkeypatch, device, gib, major, expected):
    properties = SimpleNamespace(name=device, total_memory=gib * 2**30, major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert here() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU to measure")
def test_without_a_gpu_there_is_nothing_to_measure():
    with pytest.raises(RuntimeError, match="name a GPU"):
        measure_gpu()
    assert here().name == DEFAULT_GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_measured_gpu_is_plausible():
    rates = measure_gpu().rates
    assert rates.bf16 > rates.fp32 > 1 and rates.bandwidth > rates.pinned > rates.pageable > 0.5
