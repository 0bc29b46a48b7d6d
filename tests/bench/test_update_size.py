from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LilyConfig,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from lora2 import Lora2Config, LoraXsConfig, SoraConfig, create_lora2_optimizer
from lora2.bench.update_size import UpdateSizes, update_sizes
from lora2.tables import update_size as update_table
from lora2.tuners.base import train_biases

TARGETS = ["query", "value", "intermediate.dense"]
LR = 1e-3


def encoder(width: int = 32, dropout: float = 0.0) -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=20,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return RobertaForSequenceClassification(config)


def adapted(
    config, width: int = 32, dropout: float = 0.0, task_type: str | None = "SEQ_CLS"
) -> nn.Module:
    config.task_type, config.target_modules = task_type, set(TARGETS)
    return get_peft_model(encoder(width, dropout), config)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.sum(1) % 2}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)


def measured(model: nn.Module, steps: int = 1, **settings) -> UpdateSizes:
    return update_sizes(model, adamw(model), [batch()], steps, **settings)


def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight and bias of the model that the adapters make, its head left out."""
    whole = copy.deepcopy(model).merge_and_unload() if hasattr(model, "peft_config") else model
    return {
        name: p.detach().double().clone()
        for name, p in whole.named_parameters()
        if "classifier" not in name
    }


def by_hand(model: nn.Module, steps: int) -> float:
    """||dW||_F over all that is merged, from a loop written out."""
    model = copy.deepcopy(model).train()
    optimizer, before = adamw(model), merged(model)
    for _ in range(steps):
        model(**batch()).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = merged(model)
    return math.hypot(*(float((after[name] - before[name]).norm()) for name in before))


@pytest.mark.parametrize("r", [1, 8])
def test_lora_takes_the_step_of_its_closed_form(r):
    width = 192  # the closed form is an expectation over A
    found = measured(adapted(LoraConfig(r=r, lora_alpha=3 * r), width))
    assert len(found.updates) == 6
    for one in found.updates:
        d_out = 2 * width if "intermediate" in one.name else width
        assert one.lora == pytest.approx(3 * LR * math.sqrt(r * d_out / 3))
        assert one.factor == pytest.approx(1, rel=0.25 if r == 1 else 0.15)
    assert found.total.lora == pytest.approx(3 * LR * math.sqrt(r * 8 * width / 3))
    assert found.total.factor == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("width", [64, 192])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_orthogonal_with_auto_steps_as_far_as_lora(width, k):
    model = adapted(Lora2Config(k=k, lora_alpha=24, init_weights="orthogonal"), width)
    optimizer = create_lora2_optimizer(model, torch.optim.AdamW, lr=LR)
    total = update_sizes(model, optimizer, [batch()], 1).total
    assert total.lora == pytest.approx(3 * LR * math.sqrt(k * 8 * width / 3))
    assert 1 / 1.5 < total.factor < 1.5


def test_the_published_start_is_small_and_near_eps():
    found = measured(adapted(Lora2Config(k=1)))
    assert found.total.factor > 1000
    assert found.near_eps and all("lora2_lambda" in name for name in found.near_eps)
    assert found.gradients[found.near_eps[0]] < 100 * found.eps == 1e-6


def test_what_does_not_move_is_said_not_to():
    model = adapted(LoraConfig(r=4))
    for name, p in model.named_parameters():
        if "lora_A" in name:
            nn.init.zeros_(p)  # B is zero too: neither ever gets a gradient
    found = measured(model, steps=3)
    assert found.total.first == found.total.last == 0
    assert found.total.factor == math.inf
    assert found.near_eps == []
    assert "does not move" in update_table._line("lora", found, found.total)


METHODS = {
    "lora": lambda: LoraConfig(r=4),
    "dora": lambda: LoraConfig(r=4, use_dora=True),
    "lora, biases": lambda: LoraConfig(r=4, bias="lora_only"),
    "adalora": lambda: AdaLoraConfig(init_r=4, total_step=100),
    "sora": lambda: SoraConfig(r=4, sparse_lambda=0),
    "lora_xs": lambda: LoraXsConfig(r=4),
    "lora2": lambda: Lora2Config(r=4, k=2, init_weights=False),
    "ia3": lambda: IA3Config(feedforward_modules=[]),
    "vera": lambda: VeraConfig(r=16),
    "oft": lambda: OFTConfig(oft_block_size=8),
    "ln_tuning": lambda: LNTuningConfig(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_as_large_as_what_is_merged(method):
    torch.manual_seed(1)
    model = adapted(METHODS[method](), task_type=None)  # PEFT cannot merge all of them with a head
    found = measured(model, steps=4)
    assert found.total.first == pytest.approx(by_hand(model, 1), rel=2e-3)
    assert found.total.last == pytest.approx(by_hand(model, 4), rel=2e-3)


def test_what_is_trained_itself():
    model = encoder()
    found = {one.name: one for one in measured(model, head=["classifier"]).updates}
    assert not any("classifier" in name for name in found)
    output = "roberta.encoder.layer.1.output.dense"
    weight, bias = found[f"{output}.weight"], found[f"{output}.bias"]
    assert weight.first == pytest.approx(LR * math.sqrt(64 * 32), rel=0.05)
    assert weight.lora == pytest.approx(2 * LR * math.sqrt(8 * 32 / 3))
    assert bias.first > 0 and math.isnan(bias.lora)
    train_biases(model, ["classifier"])
    total = measured(model, head=["classifier"]).total
    assert total.first > 0 and math.isnan(total.lora) and math.isnan(total.factor)


def test_model_and_optimizer_are_as_before():
    model = adapted(Lora2Config(init_weights=False, target_r=2, total_step=50, tfinal=9), 32, 0.1)
    optimizer = adamw(model)
    model(**batch()).loss.backward()
    optimizer.step()
    model.base_model.model.roberta.pooler = None
    model.base_model.model.roberta.encoder.layer[0].eval()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    tuner = model.base_model
    first = update_sizes(model, optimizer, [batch()], 5, driver=tuner, total_step=50)
    assert first.total.last > 0
    assert same(before, (model.state_dict(), optimizer.state_dict()))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert update_sizes(model, optimizer, [batch()], 5, driver=tuner, total_step=50) == first


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_the_driver_sees_every_step():
    class Driver:
        seen: list = []  # noqa: RUF012

        def prepare_training(self, total: int) -> None:
            self.seen.append(("of", total))

        def before_optimizer_step(self, step: int) -> None:
            self.seen.append(step)

    measured(adapted(LoraConfig(r=4)), steps=3, driver=Driver(), total_step=50)
    assert Driver.seen == [("of", 50), 1, 2, 3]


def test_what_is_no_change_of_a_weight_is_refused_by_name():
    soft = PromptTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=32, num_layers=2, num_attention_heads=2
    )
    with pytest.raises(TypeError, match="PROMPT_TUNING changes no weight"):
        measured(get_peft_model(encoder(), soft))
    with pytest.raises(TypeError, match=r"query: .*lily.* is not linear"):
        measured(adapted(LilyConfig()))
    model = get_peft_model(encoder(), LoraConfig(target_modules=["word_embeddings"]))
    with pytest.raises(TypeError, match=r"word_embeddings: .* on Embedding: only"):
        measured(model)


def test_the_table_has_every_row_and_a_method_every_weight(capsys, monkeypatch):
    monkeypatch.setattr(update_table, "STEPS", 1)
    words = ["task=rte", "backbone=embedded", "train.batch_size=4"]
    assert update_table.show(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line[:32].strip() for line in lines[1:]]
    assert len(rows) == 13 and rows[0] == "full" and rows[-1] == "lora2-k8, orthogonal"
    assert update_table.show([*words, "method=lora_xs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) > 1 and lines[-1].startswith("in all") and "query" in lines[0]
