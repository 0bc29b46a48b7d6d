"""The counters count what they should, on examples small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora2.bench.counters import _waits, counting, peak_bytes

MIB = 2**18  # float32 numbers in a MiB


def test_views_are_no_kernels_and_backward_passes_count():
    weight = torch.ones(2, 3, requires_grad=True)
    x = torch.ones(4, 2)
    with counting() as counts:
        y = x @ weight  # mm
        loss = y.view(-1)[:5].sum()  # sum; slices and views are free
        loss.backward()
    forward = ["aten::mm", "aten::sum"]
    assert counts.kernels[:2] == forward
    backward = counts.kernels[2:]
    assert "aten::mm" in backward  # x^T @ dy
    assert not {"aten::view", "aten::slice", "aten::t", "aten::expand"} & set(backward)
    assert counts.syncs == []
    before = list(counts.kernels)
    x + 1
    assert counts.kernels == before  # counted inside the block only


@pytest.mark.parametrize(
    ("read", "syncs"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x[0] > 0), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.numpy(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.clone().index_put_((x > 0,), torch.ones(3)), 1),
        (lambda x: x.clone().masked_fill_(x > 0, 2.0), 0),
        (lambda x: torch.where(x > 0, x, 0.0), 0),
        (lambda x: x[torch.tensor([0, 2])], 0),
        (lambda x: x.argsort(descending=True, stable=True), 0),
        (lambda x: x.double().float(), 0),
        (lambda x: [x.sum().item(), x.tolist(), x.cumsum(0)], 2),
    ],
)
def test_reading_values_is_a_synchronisation(read, syncs):
    x = torch.ones(3)
    with counting() as counts:
        read(x)
    assert len(counts.syncs) == syncs, counts


def test_a_copy_between_devices_waits_unless_told_not_to():
    host, other = torch.empty(2), torch.empty(2, device="meta")
    assert _waits("aten::_to_copy", (other,), {}, host, "cuda")
    assert _waits("aten::copy_", (other, host), {}, other, "cuda")
    assert not _waits("aten::_to_copy", (other,), {"non_blocking": True}, host, "cuda")
    assert not _waits("aten::copy_", (other, host, True), {}, other, "cuda")
    assert not _waits("aten::_to_copy", (host,), {"dtype": torch.half}, host, "cuda")
    assert not _waits("aten::_local_scalar_dense", (host,), {}, 1.0, "cuda")  # a host's counter


def test_host_tensors_are_free_where_a_gpu_computes():
    with counting("cuda") as counts:
        torch.ones(3).tolist()
        torch.ones(3).sum().item()
    assert counts.syncs == []


def test_an_error_ends_the_counting():
    with pytest.raises(RuntimeError, match="planted"), counting() as counts:
        raise RuntimeError("planted")
    torch.ones(2)
    assert counts.kernels == []


def test_peak_memory_is_the_most_alive_at_once():
    def action():
        a = torch.zeros(MIB)  # 1
        b = a + 1  # 2
        c = b.view(2, -1)  # no memory of its own
        del a  # 1
        d = torch.cat([c, c])  # two more: 3
        del b, c  # 2
        return d + 1  # 4

    assert peak_bytes(action, "cpu") == 4 * 2**20


def test_what_a_backward_pass_needs_stays_alive():
    weight = nn.Parameter(torch.ones(MIB))

    def action():
        y = weight
        for _ in range(10):
            y = y.sin()  # keeps its input
        y.sum().backward()
        weight.grad = None

    # Ten sines, and at least one gradient on the way back.
    assert 11 <= peak_bytes(action, "cpu") / 2**20 < 14
    with torch.no_grad():
        assert peak_bytes(lambda: weight.sin().sin().sin(), "cpu") / 2**20 == 2
