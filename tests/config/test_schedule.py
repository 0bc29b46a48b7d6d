"""Step counts fitted to a run's length: a schedule that fits its recipe fits any length it can."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from lora2.config.load import fit, total_steps
from lora2.glue.tasks import TASKS

ROWS = TASKS["rte"].rows["train"]


def recipe_of(published_steps, steps, tinit=0, tfinal=0, deltaT=1, warmup=0, eval_steps=1):
    method = {"tinit": tinit, "tfinal": tfinal, "deltaT": deltaT}
    train = {"max_steps": published_steps, "warmup_steps": warmup, "eval_steps": eval_steps}
    published = {"task": "rte", "method": method, "train": train}
    own = {"task": "rte", "method": dict(method), "train": {**train, "max_steps": steps}}
    return own, published


@st.composite
def recipes(draw):
    """A published schedule and a run of another length."""
    steps = draw(st.integers(3, 100_000))
    tinit = draw(st.integers(0, steps - 2))
    tfinal = draw(st.integers(0, steps - 2 - tinit))
    deltaT = draw(st.integers(1, steps - tinit - tfinal))
    warmup = draw(st.integers(0, steps - 1))
    eval_steps = draw(st.integers(1, steps))
    own = draw(st.integers(3, 200_000))
    return recipe_of(steps, own, tinit, tfinal, deltaT, warmup, eval_steps)


@given(recipes())
# A share of a whole number of steps that floating point puts just below it.
@example(recipe_of(3035, 51, deltaT=3035))
def test_a_fitted_schedule_keeps_its_shares_and_its_order(case):
    tree, published = case
    before = {**published["method"], **published["train"]}
    notes = fit(tree, published, set(), ROWS)
    after = {**tree["method"], **tree["train"]}
    steps, recipe = after["max_steps"], before["max_steps"]
    for key in ("tinit", "tfinal", "deltaT", "warmup_steps"):
        share = before[key] * steps // recipe
        assert (
            after[key] == before[key] == 0
            or after[key] == max(1, share)
            or (steps == recipe and after[key] == before[key])
        )
    if before["tinit"] + before["tfinal"] < recipe and steps >= recipe:
        assert after["tinit"] + after["tfinal"] < steps
    assert after["eval_steps"] <= before["eval_steps"]
    assert len(notes) == sum(after[k] != before[k] for k in after if k != "max_steps")


@given(recipes(), st.sampled_from(["method.tinit", "method.deltaT", "train.warmup_steps"]))
def test_what_was_typed_is_never_fitted(case, key):
    tree, published = case
    section, name = key.split(".")
    tree[section][name] = typed = published[section][name]
    fit(tree, published, {key}, ROWS)
    assert tree[section][name] == typed


@given(st.integers(1, 10**6), st.floats(0.01, 100), st.integers(1, 512))
def test_epochs_take_whole_batches_and_at_least_one_step(rows, epochs, batch):
    train = {"max_steps": None, "num_train_epochs": epochs, "batch_size": batch}
    steps = total_steps(train, rows)
    assert steps >= 1
    assert steps == max(1, math.ceil(epochs * math.ceil(rows / batch)))
    assert total_steps({**train, "max_steps": 7}, rows) == 7
