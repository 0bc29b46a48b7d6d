from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertForMaskedLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from lora2 import Lora2Config
from lora2.tuners.loss_term import hands_on_keywords, loss_weight
from tests.tuners.lora2.lora2_models import adapt, batch


def share_of(model, inputs):
    return loss_weight(model, inputs) if hands_on_keywords(model) else None


def causal():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    adapter = Lora2Config(
        r=4, k=2, target_modules=["q_proj", "up_proj"], init_weights=False, orth_reg_weight=0.5
    )
    return get_peft_model(LlamaForCausalLM(config).double(), adapter)


def rows(count=8, length=10):
    """Every row with another number of labels that count."""
    ids = torch.randint(4, 60, (count, length), generator=torch.Generator().manual_seed(0))
    labels = [torch.where(torch.arange(length) < 3 + i % 6, row, -100) for i, row in enumerate(ids)]
    return [{"input_ids": row, "labels": one} for row, one in zip(ids, labels, strict=True)]


def trained(folder, accumulation):
    model = causal().double()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    trainer = Trainer(model, arguments, train_dataset=rows())
    assert trainer.model_accepts_loss_kwargs
    trainer.train()
    return {name: p.detach() for name, p in model.named_parameters() if "lora2_" in name}


def test_accumulated_micro_batches_regularise_as_much_as_one_batch(tmp_path):
    whole, parts = (trained(tmp_path / str(n), n) for n in (1, 4))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)  # the loss is in float32
    start = causal().state_dict()
    assert all(not torch.equal(one, start[name]) for name, one in whole.items())


def test_the_shares_of_a_steps_micro_batches_sum_to_one():
    model = causal().get_base_model()
    labels = torch.tensor([[5, 6, -100], [7, 8, 9]])
    assert share_of(model, {"labels": labels}) is None
    inputs = {"labels": labels, "num_items_in_batch": torch.tensor(6)}
    assert share_of(model, inputs) == pytest.approx(3 / 6)  # not 5, not the first tokens
    shifted = {**inputs, "shift_labels": torch.tensor([[6, -100, -100], [8, -100, -100]])}
    assert share_of(model, shifted) == pytest.approx(2 / 6)
    model.config.is_encoder_decoder = True  # the Trainer then counts the first tokens too
    assert share_of(model, inputs) == pytest.approx(5 / 6)


@pytest.mark.parametrize("kind", [ModernBertForMaskedLM, BertForMaskedLM])
def test_a_masked_model_that_divides_by_the_number_gives_the_penalty_its_share(kind):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    config = kind.config_class(intermediate_size=24, pad_token_id=0, **sizes, **tokens)
    labels = torch.tensor([[5, -100, 7]])
    inputs = {"labels": labels, "num_items_in_batch": torch.tensor(8)}
    model = kind(config).eval()
    part, whole = (model(labels.abs() % 40, **one).loss for one in (inputs, {"labels": labels}))
    share = share_of(model, inputs)
    assert share == 2 / 8 if kind is ModernBertForMaskedLM else share is None
    torch.testing.assert_close(part, whole * (1 if share is None else share))


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_a_causal_model_is_known_whatever_its_name(kind):
    model = kind(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    inputs = {"labels": torch.tensor([[5, 6, 7]]), "num_items_in_batch": torch.tensor(4)}
    share = share_of(model, inputs)  # of 3 labels: the Trainer does not know this class's loss
    assert share == 0.75 if kind is GPT2LMHeadModel else share is None


@pytest.mark.parametrize("classes", [3, 1])
def test_an_image_classifiers_penalty_has_the_loss_s_share(classes):
    """The cross-entropy is divided by the Trainer's number; a regression's mean is not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    config = ViTConfig(intermediate_size=24, patch_size=4, num_labels=classes, **sizes)
    settings = {"target_modules": "all-linear", "init_weights": False, "orth_reg_weight": 5.0}
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    model = get_peft_model(model, Lora2Config(r=4, k=2, **settings)).train()
    labels = torch.arange(8) % 3 if classes == 3 else torch.randn(8)
    inputs = {"pixel_values": torch.randn(8, 3, 8, 8), "labels": labels}
    whole = model(**inputs).loss
    parts = [{name: value[at : at + 2] for name, value in inputs.items()} for at in (0, 2, 4, 6)]
    told = sum(model(**part, num_items_in_batch=torch.tensor(8)).loss for part in parts)
    times = 1 if classes == 3 else 4  # as the loss itself
    torch.testing.assert_close(told, times * whole)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_model_that_ignores_the_number_has_task_and_penalty_multiplied_alike(accumulation):
    """As the Trainer's default does with a classifier: README says how to avoid it."""
    model = adapt("roberta", dtype=torch.float64)
    plain = model(**batch()).loss
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    told = model(**batch(), num_items_in_batch=torch.tensor(6 * accumulation)).loss
    torch.testing.assert_close(told - plain, model.base_model.regularization_loss())
