"""Where SoRA's term belongs to the loss, and that it acts once."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from lora2.tuners.sora import SoraConfig
from tests.tuners.sora.test_sora_training import LABELS, gates, sora, tokens


def term_in_loss(model: PeftModel, **inputs) -> float:
    """The loss in training mode less that in evaluation (no dropout in the model)."""
    values = [model.train(mode)(input_ids=tokens(), **inputs).loss for mode in (True, False)]
    return float((values[0] - values[1]).detach())


def test_the_term_is_left_out_where_it_has_no_place(tmp_path):
    model = sora(sparse_lambda=10.0)
    term = 10.0 * float(gates(model).abs().mean())
    assert term_in_loss(model, labels=LABELS) == pytest.approx(term, rel=1e-5)
    with model.disable_adapter():
        assert term_in_loss(model, labels=LABELS) == 0
    model.merge_adapter()
    assert term_in_loss(model, labels=LABELS) == 0
    model.unmerge_adapter()
    assert term_in_loss(model, labels=LABELS) == pytest.approx(term, rel=1e-5)
    model.save_pretrained(tmp_path)
    served = PeftModel.from_pretrained(model.unload(), tmp_path)
    assert term_in_loss(served, labels=LABELS) == 0


def test_the_term_is_in_the_loss_without_a_task_type_and_once():
    model = sora()
    term = 10.0 * float(gates(model).abs().mean())
    base, config = model.unload(), model.peft_config["default"]
    config.task_type = None
    again = get_peft_model(get_peft_model(base, config).get_base_model(), config)
    term = 10.0 * float(gates(again).abs().mean())
    assert term_in_loss(again, labels=LABELS) == pytest.approx(term, rel=1e-5)
    assert again.base_model.unload() is base
    assert term_in_loss(base, labels=LABELS) == 0


def test_added_by_transformers_the_chosen_adapters_gates_count():
    base = sora().unload()
    for name, weight in (("first", 1.0), ("second", 100.0)):
        base.add_adapter(SoraConfig(r=4, target_modules=["query"], sparse_lambda=weight), name)
    base.set_adapter("first")
    assert 0 < term_in_loss(base, labels=LABELS) < 5
    base.set_adapter("second")
    assert term_in_loss(base, labels=LABELS) > 20


def test_a_step_of_micro_batches_has_the_term_once():
    """Of a causal model, that is told the labels of all micro-batches (as the Trainer counts)."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    config = SoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    ids = tokens()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    half = term_in_loss(model, labels=ids, num_items_in_batch=torch.tensor(2 * 3 * 7))
    assert half == pytest.approx(0.5 * 10.0 * float(gates(model).abs().mean()), rel=1e-5)


@pytest.mark.parametrize("added", [True, False])
def test_the_term_acts_whatever_the_loss_is_and_once(added):
    models = [sora(sparse_lambda=3.0, gate_lr=0.1) for _ in range(2)]
    for model, within in zip(models, (True, added), strict=True):
        model.base_model.prepare_training(1)
        own = model.train()(input_ids=tokens()).logits.square().mean()
        (own + model.base_model.sparsity_loss() if within else own).backward()
        model.base_model.before_optimizer_step(1)
    torch.testing.assert_close(*map(gates, models))
