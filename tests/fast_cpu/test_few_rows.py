"""Products of a few rows, for which each weight is read once as it lies (few_rows.c)."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.tiny

# Rows, outputs and inputs: one of each, what no vector and no tile holds, more inputs than are taken at a time.
SIZES = [(1, 1, 1), (1, 64, 48), (2, 7, 9), (4, 12, 16), (5, 101, 577), (16, 33, 4096), (7, 10, 9001), (32, 130, 64)]


@pytest.fixture(scope="module")
def few_rows():
    from training.fast_cpu import few_rows, kernels

    if not hasattr(kernels.load(), "few_rows_f32"):
        pytest.skip("this CPU has no vector units for it")
    return few_rows


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_any_number_of_threads_computes_the_whole_product(few_rows, threads, m, n, k, biased):
    import torch

    torch.manual_seed(m * n * k)
    x, weight, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n) if biased else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    found = few_rows.linear(x, weight, bias, None)
    assert found.shape == (m, n) and found.is_contiguous()
    most = 1e-6 * (x.double().abs() @ weight.double().abs().t() + 1)
    assert ((found.double() - exact).abs() <= most).all()


def test_the_number_of_threads_changes_no_digit(few_rows):
    import torch

    x, weight, before = torch.randn(5, 5000), torch.randn(50, 5000), torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(few_rows.linear(x, weight, None, None))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rows_that_are_a_part_of_wider_ones_are_taken(few_rows):
    import torch

    wide, weight = torch.randn(6, 40), torch.randn(9, 30)
    assert torch.equal(
        few_rows.linear(wide[:, 5:35], weight, None, None), few_rows.linear(wide[:, 5:35].clone(), weight, None, None)
    )


@pytest.mark.parametrize("what", ["many rows", "float64", "bfloat16", "a transposed weight"])
def test_what_it_is_not_for_is_multiplied_by_a_library(few_rows, what):
    import torch

    from training.fast_cpu import products

    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(what, torch.float32)
    x = torch.randn(33 if what == "many rows" else 3, 16).to(dtype)
    weight = (torch.randn(16, 8).t() if what == "a transposed weight" else torch.randn(8, 16)).to(dtype)
    bias = torch.randn(8).to(dtype)
    asked = []

    def library(*given: object) -> torch.Tensor:
        asked.append(given)
        return products.TORCH.linear(*given)

    by = products.Products("a", library, products.TORCH.back, products.TORCH.thin)
    assert torch.equal(few_rows.linear(x, weight, bias, by), torch.nn.functional.linear(x, weight, bias))
    assert len(asked) == 1


def test_answers_by_hand_take_each_weight_as_it_lies(few_rows, monkeypatch):
    """Else a step of eight answers takes twice as long."""
    import torch

    from tests.support.by_hand import adapted
    from training.fast_cpu import fast_loss, greedy, kernels

    called = []
    real = kernels.call
    monkeypatch.setattr(kernels, "call", lambda name, *given: called.append(name) or real(name, *given))
    decoder = fast_loss.layers(adapted(dtype="float32").get_base_model())
    assert decoder.head.weight.dtype == torch.float32
    greedy.answers(decoder, [[1, 2, 3], [4, 5]], [3, 3], [], base=True)
    # Two steps after the prompts, which are few tokens, too; the soundness of both answers.
    assert called.count("few_rows") > 2 * (4 * len(decoder.layers) + 1)
