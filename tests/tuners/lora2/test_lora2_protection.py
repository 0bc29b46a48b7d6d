"""What was pruned stays pruned, whoever trains the adapter and however it got there."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from peft import PeftModel

from lora2 import kept_ranks
from tests.tuners.lora2.lora2_models import adapt, build, optimizer_of, train
from tests.tuners.lora2.test_lora2_training import SCHEDULE, step_once


def undriven(model: PeftModel, steps: int = 6) -> None:
    """Train with a new optimiser, and without calling the allocator."""
    optimizer = optimizer_of(model)
    for _ in range(steps):
        step_once(model)
        optimizer.step()
        optimizer.zero_grad()


def acting(model: PeftModel, adapter: str) -> int:
    """Return how many singular values are not zero."""
    layers = model.base_model.adapted_layers(adapter).values()
    return sum(int((layer.lora2_lambda[adapter] != 0).sum()) for layer in layers)


@pytest.fixture
def pruned() -> PeftModel:
    """A model after a whole training: 10 matrices, 1 singular value each."""
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 14)
    assert acting(model, "default") == 10
    return model


def test_trained_on_without_the_allocator(pruned, recwarn):
    undriven(pruned)
    assert acting(pruned, "default") == sum(map(sum, kept_ranks(pruned).values())) == 10
    assert not [w for w in recwarn if "allocator" in str(w.message)]


def test_saving_what_regrew_in_compiled_passes_warns(pruned, tmp_path, monkeypatch, recwarn):
    """A compiled forward pass is not watched."""
    pruned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=True).train()
    loaded.save_pretrained(tmp_path)
    assert not [w for w in recwarn if "allocator" in str(w.message)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    undriven(loaded, 2)
    monkeypatch.undo()
    assert acting(loaded, "default") > 10
    with pytest.warns(UserWarning, match="the allocator is not called"):
        loaded.save_pretrained(tmp_path)


def test_another_adapter_is_watched_and_the_first_stays_pruned(pruned):
    pruned.add_adapter("other", pruned.peft_config["default"])
    pruned.set_adapter("other")
    with pytest.warns(UserWarning, match="the allocator is not called, so target_r=1"):
        undriven(pruned)
    pruned.base_model.prepare_training(14)
    train(pruned, optimizer_of(pruned), 1, 14)
    assert acting(pruned, "other") == 10
    for name in ("default", "other"):
        pruned.set_adapter(name)
        undriven(pruned)
        assert acting(pruned, name) == 10


def test_a_pruned_adapter_after_one_that_nobody_pruned(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    model = adapt("roberta", **SCHEDULE)
    with pytest.warns(UserWarning, match="the allocator is not called"):
        undriven(model)
    model.load_adapter(tmp_path, "loaded", is_trainable=True)
    model.set_adapter("loaded")
    undriven(model)
    assert acting(model, "loaded") == 10


def test_loaded_for_inference_and_then_chosen_for_training(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    losses = {}
    for trainable in (True, False):
        model = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=trainable)
        model.set_adapter("default")  # as with PEFT's LoRA, its parameters are trained from here
        undriven(model)
        assert acting(model, "default") == 10
        losses[trainable] = [p.sum().item() for p in model.parameters() if p.requires_grad]
    assert losses[True] == losses[False]  # the penalty included


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy(pruned, tmp_path, way, loaded):
    if loaded:
        pruned.save_pretrained(tmp_path)
        pruned = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=True)
        undriven(pruned, 2)
    if way == "deepcopy":
        twin = copy.deepcopy(pruned)
    else:
        torch.save(pruned, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    undriven(twin)
    assert acting(twin, "default") == acting(pruned, "default") == 10
