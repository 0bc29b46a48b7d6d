from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lora2.bench.step import Stepper
from lora2.config.load import resolve
from lora2.run.methods import prepare
from lora2.run.trainer import build_optimizer
from lora2.tables import update_size

WORDS = ("task=rte", "backbone=embedded", "train.batch_size=4")


@pytest.fixture(scope="module")
def encoder():
    return update_size._encoder(resolve([*WORDS, "method=full"]).config)


@pytest.fixture(autouse=True)
def three_steps(monkeypatch):
    monkeypatch.setattr(update_size, "STEPS", 3)


def measured(encoder, *words):
    lr, updates, near = update_size.measure(resolve([*WORDS, *words]), *encoder)
    return lr, update_size._total(updates), near


def maps(model) -> dict[str, torch.Tensor]:
    """Return the matrix that each adapted layer multiplies its input by, or each trained weight."""
    layers = {n: copy.deepcopy(m) for n, m in model.named_modules() if hasattr(m, "base_layer")}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.double().eval()
            rows = torch.eye(layer.in_features + 1, layer.in_features, dtype=torch.float64)
            out = layer(rows)
            layers[name] = out[:-1] - out[-1]  # (d_in, d_out)
    return layers or {
        name: p.detach().double().clone()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith(("pooler", "classifier"))
    }


@pytest.mark.parametrize(
    "words",
    [
        ["method=full"],
        ["method=bitfit"],
        ["method=lora"],
        ["method=adalora"],
        ["method=sora"],
        ["method=lora_xs"],
        ["method=lora2", "method.k=2"],
        ["method=peft", "method.type=VERA", "method.args.r=16"],
        ["method=peft", "method.type=OFT", "method.args.oft_block_size=8"],
    ],
    ids=lambda words: words[min(1, len(words) - 1)],
)
def test_a_step_is_as_large_as_the_change_of_the_maps(encoder, words):
    _, total, _ = measured(encoder, *words)
    resolved, (base, data) = resolve([*WORDS, *words]), encoder
    torch.manual_seed(resolved.config.seed)
    model, driver = prepare(copy.deepcopy(base), resolved.config, resolved.steps)
    config, optimizer = resolved.config, build_optimizer(model, resolved.config)
    stepper = Stepper(model, driver, optimizer, config.train, resolved.steps)
    before, sizes = maps(model), []
    if words == ["method=full"]:
        before = {n: p for n, p in before.items() if p.ndim == 2 and "embedding" not in n}
    torch.manual_seed(0)
    for batch in data:
        stepper.step(batch)
        after = maps(model)
        sizes.append(math.hypot(*(float((after[n] - p).norm()) for n, p in before.items())))
    assert total.first == pytest.approx(sizes[0], rel=2e-3)
    assert total.last == pytest.approx(sizes[2], rel=2e-3)


@pytest.mark.parametrize(("method", "r"), [("lora", 1), ("lora", 8), ("lora2", 2)])
def test_lora_takes_the_step_of_its_closed_form_and_lora2_nearly(encoder, method, r):
    words = ["method.k=2"] if method == "lora2" else [f"method.r={r}"]
    config = resolve([*WORDS, f"method={method}", *words]).config
    lr, total, _ = measured(encoder, f"method={method}", *words)
    shape = encoder[0].config
    outputs = shape.num_hidden_layers * (5 * shape.hidden_size + shape.intermediate_size)
    scale = config.method.lora_alpha / config.method.r
    assert total.lora == pytest.approx(scale * lr * math.sqrt(r * outputs / 3))
    assert total.first == pytest.approx(total.lora, rel=0.1 if method == "lora" else 0.5)


def test_the_published_start_is_small_and_near_eps(encoder):
    words = ["method=lora2", "method.k=1", "method.init_weights=null"]
    _, total, near = measured(encoder, *words)
    assert total.lora > 30 * total.first > 0
    assert near and all("lora2_lambda" in name for name in near)


def test_a_bias_has_no_lora_and_a_weight_that_does_not_move_no_rate(encoder):
    lr, total, _ = measured(encoder, "method=bitfit")
    assert math.isnan(total.lora) and update_size._line("b", lr, total, []).split()[-1] == "-"
    still = update_size.Update("in all", 0.0, 0.0, 1.0)
    assert "does not move" in update_size._line("lora", lr, still, [])


def test_a_model_and_a_loop_of_ones_own_are_measured():
    torch.manual_seed(0)
    x, y = torch.randn(16, 8), torch.randn(16, 6)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def steps():
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            yield

    (update,), near = update_size.updates(model, optimizer, steps())
    layer = model.base_model.model[0]
    assert update.name == "base_model.model.0" and near == []
    assert update.last == pytest.approx(float(layer.get_delta_weight("default").norm()))
    assert 0.5 < update.first / update.lora < 2 and update.first < update.last


def test_the_table_has_every_row(capsys, monkeypatch):
    update = update_size.Update("in all", 0.5, 1.0, 2.0)
    starts = []

    def measure(resolved, *_):
        starts.append(getattr(resolved.config.method, "init_weights", "no LoRA2"))
        return 0.1, [update], ["a.query.bias"]

    monkeypatch.setattr(update_size, "measure", measure)
    assert update_size.show([*WORDS, "protocol=equal"]) == 0
    assert [start for start in starts if start != "no LoRA2"] == [None, None, *["orthogonal"] * 2]
    lines = capsys.readouterr().out.splitlines()
    rows = [line[:32].strip() for line in lines[1:]]
    assert len(rows) == 13 and rows[0] == "full" and rows[-1] == "lora2-k8, orthogonal"
    columns = ["full", "0.1", "5.00e-01", "1.00e+00", "2.00e+00", "0.4", "(x4)", "1", "query.bias"]
    assert lines[1].split() == columns


def test_a_typed_method_has_every_weight(capsys):
    assert update_size.show([*WORDS, "method=lora_xs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) > 1 and lines[-1].startswith("in all") and "query" in lines[0]
