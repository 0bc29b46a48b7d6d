"""A learning rate of its own for lambda: the optimiser's groups, in a Trainer and in the driver."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora2 import Lora2Callback, Lora2Config, create_lora2_optimizer
from lora2.config.load import resolve
from lora2.run.methods import prepare
from lora2.run.model import encoder_config, random_encoder
from lora2.run.trainer import build_optimizer, parameter_groups
from tests.tiny_trainer import STEPS, StopAt, build, examples, make_trainer

ADAMW = torch.optim.AdamW
BETWEEN = 1.284478  # for k = 2, r = 4: see first_step_ratio
D_OUT = {"query": 8, "value": 8, "dense": 12}  # of the tiny model's adapted matrices


def settings_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple]:
    """Parameter name -> (rate, weight decay); every trainable parameter is there exactly once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for name, _ in found) == sorted(trained)
    return dict(found)


def d_out(name: str) -> int:
    return D_OUT[name.split(".lora2_")[0].split(".")[-1]]


def with_norms() -> PeftModel:
    """A model that trains its norms, too."""
    model = build()
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("ratio", ["auto", 5.0])
def test_lambda_alone_has_another_rate_and_biases_and_norms_have_no_decay(ratio):
    model = with_norms()
    optimizer = create_lora2_optimizer(
        model, ADAMW, lr=1e-3, lambda_lr_ratio=ratio, weight_decay=0.1, betas=(0.8, 0.9)
    )
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    kinds = set()
    for name, (rate, decay) in settings_of(model, optimizer).items():
        if "lora2_lambda" in name:
            expected = BETWEEN * math.sqrt(d_out(name) / 3) if ratio == "auto" else ratio
            assert rate == pytest.approx(1e-3 * expected) and decay == 0.1
            kinds.add(f"lambda {d_out(name)}")
        else:
            plain = name.endswith("bias") or "LayerNorm" in name
            assert (rate, decay) == (1e-3, 0.0 if plain else 0.1), name
            kinds.add("plain" if plain else "decayed")
    assert kinds == {"lambda 8", "lambda 12", "plain", "decayed"}


def test_of_two_adapters_only_the_trained_one_is_optimised():
    model = build()
    other = Lora2Config(r=4, k=1, target_modules=["key"], task_type="SEQ_CLS")
    model.add_adapter("other", other)
    for name in ("default", "other"):
        model.set_adapter(name)
        found = settings_of(model, create_lora2_optimizer(model, ADAMW, lr=1e-3))
        fast = {parameter for parameter, (rate, _) in found.items() if rate > 1e-3}
        assert fast and all(parameter.endswith(f"lora2_lambda.{name}") for parameter in fast)
        assert {parameter.split(".")[-1] for parameter in found if "lora2_" in parameter} == {name}


def three_steps(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    for step in range(1, 4):
        torch.manual_seed(step)
        model.train()(**torch.utils.data.default_collate(examples())).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.named_parameters())


def test_a_ratio_of_one_is_the_plain_optimiser_to_the_bit():
    plain, one, auto = with_norms(), with_norms(), with_norms()
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    expected = three_steps(plain, ADAMW(trained, lr=1e-2, weight_decay=0.0))
    settings = {"lr": 1e-2, "weight_decay": 0.0}
    same = three_steps(one, create_lora2_optimizer(one, ADAMW, lambda_lr_ratio=1, **settings))
    assert all(torch.equal(same[name], expected[name]) for name in expected)
    other = three_steps(auto, create_lora2_optimizer(auto, ADAMW, **settings))
    assert not all(torch.equal(other[name], expected[name]) for name in expected)


@pytest.mark.parametrize("ratio", [0, -2.0, float("nan")])
def test_a_ratio_that_is_not_positive_is_refused(ratio):
    with pytest.raises(ValueError, match=r"lambda_lr_ratio=.* 'auto' or a number > 0"):
        create_lora2_optimizer(build(), ADAMW, lr=1e-3, lambda_lr_ratio=ratio)


def test_a_model_whose_lora2_is_not_trained_is_refused():
    plain = build().unload()
    frozen = build()
    frozen.requires_grad_(False)
    lora = get_peft_model(build().unload(), LoraConfig(target_modules=["query"]))
    for model in (plain, frozen, lora):
        with pytest.raises(ValueError, match="no LoRA2 adapter in training: call get_peft_model"):
            create_lora2_optimizer(model, ADAMW, lr=1e-3)


def test_a_trainer_takes_it_and_resumes_to_the_bit(tmp_path):
    def train(folder, *callbacks, resume=None, **settings):
        model = build(init_weights="orthogonal")
        optimizer = create_lora2_optimizer(model, ADAMW, lr=2e-2)
        trainer = make_trainer(
            model, tmp_path / folder, Lora2Callback(), *callbacks, optimizer=optimizer, **settings
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer.optimizer.param_groups

    saving = {"save_strategy": "steps", "save_steps": 5}
    whole, _ = train("whole")
    with pytest.warns(UserWarning, match=f"stopped at step 6 of {STEPS}"):
        _, groups = train("run", StopAt(6), **saving)
    # Half of the linear schedule is left, and every group has kept its ratio.
    ratios = sorted(group["lr"] / (2e-2 * (1 - 6 / STEPS)) for group in groups)
    assert ratios == pytest.approx([1, 1, *(BETWEEN * math.sqrt(d / 3) for d in (8, 12))])
    checkpoint = str(tmp_path / "run" / "checkpoint-5")
    resumed, _ = train("run", resume=checkpoint, **saving)
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert sum(map(sum, resumed.base_model.kept_ranks().values())) == 6


def driven(*words: str):
    """A model of the driver's, its optimiser, and the groups without a rate for lambda."""
    run = resolve(["task=rte", "method=lora2", "backbone=embedded", *words]).config
    with torch.device("meta"):
        model, _ = prepare(random_encoder(encoder_config(run.backbone)), run, 100)
    plain = list(parameter_groups(model, run))
    return model, build_optimizer(model, run), plain


def test_without_a_ratio_the_drivers_groups_are_as_they_were():
    model, optimizer, plain = driven("method.lambda_lr_ratio=null")
    for ours, theirs in zip(optimizer.param_groups, plain, strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]]
        assert (ours["lr"], ours["weight_decay"]) == (theirs["lr"], theirs["weight_decay"])
    settings_of(model, optimizer)


@pytest.mark.parametrize("ratio", ["auto", "3"])
def test_the_driver_gives_lambda_the_same_rates(ratio):
    model, optimizer, plain = driven(f"method.lambda_lr_ratio={ratio}")
    found, before = settings_of(model, optimizer), settings_of(model, ADAMW(plain))
    widths = {n: m.out_features for n, m in model.named_modules() if hasattr(m, "lora2_lambda")}
    assert len(set(widths.values())) == 2 and len({rate for rate, _ in before.values()}) == 2
    for name, (rate, decay) in before.items():
        if "lora2_lambda" in name:
            width = widths[name.split(".lora2_")[0]]
            rate *= math.sqrt(width / 3) if ratio == "auto" else 3
        assert found[name] == (pytest.approx(rate), decay)
    assert sum("lora2_lambda" in name for name in found) == len(widths) == 12
