from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch._subclasses import FakeTensorMode
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lora2 import Lora2Config
from lora2.tuners.lora2 import Lora2Linear
from tests.tuners.lora2.lora2_models import HEADS, adapt, batch, build, logits, randomize

ARCHS = ["bert", "roberta", "deberta-v2", "gpt2"]
DEBERTA_ALL = [
    "query_proj",
    "key_proj",
    "value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
ROBERTA_ALL = ["query", "key", "value", *DEBERTA_ALL[3:]]


@pytest.fixture(scope="module")
def backbones():
    deberta = DebertaV2Config(
        vocab_size=128100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    )
    roberta = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        return {
            "deberta": DebertaV2ForSequenceClassification(deberta),
            "roberta": RobertaForSequenceClassification(roberta),
        }


@pytest.mark.parametrize(
    ("backbone", "targets", "k", "matrices", "count"),
    [
        ("deberta", DEBERTA_ALL, 1, 72, 167_616),
        ("deberta", DEBERTA_ALL, 8, 72, 1_336_896),
        ("deberta", DEBERTA_ALL[:2], 1, 24, 37_440),
        ("deberta", DEBERTA_ALL[:3], 1, 36, 56_160),
        ("roberta", ROBERTA_ALL, 1, 144, 445_824),
        ("roberta", ROBERTA_ALL, 8, 144, 3_558_528),
    ],
)
def test_the_parameter_counts_of_the_paper(backbones, backbone, targets, k, matrices, count):
    config = Lora2Config(r=8, k=k, target_modules=targets)
    model = get_peft_model(copy.deepcopy(backbones[backbone]), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == count
    assert len(trained) == 5 * matrices


@pytest.mark.parametrize("arch", ARCHS)
def test_the_start_changes_no_output(arch):
    assert torch.equal(logits(adapt(arch)), logits(build(arch)))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_gives_the_same_outputs_and_masks(arch, low_cpu_mem_usage, tmp_path):
    model = randomize(adapt(arch, modules_to_save=HEADS[arch]))
    with torch.no_grad():
        for index, layer in enumerate(model.base_model.adapted_layers("default").values()):
            layer.lora2_mask["default"][index % 4] = False
    expected, kept = logits(model), model.base_model.kept_ranks()
    config = model.peft_config["default"].to_dict()
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].to_dict() == config
    assert (tmp_path / "adapter_model.safetensors").is_file()
    loaded = PeftModel.from_pretrained(build(arch), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), expected)
    assert loaded.base_model.kept_ranks() == kept
    assert any(False in mask for mask in kept.values())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("with_head", [False, True])
def test_merge_and_unload_gives_a_plain_model(arch, with_head):
    settings = {"modules_to_save": HEADS[arch]} if with_head else {"task_type": None}
    model = randomize(adapt(arch, dtype=torch.float64, **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.01)
    expected = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is type(build(arch)) and not merged._forward_hooks
    assert not any(isinstance(m, Lora2Linear) for m in merged.modules())
    torch.testing.assert_close(logits(merged), expected, rtol=1e-10, atol=1e-10)
    assert (expected - logits(build(arch, dtype=torch.float64))).abs().max() > 1e-3


def test_unload_gives_the_base_model_back():
    model = randomize(adapt("roberta", task_type=None))
    assert torch.equal(logits(model.unload()), logits(build("roberta")))
    assert torch.equal(logits(model.unload()), logits(build("roberta")))


def test_merge_adapter_and_back():
    model = randomize(adapt("gpt2", dtype=torch.float64))
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)


def test_disabled_it_is_the_base_model():
    model = randomize(adapt("deberta-v2", task_type=None))
    adapted, base = logits(model), logits(build("deberta-v2"))
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), adapted) and not torch.equal(adapted, base)


def test_two_adapters_are_switched_trained_one_at_a_time_and_deleted(tmp_path):
    model = randomize(adapt("roberta", task_type=None))
    first = logits(model)
    other = Lora2Config(r=2, k=1, target_modules=["query", "output.dense"])
    model.add_adapter("other", other)
    randomize(model, "other", seed=8)
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(first, second)
    assert all(p.requires_grad == (".other" in n) for n, p in model.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("roberta"), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(loaded), first)
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), second)
    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    assert not any(
        ".default" in name for name in get_peft_model_state_dict(model, adapter_name="other")
    )


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_an_adapter_for_each_row_is_refused(task_type):
    model = adapt("roberta", task_type=task_type)
    with pytest.raises(ValueError, match=r"adapter_names=.*set_adapter"):
        model(**batch(rows=2), adapter_names=["default", "__base__"])


