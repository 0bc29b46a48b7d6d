"""SoRA in training: the loss term, who moves the gates, resuming, and what fails loudly."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lora2.bench.counters import counting
from lora2.callbacks import Lora2Callback
from lora2.tuners.sora import SoraConfig

LABELS = torch.tensor([0, 1, 0])


def tokens() -> torch.Tensor:
    return torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))


def sora(dropout: float = 0.0, layers: int = 2, **changes) -> PeftModel:
    torch.manual_seed(0)
    base = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    kwargs = {"r": 4, "target_modules": ["query", "value"], "gate_warmup_steps": 0} | changes
    return get_peft_model(base, SoraConfig(**({"task_type": "SEQ_CLS"} | kwargs)))


def gates(model: PeftModel) -> torch.Tensor:
    """All gates in one vector."""
    return torch.cat([p.detach() for n, p in model.named_parameters() if "sora_gate" in n])


def loss(model: PeftModel) -> torch.Tensor:
    return model(input_ids=tokens(), labels=LABELS).loss


def train(model: PeftModel, steps: range, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for step in steps:
        loss(model).backward()
        model.base_model.before_optimizer_step(step)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("return_dict", [True, False])
def test_the_l1_term_is_in_the_training_loss_only(return_dict):
    def value(model: PeftModel) -> torch.Tensor:
        out = model(input_ids=tokens(), labels=LABELS, return_dict=return_dict)
        return out.loss if return_dict else out[0]

    model = sora(sparse_lambda=2.0)
    term = 2.0 * gates(model).abs().mean()
    in_eval, in_training = value(model.eval()), value(model.train())
    torch.testing.assert_close(in_training - in_eval, term)
    in_training.backward()
    gradient = model.base_model.model.roberta.encoder.layer[0].attention.self.query.sora_gate
    # B is zero at the start, so that the L1 term is the gates' only gradient
    torch.testing.assert_close(
        gradient["default"].grad, 2.0 * gradient["default"].sign() / len(gates(model))
    )
    model.base_model.prepare_training(3)
    torch.testing.assert_close(value(model), in_training)
    logits = model(input_ids=tokens(), return_dict=return_dict)
    assert torch.equal(logits.logits if return_dict else logits[0], model(tokens()).logits)


def test_the_main_optimizer_never_moves_a_gate():
    model = sora(xi=1e-3, gate_lr=0.01)
    # every parameter, weight decay and momentum: a plain step would move them
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model.base_model.prepare_training(4)
    for step in range(1, 5):
        loss(model).backward()
        before = gates(model)
        model.base_model.before_optimizer_step(step)
        ours = gates(model)
        optimizer.step()
        assert torch.equal(gates(model), ours)
        assert not torch.equal(ours, before)
        optimizer.zero_grad()


class Watch(TrainerCallback):
    """Comes after Lora2Callback: the gates before and after the Trainer's optimizer."""

    def __init__(self) -> None:
        self.steps: list[bool] = []

    def on_pre_optimizer_step(self, *_, model, **__):
        self.before = gates(model)

    def on_optimizer_step(self, *_, model, **__):
        self.steps.append(torch.equal(gates(model), self.before))


def data() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 40, (12, 7), generator=draw)
    return [{"input_ids": row, "labels": row.sum() % 2} for row in ids]


def trainer(folder, model: PeftModel, *callbacks: TrainerCallback, **changes) -> Trainer:
    kwargs = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3} | changes
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=0.05,
        weight_decay=0.5,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **kwargs,
    )
    callbacks = (Lora2Callback(), *callbacks)
    rows = data()
    return Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks)
    )


def test_trainer_and_resuming_to_the_bit(tmp_path):
    settings = {"xi": 0.0, "xi_max": 0.2, "xi_stages": 3, "gate_lr": 0.05, "dropout": 0.1}
    whole, watch = sora(**settings), Watch()
    run = trainer(tmp_path / "whole", whole, watch)
    run.train()
    assert watch.steps == [True] * 6
    named = {name: p for name, p in whole.named_parameters() if "sora_" in name}
    for name, parameter in named.items():
        assert ("sora_gate" in name) != (parameter in run.optimizer.optimizer.state)
    kept = whole.base_model.kept_ranks()
    assert sum(map(sum, kept.values())) == int(gates(whole).count_nonzero())
    assert 0 < int(gates(whole).count_nonzero()) < gates(whole).numel()

    rest = sora(**settings)
    trainer(tmp_path / "whole", rest).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")
    )
    ours = dict(rest.named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in whole.named_parameters())
    assert rest.base_model.gate_optimizer.driven == 6


def test_gradient_accumulation_counts_optimizer_steps(tmp_path):
    model = sora(xi=1e-3)
    trainer(tmp_path, model, gradient_accumulation_steps=3, max_steps=2).train()
    assert model.base_model.gate_optimizer.driven == 2


def test_resuming_in_a_plain_loop_to_the_bit(tmp_path):
    settings = {"xi": 1e-2, "gate_lr": 0.05, "gate_weight_decay": 0.1}
    whole = sora(**settings)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    whole.base_model.prepare_training(6)
    train(whole, range(1, 4), optimizer)
    weights, moments = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    tuner = whole.base_model.training_state()
    train(whole, range(4, 7), optimizer)

    rest = sora(**settings)
    rest.load_state_dict(weights)
    optimizer = torch.optim.AdamW(rest.parameters(), lr=0.01)
    optimizer.load_state_dict(moments)
    rest.base_model.prepare_training(6)
    rest.base_model.load_training_state(tuner)
    train(rest, range(4, 7), optimizer)
    ours = rest.state_dict()
    assert all(torch.equal(t, ours[name]) for name, t in whole.state_dict().items())


