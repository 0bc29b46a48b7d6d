"""The tuner's own term under any loss, adapters by add_adapter, and final ranks, in a Trainer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lora2 import Lora2Callback, Lora2Config, kept_ranks
from tests.test_callbacks import STEPS, build, examples, make_trainer, survivors, weights_of


def cross_entropy(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels)


@pytest.mark.parametrize("way", ["own", "function", "smoothed"])
def test_the_regulariser_acts_whatever_the_loss_is(tmp_path, way, recwarn):
    """Nothing is clipped: the penalty that the callback gives comes after the clipping."""
    settings = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.5}
    trained = {}
    for name, weight in (("with", 2.0), ("without", 0.0)):
        model = build(target_r=None, orth_reg_weight=weight, lora_dropout=0.0)
        more = {"label_smoothing_factor": 0.1} if way == "smoothed" else {}
        trainer = make_trainer(model, tmp_path, Lora2Callback(), **settings, **more)
        trainer.compute_loss_func = cross_entropy if way == "function" else None
        trainer.train()
        trained[name] = weights_of(model)
    assert (trained["with"] - trained["without"]).abs().max() > 0.01
    if way == "function":
        model = build(target_r=None, orth_reg_weight=2.0, lora_dropout=0.0)
        make_trainer(model, tmp_path, Lora2Callback(), **settings).train()
        torch.testing.assert_close(weights_of(model), trained["with"], rtol=1e-4, atol=1e-6)
    assert not [w for w in recwarn if "part of no loss" in str(w.message)]


def test_under_accumulation_the_regulariser_acts_once_a_step(tmp_path):
    trained = []
    for parts in (1, 4):
        model = build(target_r=None, orth_reg_weight=2.0, lora_dropout=0.0).double()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer = make_trainer(
            model, tmp_path, Lora2Callback(), max_grad_norm=0.0, optim="sgd", learning_rate=0.1,
            max_steps=3, gradient_accumulation_steps=parts, per_device_train_batch_size=4 // parts,
        )  # fmt: skip
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch, parts=parts: (
            cross_entropy(outputs, labels) / parts
        )
        trainer.train()
        trained.append(weights_of(model))
    torch.testing.assert_close(*trained, rtol=1e-9, atol=1e-12)


def test_with_a_loss_scaler_the_penalty_comes_in_its_own_scale():
    """As fp16 has it where nothing is clipped: the gradients are still scaled when it comes."""
    model = build(target_r=None, orth_reg_weight=2.0).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wrapped = SimpleNamespace(scaler=scaler, optimizer=optimizer)
    penalty = model.base_model._penalty(
        model.base_model._adapters["default"], model.peft_config["default"]
    )
    named = {n: p for n, p in model.named_parameters() if "lora2_u" in n}
    wanted = dict(zip(named, torch.autograd.grad(penalty, [*named.values()]), strict=True))
    inputs = {"input_ids": examples()[0]["input_ids"][None]}
    scaler.scale(0.0 * model(**inputs).logits.sum()).backward()
    context = (None, SimpleNamespace(global_step=0), None)
    for _ in range(2):  # a second time it is unscaled already, and the penalty is there
        Lora2Callback().on_pre_optimizer_step(*context, model=model, optimizer=wrapped)
        model.base_model._term.reached = True
    torch.testing.assert_close({n: p.grad for n, p in named.items()}, wanted)
    scaler.step(optimizer)


class Holder(nn.Module):
    """A model that keeps a transformers model inside, as sentence-transformers does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([inner])

    def forward(self, **inputs):
        return self.parts[0](**inputs)


class Logits(nn.Module):
    """Returns no loss, though it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        return self.head(x), labels


def test_logits_are_not_taken_for_a_loss():
    model = get_peft_model(Logits(), Lora2Config(target_modules=["head"], orth_reg_weight=2.0))
    x = torch.ones(2, 4)
    assert torch.equal(model.train()(x, labels=x)[0], model.eval()(x, labels=x)[0])


@pytest.mark.parametrize("inside", [True, False])
def test_an_adapter_by_transformers_add_adapter_is_driven(tmp_path, inside):
    inner = build().unload()
    config = build().peft_config["default"]
    inner.add_adapter(config)
    model = Holder(inner) if inside else inner
    make_trainer(model, tmp_path, Lora2Callback(), remove_unused_columns=False).train()
    layers = [m for m in inner.modules() if hasattr(m, "lora2_mask")]
    assert sum(int(layer.lora2_mask["default"].sum()) for layer in layers) == len(layers) == 6
    assert sum(int((layer.lora2_lambda["default"] != 0).sum()) for layer in layers) == 6
    assert sum(map(sum, kept_ranks(model).values())) == 6


def test_a_finished_run_goes_on_with_its_final_ranks(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": STEPS}
    first = build()
    make_trainer(first, tmp_path, Lora2Callback(), **saving).train()
    more = build()
    trainer = make_trainer(more, tmp_path, Lora2Callback(), **saving, max_steps=2 * STEPS)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
    assert trainer.state.global_step == 2 * STEPS
    assert more.base_model.kept_ranks() == first.base_model.kept_ranks()
    assert survivors(more) == 6 and not torch.equal(weights_of(more), weights_of(first))