def test_two_trained_adapters_at_once_are_refused():
    model = adapt("roberta", task_type=None)
    model.add_adapter("other", Lora2Config(target_modules=["query"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"one adapter at a time.*\['default', 'other'\]"):
        model.base_model.prepare_training(10)


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_bf16(autocast_adapter_dtype):
    base = build("roberta", dtype=torch.bfloat16)
    config = Lora2Config(r=4, k=2, target_modules=["query", "value"], init_weights=False)
    model = get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype)
    expected = torch.float32 if autocast_adapter_dtype else torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {expected}
    model.train()
    output = model(**batch())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def penalty_in_loss(model, **inputs):
    """The loss in training mode minus that without the regulariser (no dropout in the model)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    torch.manual_seed(0)
    loss = model(**batch(), **inputs)[0]
    model.eval()
    return float(loss.detach() - model(**batch(), **inputs)[0].detach())


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
@pytest.mark.parametrize("return_dict", [True, False])
def test_the_regulariser_is_in_the_training_loss_and_not_in_the_evaluation_loss(
    task_type, return_dict
):
    model = adapt("roberta", task_type=task_type, dtype=torch.float64)
    plain = build("roberta", dtype=torch.float64)(**batch()).loss
    torch.testing.assert_close(model(**batch(), return_dict=return_dict)[0], plain)
    penalty = float(model.base_model.regularization_loss().detach())
    assert penalty > 0.01
    added = penalty_in_loss(model, return_dict=return_dict)
    assert added == pytest.approx(penalty, rel=1e-9)


def test_added_by_transformers_the_chosen_adapter_is_regularised():
    model = build("roberta", dtype=torch.float64)
    for name, weight in (("first", 0.1), ("second", 100.0)):
        config = Lora2Config(r=4, k=2, target_modules=["query"], orth_reg_weight=weight)
        model.add_adapter(config, name)
    model.set_adapter("first")
    u = model.roberta.encoder.layer[0].attention.self.query.lora2_u
    assert 0 < penalty_in_loss(model) < 1
    model.train()
    model(**batch()).loss.backward()
    assert u["first"].grad.abs().max() > 0 and u["second"].grad is None
    model.set_adapter("second")
    assert penalty_in_loss(model) > 10


def test_the_regulariser_is_left_out_where_it_has_no_place():
    model = adapt("roberta", dtype=torch.float64)
    weight = float(model.base_model.regularization_loss().detach())
    with model.disable_adapter():
        assert penalty_in_loss(model) == pytest.approx(0, abs=1e-12)
    model.merge_adapter()
    assert penalty_in_loss(model) == pytest.approx(0, abs=1e-12)
    model.unmerge_adapter()
    assert penalty_in_loss(model) == pytest.approx(weight)
    model.base_model.set_adapter("default", inference_mode=True)
    assert penalty_in_loss(model) == pytest.approx(0, abs=1e-12)
    none = adapt("roberta", dtype=torch.float64, orthogonality="none")
    assert penalty_in_loss(none) == 0 and none.base_model.regularization_loss() == 0


def test_the_regulariser_weighs_what_the_config_says():
    one = adapt("roberta", orth_reg_weight=1.0).base_model.regularization_loss()
    three = adapt("roberta", orth_reg_weight=3.0).base_model.regularization_loss()
    torch.testing.assert_close(three, 3 * one)


def test_factors_of_several_dtypes_are_regularised_in_the_widest():
    model = adapt("roberta", dtype=torch.float64)
    expected = model.base_model.regularization_loss()
    *_, last = model.base_model.adapted_layers("default").values()
    last.to(torch.float32)
    mixed = model.base_model.regularization_loss()
    torch.testing.assert_close(mixed, expected, rtol=1e-7, atol=0)
    mixed.backward()
    assert last.lora2_u["default"].grad.dtype == torch.float32


def test_a_model_split_over_devices_is_regularised_and_allocated():
    """Of fake tensors, which refuse operations across devices; meta: one that all machines have."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = get_peft_model(
            torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)),
            Lora2Config(r=4, k=2, target_modules=["0", "1"], target_r=1, total_step=5),
        )
        first, last = model.base_model.adapted_layers("default").values()
        for name in last.adapter_layer_names:
            factors = getattr(last, name)
            shape = factors["default"].shape
            factors["default"] = torch.nn.Parameter(torch.empty(shape, device="meta"))
        last.lora2_mask["default"] = torch.ones(4, dtype=torch.bool, device="meta")
        model.base_model.regularization_loss().backward()
        grads = [layer.lora2_u["default"].grad for layer in (first, last)]
        assert [grad.device.type for grad in grads] == ["cpu", "meta"]
        for layer in (first, last):
            layer.lora2_lambda["default"].grad = torch.zeros_like(layer.lora2_lambda["default"])
        model.base_model.update_and_allocate(1)
        assert last.lora2_mask["default"].device.type == "meta"


def test_wrapped_twice_or_copied_it_is_regularised_once():
    model = adapt("roberta", dtype=torch.float64, task_type=None)
    penalty = float(model.base_model.regularization_loss().detach())
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert penalty_in_loss(clone) == pytest.approx(penalty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = get_peft_model(clone.get_base_model(), clone.peft_config["default"])
    penalty = float(again.base_model.regularization_loss().detach())
    assert penalty_in_loss(again) == pytest.approx(penalty)


def test_fan_in_fan_out_is_set_from_the_layers():
    model = get_peft_model(build("gpt2"), Lora2Config(target_modules=["c_attn"]))
    assert model.peft_config["default"].fan_in_fan_out
    config = Lora2Config(target_modules=["query"], fan_in_fan_out=True)
    model = get_peft_model(build("bert"), config)
    assert not model.peft_config["default"].fan_in_fan_out


def test_known_models_need_no_target_modules():
    model = get_peft_model(build("roberta"), Lora2Config())
    assert {name.split(".")[-1] for name in model.base_model.kept_ranks()} == {"query", "value"}


def test_biases_are_trained_and_saved_when_asked(tmp_path):
    model = randomize(adapt("roberta", bias="lora2_only", task_type=None))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora2_" not in n}
    assert trained and all(name.endswith("base_layer.bias") for name in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in trained:
                p.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("roberta"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
