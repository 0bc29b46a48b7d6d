"""DeBERTa by disentangled-flash: the same numbers as eager attention, adapters in the graph.

On a CPU the package's own plain torch attention stands in for its Triton kernels; around it, all is
as on a GPU. The kernels themselves are tested where there is a GPU (mark gpu).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModel, DebertaV2Config, set_seed

from lora2.embedded import encoder_path
from lora2.experiment import flash
from lora2.experiment.backbone import load_backbone
from lora2.experiment.config import resolve
from lora2.experiment.methods import prepare
from lora2.experiment.problems import ConfigError
from lora2.glue.tasks import TASKS

package = pytest.importorskip("disentangled_flash")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CPU = torch.device("cpu")
SHAPE = DebertaV2Config(
    hidden_size=128, num_attention_heads=2, intermediate_size=64, max_position_embeddings=512,
    position_buckets=32, relative_attention=True, norm_rel_ebd="layer_norm", share_att_key=True,
    pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
)  # fmt: skip


def words(method: str) -> list[str]:
    return ["task=rte", f"method={method}", "backbone=embedded", "seed=1"]


def train_keys(**changes):
    return replace(resolve(words("full")).config.train, **changes)


def prepared(method: str, fast: bool) -> torch.nn.Module:
    """A method on the embedded encoder in float64, its adapters away from zero."""
    config = resolve(words(method)).config
    set_seed(1)
    _, base = load_backbone(config.backbone, TASKS["rte"], 0.0)
    if fast:
        with torch.random.fork_rng():
            flash.install(base, config.train, backend="torch")
    set_seed(2)
    model, _ = prepare(base, config, 10**6)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model.double().train()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, 11:] = 0
    found = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 1]))
    found.loss.backward()
    named = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"logits": found.logits.detach(), **named}


@pytest.mark.parametrize("method", ["lora2", "lora", "adalora", "sora", "lora_xs", "full"])
def test_outputs_and_every_gradient_are_those_of_eager_attention(method):
    eager, fast = (gradients(prepared(method, fast)) for fast in (False, True))
    assert eager.keys() == fast.keys()
    for name, wanted in eager.items():
        assert fast[name] is not None, f"no gradient reaches {name}"
        # Eager attention's scale is a float32 root, whatever the precision: 6e-8 of each score.
        assert (fast[name] - wanted).norm() <= 1e-6 * wanted.norm(), name
    adapters = [n for n in eager if "query_proj" in n and eager[n].abs().max() > 1e-6]
    assert adapters, "the test would see nothing"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_check_at_the_start_passes_what_agrees(precision):
    found = flash.disagreement(SHAPE, train_keys(precision=precision), CPU, "torch")
    assert 0 < found < flash.TOLERANCE[precision] / 2


def test_the_check_at_the_start_finds_adapters_that_are_passed_by(monkeypatch):
    own = package._torch.TorchTrainingDisentangledSelfAttention._project_qkv
    monkeypatch.setattr(flash, "project", own)
    assert flash.disagreement(SHAPE, train_keys(), CPU, "torch") > 0.1


def test_the_check_at_the_start_finds_a_term_that_is_wrong(monkeypatch):
    real = package._torch._torch_disentangled_attention

    def without_p2c(query, key, value, plan, *args, **kwargs):
        return real(query, key, value, plan._replace(pos_query=None), *args, **kwargs)

    monkeypatch.setattr(package._torch, "_torch_disentangled_attention", without_p2c)
    assert flash.disagreement(SHAPE, train_keys(), CPU, "torch") > 0.01


def test_the_check_at_the_start_finds_gradients_that_are_no_numbers(monkeypatch):
    def broken(attention, states):
        states.register_hook(lambda gradient: gradient * torch.nan)
        return real(attention, states)

    real = flash.project
    monkeypatch.setattr(flash, "project", broken)
    assert not flash.disagreement(SHAPE, train_keys(), CPU, "torch") <= 1e9


@pytest.mark.parametrize("outcome", [1e-3, float("nan"), RuntimeError("no kernel image")])
def test_kernels_that_do_not_agree_are_refused_and_the_model_left_alone(monkeypatch, outcome):
    def check(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(flash, "disagreement", check)
    _, model = load_backbone(resolve(words("full")).config.backbone, TASKS["rte"], None)
    before = type(model.deberta.encoder)
    with pytest.raises(ConfigError, match=r"'flash': null: .*(differ from eager|fail on this GPU)"):
        flash.use_flash(model, train_keys())
    assert type(model.deberta.encoder) is before


def test_random_numbers_after_it_are_those_without_it(monkeypatch):
    monkeypatch.setattr(flash, "disagreement", lambda *_: 0.0)
    real = flash.install
    monkeypatch.setattr(flash, "install", lambda model, train: real(model, train, "torch"))
    _, model = load_backbone(resolve(words("full")).config.backbone, TASKS["rte"], None)
    set_seed(5)
    wanted = torch.rand(3)
    set_seed(5)
    flash.use_flash(model, train_keys())
    assert isinstance(model.deberta.encoder, package.DebertaV2OptimizedEncoder)
    assert torch.equal(torch.rand(3), wanted)


def test_heads_that_the_kernels_do_not_take_are_refused():
    _, model = load_backbone(resolve(words("full")).config.backbone, TASKS["rte"], None)
    with pytest.raises(ConfigError, match="heads of 32, 64 or 128, this encoder's have 16"):
        flash.install(model, train_keys())


def test_another_encoder_is_refused():
    config = AutoConfig.from_pretrained(encoder_path("embedded-roberta"))
    other = AutoModel.from_config(config)  # a bare PreTrainedModel spoils its class for later ones
    with pytest.raises(ConfigError, match="this encoder is roberta"):
        flash.install(other, train_keys())


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_kernels_agree_with_eager_attention(precision):
    base = DebertaV2Config(**{**SHAPE.to_dict(), "hidden_size": 768, "num_attention_heads": 12,
                              "position_buckets": 256})  # fmt: skip
    device = torch.device("cuda")
    for shape in (SHAPE, base):
        found = flash.disagreement(shape, train_keys(precision=precision), device)
        assert found <= flash.TOLERANCE[precision]
