"""The class that a benchmark's table names: the best of this CPU, or a lesser one that a switch gives."""

from __future__ import annotations

import pytest

from benchmarks import cpu_class

ZEN3 = ["sse4_2", "avx2", "fma"]
ALDER_LAKE = [*ZEN3, "avx_vnni"]
ICE_LAKE = [*ZEN3, "avx512f", "avx512_vnni"]
ZEN5 = [*ICE_LAKE, "avx512_bf16", "avx_vnni"]
SAPPHIRE_RAPIDS = [*ZEN5, "amx_bf16"]


@pytest.mark.parametrize(
    ("flags", "names", "dtype"),
    [
        (ZEN3, ["AVX2"], "float32"),
        (ALDER_LAKE, ["AVX-VNNI", "AVX2"], "float32"),
        (ICE_LAKE, ["AVX512", "AVX2"], "float32"),
        (ZEN5, ["AVX512-BF16", "AVX512", "AVX-VNNI", "AVX2"], "bfloat16"),
        (SAPPHIRE_RAPIDS, ["AMX", "AVX512", "AVX-VNNI", "AVX2"], "bfloat16"),
        (["sse4_2"], ["other"], "float32"),
    ],
)
def test_a_cpu_is_of_its_best_class_and_by_a_switch_of_the_lesser_ones(flags, names, dtype):
    found = cpu_class.classes(flags)
    assert [one.name for one in found] == names and found[0].dtype == dtype
    assert all(one.march and one.environ for one in found[1:])


def test_a_process_of_the_benchmark_is_of_the_class_that_its_environment_names(monkeypatch):
    monkeypatch.setattr(cpu_class, "here", lambda: cpu_class.classes(ZEN5))
    assert cpu_class.now().name == "AVX512-BF16"
    monkeypatch.setenv(cpu_class.FORCED, "AVX2")
    assert cpu_class.now().dtype == "float32"
    from training.fast_cpu import kernels

    monkeypatch.setattr(kernels, "FLAGS", kernels.FLAGS)
    cpu_class.keep_within()
    assert "-march=x86-64-v3" in kernels.FLAGS and "-march=native" not in kernels.FLAGS


@pytest.mark.tiny
def test_the_bound_of_a_benchmark_has_the_products_that_training_takes(monkeypatch):
    from dataclasses import replace

    from benchmarks import train_speed
    from training.fast_cpu import products

    taken = []
    counted = replace(
        products.TORCH,
        linear=lambda *given: taken.append("there") or products.TORCH.linear(*given),
        back=lambda *given: taken.append("back") or products.TORCH.back(*given),
    )
    monkeypatch.setattr(products, "chosen", lambda dtype: counted)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    found = train_speed.bound({**shape, "num_hidden_layers": 1, "vocab_size": 32}, 4, 0.5, "float32", seconds=0.0)
    assert found["tokens"] == 4 and taken[:16] == ["there", "back"] * 8, (
        "seven products of a layer and the output layer's"
    )