def step_syncs(layers: int) -> list[str]:
    """Where a SoRA step waits for a value and the encoder alone does not."""
    model = sora(xi=1e-3, layers=layers)
    model.base_model.prepare_training(3)
    model.train()
    with counting() as own, model.disable_adapter():
        loss(model)
    with counting() as counts:
        loss(model).backward()
        model.base_model.before_optimizer_step(1)
    assert len(own.syncs) <= len(counts.syncs)
    return counts.syncs[len(own.syncs) :]


def test_a_step_waits_for_no_value_whatever_the_number_of_matrices():
    assert step_syncs(2) == step_syncs(9) == []


def test_a_best_checkpoint_from_before_the_pruning_is_reported(tmp_path):
    model = sora(xi=0.05, gate_lr=0.01)
    run = trainer(
        tmp_path, model, max_steps=15, save_steps=5, eval_strategy="steps", eval_steps=5,
        load_best_model_at_end=True, metric_for_best_model="good",
    )  # fmt: skip
    scores = iter([3.0, 2.0, 1.0])  # the first evaluation is the best
    run.compute_metrics = lambda _: {"good": next(scores)}
    with pytest.warns(UserWarning, match="loaded after training keep .* last step kept") as caught:
        run.train()
    assert not [one for one in caught if "larger xi" in str(one.message)]


def test_what_was_not_driven_fails():
    model = sora()
    tuner = model.base_model
    for call in (lambda: tuner.before_optimizer_step(1), tuner.finish_training):
        with pytest.raises(RuntimeError, match=r"prepare_training\(total_step\)"):
            call()
    tuner.prepare_training(3)
    with pytest.raises(RuntimeError, match="no proximal step"):
        tuner.finish_training()
    loss(model)
    with pytest.raises(RuntimeError, match="no gate has a gradient"):
        tuner.before_optimizer_step(1)
    train(model, range(1, 2), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="no gate is zero"):
        tuner.finish_training()


def test_gates_that_nobody_steps_are_reported_once(tmp_path, recwarn):
    model = sora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.warns(UserWarning, match="the gates are not stepped") as caught:
        for _ in range(6):
            loss(model.train()).backward()
            optimizer.step()
        model.save_pretrained(tmp_path)
    assert len([one for one in caught if "the gates are not stepped" in str(one.message)]) == 1
    driven = sora()
    driven.base_model.prepare_training(6)
    recwarn.clear()
    train(driven, range(1, 7), torch.optim.SGD(driven.parameters(), lr=0.1))
    driven.save_pretrained(tmp_path)
    assert not [one for one in recwarn if "the gates are not stepped" in str(one.message)]
    for adapter in ("default", "other"):  # trained on, or another adapter trained, undriven
        if adapter == "other":
            driven.add_adapter(adapter, SoraConfig(r=4, target_modules=["query"]))
            driven.set_adapter(adapter)
            driven.base_model._versions, driven.base_model._warned = [], False
        optimizer = torch.optim.SGD([p for p in driven.parameters() if p.requires_grad], lr=0.1)
        with pytest.warns(UserWarning, match="the gates are not stepped"):
            for _ in range(6):
                loss(driven).backward()
                optimizer.step()


def test_saving_trained_gates_warns_though_no_pass_was_watched(tmp_path, monkeypatch, recwarn):
    """A compiled forward pass is not watched."""
    model = sora()
    model.save_pretrained(tmp_path)  # untrained: nothing to say
    assert not [one for one in recwarn if "the gates are not stepped" in str(one.message)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for _ in range(2):
        loss(model.train()).backward()
        optimizer.step()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="the gates are not stepped") as caught:
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
    assert len([one for one in caught if "the gates are not stepped" in str(one.message)]) == 1


def test_a_loss_of_ones_own_adds_the_term():
    model = sora(sparse_lambda=3.0)
    model.base_model.prepare_training(1)
    logits = model(input_ids=tokens()).logits
    term = model.base_model.sparsity_loss()
    torch.testing.assert_close(term.detach(), 3.0 * gates(model).abs().mean())
    (logits.sum() + term).backward()
    model.base_model.before_optimizer_step(1)
    assert model.base_model.gate_optimizer.driven == 1


def test_what_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="fewer than the 3 stages"):
        sora(xi=0.0, xi_max=1.0, xi_stages=3).base_model.prepare_training(2)
    with pytest.raises(ValueError, match="fewer than"):
        sora().base_model.prepare_training(0)
    model = sora()
    model.base_model.prepare_training(3)
    for step in (0, 4):
        loss(model.train()).backward()
        with pytest.raises(ValueError, match=f"step {step} of 3: steps count optimiser steps"):
            model.base_model.before_optimizer_step(step)
    model = sora()
    model.save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(model.unload(), tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        frozen.base_model.prepare_training(3)
    half = RobertaForSequenceClassification(frozen.unload().config).to(torch.bfloat16)
    config = SoraConfig(target_modules=["query"])
    with pytest.raises(ValueError, match="autocast_adapter_dtype"):
        get_peft_model(half, config, autocast_adapter_dtype=False).base_model.prepare_training(3)
    two = sora(sparse_lambda=0.0, task_type=None)
    two.add_adapter("second", SoraConfig(target_modules=["query"]))
    two.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="one adapter at a time"):
        two.base_model.prepare_training(3)
