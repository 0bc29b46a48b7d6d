from __future__ import annotations

import itertools

import pytest
import torch

from lora2.tuners.lora2.config import ORTHOGONALITY
from lora2.tuners.lora2.stacks import Factors, _Gram, by_shape, stack_groups, stacked_penalty

SETTINGS = [pairs for pairs in ORTHOGONALITY if pairs != "none"]


def random_factors(k, r, shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    u = [draw(d_in, k) for d_in, _ in shapes]
    v = [draw(k, r) for _ in shapes]
    U = [draw(r, k) for _ in shapes]
    V = [draw(k, d_out) for _, d_out in shapes]
    return u, v, U, V


def orthogonality_penalty(u, v, U, V, pairs="uv+UV+PQ", squared=False):
    groups = by_shape(u, V)
    lam = [one.new_empty(0) for one in v]
    in_groups = [[part[at] for group in groups for at in group] for part in (u, v, lam, U, V)]
    stacks = stack_groups([len(group) for group in groups], Factors(*in_groups))
    return stacked_penalty(stacks, pairs=pairs, squared=squared)


def naive_penalty(u, v, U, V, pairs, squared):
    """Eq. 5 written out: matrix by matrix, with the full P and Q."""
    terms = []
    for u1, v1, U1, V1 in zip(u, v, U, V, strict=True):
        k, r = v1.shape
        P, Q = u1 @ v1, U1 @ V1
        if "uv" in pairs.split("+"):
            terms += [u1.T @ u1 - torch.eye(k), v1 @ v1.T - torch.eye(k)]
        if "UV" in pairs.split("+"):
            terms += [U1.T @ U1 - torch.eye(k), V1 @ V1.T - torch.eye(k)]
        if "PQ" in pairs.split("+"):
            terms += [P.T @ P - torch.eye(r), Q @ Q.T - torch.eye(r)]
    norms = [term.square().sum() if squared else term.square().sum().sqrt() for term in terms]
    return torch.stack(norms).mean()


@pytest.mark.parametrize("pairs", SETTINGS)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("k", "r"), [(1, 8), (3, 4), (4, 2)])
def test_batched_equals_the_loop_over_matrices(pairs, squared, k, r):
    shapes = [(7, 5), (5, 7), (7, 7), (9, 5), (5, 7)]
    batched, naive = random_factors(k, r, shapes), random_factors(k, r, shapes)
    ours = orthogonality_penalty(*batched, pairs=pairs, squared=squared)
    theirs = naive_penalty(*naive, pairs, squared)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    ours.backward()
    theirs.backward()
    for a, b in zip(itertools.chain(*batched), itertools.chain(*naive), strict=True):
        if b.grad is None:
            assert a.grad is None
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_every_pair_trains_its_own_factors_and_pq_trains_all():
    trained = {}
    for pairs in ("uv", "UV", "PQ"):
        factors = random_factors(2, 4, [(6, 5)])
        orthogonality_penalty(*factors, pairs=pairs).backward()
        trained[pairs] = [
            f[0].grad is not None and bool(f[0].grad.abs().min() > 0) for f in factors
        ]
    assert trained == {
        "uv": [True, True, False, False],
        "UV": [False, False, True, True],
        "PQ": [True, True, True, True],
    }


@pytest.mark.parametrize("k", [1, 3])
def test_orthonormal_factors_have_penalty_zero_and_no_nan(k):
    shapes = ((6, k), (k, 4), (4, k), (k, 5))
    u, v, U, V = ([torch.eye(*s).requires_grad_(), torch.eye(*s).requires_grad_()] for s in shapes)
    penalty = orthogonality_penalty(u, v, U, V, pairs="uv+UV")
    assert penalty == 0
    penalty.backward()
    assert all((factor.grad == 0).all() for factor in (*u, *v, *U, *V))


def test_the_floor_of_pq_is_the_missing_rank():
    u, v, U, V = ([torch.eye(*shape)] for shape in ((6, 2), (2, 8), (8, 2), (2, 5)))
    floor = orthogonality_penalty(u, v, U, V, pairs="PQ")
    torch.testing.assert_close(floor, torch.tensor(6.0).sqrt())  # sqrt(r - k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_penalty_is_float32_at_least_even_under_autocast(dtype):
    factors = random_factors(2, 4, [(64, 48), (48, 64)], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = orthogonality_penalty(*factors)
    assert penalty.dtype == torch.promote_types(dtype, torch.float32)
    exact = naive_penalty(*[[f.double() for f in group] for group in factors], "uv+UV+PQ", False)
    torch.testing.assert_close(penalty.double(), exact, rtol=1e-5, atol=1e-5)
    penalty.backward()
    assert factors[0][0].grad.dtype == dtype


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_the_gradient_of_a_gram_matrix_is_autograds(rows, inner):
    """x^T S x and x S x^T with symmetric S, against autograd on the same products, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    d = 5 if rows else 4
    root = torch.randn(3, d, d, generator=generator, dtype=torch.float64, requires_grad=True)
    given = [x, root] if inner else [x]

    def symmetric():
        return root + root.mT if inner else None

    assert torch.autograd.gradcheck(lambda *_: _Gram.apply(x, symmetric(), rows), given)
    tall = x.mT if rows else x  # (n, d, s)
    plain = tall.mT @ (symmetric() @ tall if inner else tall)
    gram = _Gram.apply(x, symmetric(), rows)
    torch.testing.assert_close(gram, plain, rtol=1e-14, atol=1e-14)
    weights = torch.randn(plain.shape, generator=generator, dtype=torch.float64)  # not symmetric
    ours, naive = (torch.autograd.grad((g * weights).sum(), given) for g in (gram, plain))
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused_rather_than_wrong():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    gram = _Gram.apply(x, None, False)
    (first,) = torch.autograd.grad(gram.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
