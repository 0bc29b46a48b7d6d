"""TRL on a tiny decoder: the example of docs/library.md as it stands there, and DPO."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lora2 import Lora2Callback, Lora2Config, kept_ranks
from tests.ecosystem.tiny import save_tokenizer

pytestmark = pytest.mark.ecosystem
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    return tmp_path


def sft(folder, **changes):
    """Run the page's block, and return its trainer."""
    (code,) = re.findall(r"```python\n(import torch\nfrom datasets.*?)```", PAGE, re.DOTALL)
    code = code.replace("max_steps", "use_cpu=True, bf16=False, report_to='none', max_steps")
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    names = {
        "MODEL": str(folder / "base"),
        "OUTPUT": str(folder / "out"),
        "STEPS": 6,
        "ROWS": [{"text": " ".join("abcdefgh"[i % 8 :])} for i in range(16)],
    }
    exec(compile(code, "docs/library.md", "exec"), names)
    return names["trainer"]


def test_sft_as_on_the_page(folder):
    trainer = sft(folder)
    assert trainer.state.global_step == 6
    layers = trainer.model.base_model.adapted_layers("default").values()
    assert len(layers) == 2 * 7 and all(layer.lora2_lambda["default"].any() for layer in layers)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    exported = PeftModel.from_pretrained(base, folder / "out" / "lora").eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    trained = trainer.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(exported(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-4)


def test_the_penalty_acts_though_trl_drops_the_models_loss(folder):
    weights = []
    for weight in ("0.0", "100.0"):
        changes = {'init_weights="orthogonal"': f"orth_reg_weight={weight}", "1e-3": "1e-2"}
        model = sft(folder, **changes).model
        weights.append(next(p for n, p in model.named_parameters() if "lora2_u" in n).detach())
    assert not torch.allclose(*weights, atol=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_dpo_with_the_base_or_a_fresh_adapter_as_reference(folder, wrapped):
    from trl import DPOConfig, DPOTrainer

    def train(weight):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        config = Lora2Config(
            r=4, k=2, target_r=1, tfinal=2, target_modules=["q_proj", "down_proj"],
            orth_reg_weight=weight, init_std=0.3, task_type="CAUSAL_LM",
        )  # fmt: skip
        row = {"prompt": "a b", "chosen": "c d e", "rejected": "f g h"}
        torch.manual_seed(0)
        trainer = DPOTrainer(
            get_peft_model(model, config) if wrapped else model,
            args=DPOConfig(
                output_dir=str(folder / "dpo"),
                max_steps=6,
                logging_steps=1,
                learning_rate=0.1,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                per_device_train_batch_size=2,
            ),
            train_dataset=Dataset.from_list([row] * 12),
            processing_class=AutoTokenizer.from_pretrained(folder / "base"),
            peft_config=None if wrapped else config,
            callbacks=[Lora2Callback()],
        )
        trainer.train()
        return trainer

    trainer = train(0.0)
    ranks = kept_ranks(trainer.model)
    assert sum(map(sum, ranks.values())) == len(ranks) == 4
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora2_u.default"
    weights = [t.model.get_parameter(name) for t in (trainer, train(100.0))]
    assert not torch.allclose(*weights, atol=1e-3)
