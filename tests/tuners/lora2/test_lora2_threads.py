from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from lora2.tuners.lora2 import Lora2Linear
from tests.tuners.lora2.lora2_models import adapt, batch, cached_pairs, randomize


def meet(layer, together):
    """Have the threads that call ``layer`` wait for each other there."""

    def wait(*_):
        together.wait()

    layer.register_forward_pre_hook(wait)


def test_two_threads_take_gradients_of_one_model_at_once():
    """Both are in mid-pass together, so that what one was handed is there when the other reads."""
    model = randomize(adapt("bert", dtype=torch.float64)).eval()
    factors = [p for n, p in model.named_parameters() if "lora2_" in n]
    wanted = [torch.autograd.grad(model(**batch(seed)).loss, factors) for seed in (1, 2)]
    together = threading.Barrier(2, timeout=60)
    layers = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    for layer in (layers[0], layers[6]):
        meet(layer, together)

    def gradients_of(seed):
        return torch.autograd.grad(model(**batch(seed)).loss, factors)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(gradients_of, (1, 2)))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not any(cached_pairs(layer) for layer in layers)


def test_a_thread_may_serve_while_another_trains():
    model = randomize(adapt("bert", dtype=torch.float64)).eval()
    factors = [p for n, p in model.named_parameters() if "lora2_" in n]
    wanted = torch.autograd.grad(model(**batch(1)).loss, factors), model(**batch(2)).logits
    together = threading.Barrier(2, timeout=60)
    layer = next(m for m in model.modules() if isinstance(m, Lora2Linear))
    meet(layer, together)

    def trained():
        return torch.autograd.grad(model(**batch(1)).loss, factors)

    def served():
        with torch.no_grad():
            return model(**batch(2)).logits

    with ThreadPoolExecutor(2) as pool:
        found = [one.result() for one in (pool.submit(trained), pool.submit(served))]
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], wanted[1].detach(), rtol=1e-12, atol=1e-12)
