"""Reading many tensors at once from PyTorch's own structures."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

import polyopt as po
from polyopt.backend.host.array_table import ADDRESS, FLAGS, KIND, SAME, SHAPE, SIZE
from polyopt.testing import assert_same_bits

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
from polyopt_torch.cpu import array_table, memory  # noqa: E402


def odd() -> dict[str, Any]:
    """Tensors whose values are not, or not alone, what lies at their address."""
    return {
        "a negative view": torch.ones(3, dtype=torch.complex64).conj().imag,
        "sparse": torch.eye(3).to_sparse(),
        "without memory": torch.ones(3, device="meta"),
        "whole numbers": torch.ones(3, dtype=torch.int64),
        "16 bits": torch.ones(3, dtype=torch.bfloat16),
        "a copy to come": torch._lazy_clone(torch.ones(3)),
    }


def test_the_structures_are_those_that_are_described() -> None:
    assert array_table.direct() is not None
    assert array_table.count_changes() is not None


@pytest.mark.parametrize("name", odd())
def test_the_direct_reader_refuses(name: str) -> None:
    direct = array_table.direct()
    assert direct is not None
    assert direct.facts([[torch.ones(2), odd()[name]]]) is None


def test_both_readers_find_the_same() -> None:
    direct, exchanged = array_table.direct(), array_table.exchanged()
    assert direct is not None
    assert exchanged is not None
    many = [torch.ones(n, 2)[:, : 1 + n % 2] for n in range(1300)]  # of several blocks
    facts, expected = direct.facts([many, many[::-1]]), exchanged.facts([many, many[::-1]])
    assert facts is not None
    assert expected is not None
    assert facts.tolist() == expected.tolist()
    for k in (0, 700, 1299):
        row = facts[0, k]
        assert row[ADDRESS] == many[k].data_ptr() or k == 0
        assert row[SIZE] == many[k].numel()
        assert row[SHAPE] == k
        assert row[FLAGS] & 1 == many[k].is_contiguous()
    assert len(set(facts[0, :, KIND])) == 1
    watch = direct.watch(facts)
    assert watch([many, many[::-1]]) == SAME
    assert watch([many[::-1], many]) == 0


@pytest.mark.parametrize("known", [True, False])
def test_a_negative_view_is_read_as_its_values(known: bool) -> None:
    off = mock.patch.object(memory, "tensors", return_value=array_table.TensorSurvey(None))
    with mock.patch.object(memory, "count_changes", return_value=None) if known else off:
        optimizer = po.Optimizer(po.SGD(lr=1.0))
        p = {"w": torch.zeros(3)}
        state = optimizer.init(p)
        for _ in range(3):
            g = torch.full((3,), 2j, dtype=torch.complex64).conj().imag
            p, state = optimizer.step(p, {"w": g}, state, donate=True)
    assert p["w"].tolist() == [6.0, 6.0, 6.0]


def test_memory_that_is_shared_until_it_is_written_to_stays_the_others() -> None:
    optimizer = po.Optimizer(po.SGD(lr=1.0))
    mine = torch.ones(4)
    other = torch._lazy_clone(mine)
    p, state = {"w": other}, optimizer.init({"w": other})
    for _ in range(3):
        p, state = optimizer.step(p, {"w": torch.ones(4)}, state, donate=True)
    assert mine.tolist() == [1.0] * 4
    assert p["w"].tolist() == [-2.0] * 4


def test_autograd_notices_that_saved_values_have_changed() -> None:
    optimizer = po.Optimizer(po.Adam(lr=0.1))
    p = {"w": torch.nn.Parameter(torch.ones(4))}
    state = optimizer.init(p)
    for _ in range(3):
        loss = (p["w"] * p["w"]).sum()
        p, state = optimizer.step(p, {"w": torch.ones(4)}, state, donate=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_tensors_of_inference_mode_are_updated_too() -> None:
    optimizer = po.Optimizer(po.Adam(lr=0.1))
    results = []
    for mode in (True, False):
        with torch.inference_mode(mode):
            p = {"w": torch.linspace(0, 1, 5)}
            state = optimizer.init(p)
            for _ in range(3):
                p, state = optimizer.step(p, {"w": torch.ones(5)}, state, donate=True)
            results.append(p["w"].numpy().copy())
    assert_same_bits(*results)


def test_another_layout_means_no_direct_reader() -> None:
    caches = (array_table.layout, array_table.direct, array_table.tensors, array_table.count_changes)
    for kept in caches:
        kept.cache_clear()
    try:
        with mock.patch.object(array_table, "_words", side_effect=lambda where, count: [0] * count):
            assert array_table.layout() is None
            assert array_table.direct() is None
            assert array_table.count_changes() is None
            found = array_table.tensors()
        assert found is not None
        assert found._direct is None
        assert found.facts([[torch.ones(3)]]) is not None
    finally:
        for kept in caches:
            kept.cache_clear()
