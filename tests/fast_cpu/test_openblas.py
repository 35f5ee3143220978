"""Products by the OpenBLAS that NumPy brings along, each of torch's threads with a part of them."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.tiny

# Rows, columns and what is summed over: a product of one number, thin ones, and parts that do not come out even.
SIZES = [(1, 1, 1), (3, 5, 2), (7, 64, 9), (65, 48, 130), (200, 211, 33), (2, 1000, 17), (130, 129, 300)]


@pytest.fixture(scope="module")
def openblas():
    from training.fast_cpu import openblas

    if openblas.found() is None:
        pytest.skip("NumPy has another library here")
    return openblas


@pytest.fixture(params=[1, 2, 3, 4, 7])
def threads(request):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def stored(rows, columns, turned):
    """Some numbers [rows, columns], or the transpose of such in memory, a part of a larger one."""
    import torch

    whole = torch.randn((columns, rows + 3) if turned else (rows, columns + 3))
    return whole[:, :rows].t() if turned else whole[:, :columns]


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize(("a_turned", "b_turned"), [(False, False), (False, True), (True, False), (True, True)])
def test_any_number_of_threads_computes_the_whole_product(openblas, threads, m, n, k, a_turned, b_turned):
    import torch

    torch.manual_seed(m * n * k)
    a, b = stored(m, k, a_turned), stored(k, n, b_turned)
    exact, most = a.double() @ b.double(), 1e-6 * (a.double().abs() @ b.double().abs() + 1)
    found = openblas.product(a, b)
    assert found.shape == (m, n) and found.is_contiguous()
    assert ((found.double() - exact).abs() <= most).all()
    into = torch.full((m, n), 7.0)
    assert openblas.product(a, b, into) is into
    assert torch.equal(into, found), "what was there before counts for nothing"
    openblas.product(a, b, into, adds=True)
    assert ((into.double() - 2 * exact).abs() <= 2 * most).all()


def test_a_matrix_with_neither_rows_nor_columns_together_is_copied(openblas):
    import torch

    strided = torch.randn(20, 30)[::2, ::3]
    spread = torch.randn(1, 10).expand(8, 10)
    assert torch.allclose(openblas.product(strided, spread.t()), strided @ spread.t(), atol=1e-5)
    assert torch.allclose(openblas.product(spread, strided), spread @ strided, atol=1e-5)


def test_the_same_product_is_the_same_to_the_last_bit_each_time(openblas, threads):
    import torch

    a, b = torch.randn(130, 300), torch.randn(300, 211)
    first = openblas.product(a, b)
    assert all(torch.equal(openblas.product(a, b), first) for _ in range(20))


def test_numpys_own_threads_stay_as_they_were(openblas):
    import ctypes

    import torch

    get = ctypes.CFUNCTYPE(ctypes.c_int)(openblas.found().get_threads.value)
    put = ctypes.CFUNCTYPE(None, ctypes.c_int)(openblas.found().set_threads.value)
    before = get()
    try:
        put(2)
        openblas.product(torch.ones(64, 64), torch.ones(64, 64))
        assert get() == 2
    finally:
        put(before)


def test_what_is_not_in_float32_is_refused(openblas):
    import torch

    one = torch.ones(4, 4)
    for wrong in (one.double(), one.bfloat16()):
        with pytest.raises(ValueError, match="float32"):
            openblas.product(wrong, one)
    with pytest.raises(ValueError, match="dense"):
        openblas.product(one, one, into=torch.ones(4, 8)[:, ::2])


def test_more_threads_than_it_has_memory_for_leave_torchs_own(openblas, monkeypatch):
    import torch

    from training.fast_cpu import products

    monkeypatch.setattr(torch, "get_num_threads", lambda: openblas.MOST_THREADS + 1)
    assert products.OPENBLAS not in products.others()
    assert products.named("openblas") is products.TORCH


def test_a_numpy_with_another_library_leaves_torchs_own(openblas, monkeypatch):
    from training.fast_cpu import products

    monkeypatch.setattr(openblas, "found", lambda: None)
    assert products.OPENBLAS not in products.others()


def test_the_library_of_the_pinned_numpy_is_found():
    import numpy

    from training.fast_cpu import openblas

    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    if sys.platform != "linux" or "openblas" not in blas["name"]:
        pytest.skip("NumPy has another library here")
    assert openblas.found() is not None
