"""Any PEFT tuner that allocates is driven, and what a run cannot give is refused."""

from __future__ import annotations

import pandas as pd
import pytest
from peft import AdamssModel

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.run.methods import peft_config
from tests.conftest import TINY

PEFT = ("task=rte", "method=peft", "data.train_rows=88")
ADAMSS = (
    "method.type=ADAMSS", "method.args.r=16", "method.args.num_subspaces=4",
    "method.args.use_asa=true", "method.args.asa_target_subspaces=10",
    "method.args.init_warmup=1", "method.args.final_warmup=4", "method.args.mask_interval=2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "ranks", "kept", "parameters"),
    [
        # query, key, value, both dense and the attention's: 12 matrices, n (d_in + d_out + 1)
        (
            ("method.type=ADALORA", "method.args.init_r=4", "method.args.tfinal=2"),
            48,
            24,
            lambda n: n[64, 64] * 129 + n[64, 384] * 449 + n[384, 64] * 449,
        ),
        # query and value: 4 matrices, k (d_in + d_out) + n (2 k + 1) with k = 1
        (
            ("method.type=LORA2", "method.args.r=4", "method.args.tfinal=2", "method.args.k=1"),
            16,
            8,
            lambda n: 4 * 128 + n[64, 64] * 3,
        ),
    ],
    ids=["ADALORA", "LORA2"],
)
def test_a_type_that_allocates_is_driven_and_counts_what_it_kept(
    do_run, words, ranks, kept, parameters
):
    folder = do_run(*PEFT, *words, "method.args.target_r=2")
    frame = pd.read_csv(folder / "ranks.csv")
    assert (len(frame), frame["kept"].sum()) == (ranks, kept)
    row = pd.read_csv(folder / "metrics.csv").iloc[0]
    names = {"intermediate.dense": (64, 384), "output.dense": (384, 64)}
    sizes = frame["module"].map(
        lambda m: (64, 64) if "attention" in m else names[".".join(m.split(".")[-2:])]
    )
    n = frame.groupby(sizes)["kept"].sum().reindex([(64, 64), (64, 384), (384, 64)]).fillna(0)
    assert row["params_kept"] == parameters(dict(n.items())) < row["params_adapter"]


def test_a_tuner_without_a_state_is_driven_and_writes_no_checkpoint(do_run, monkeypatch):
    steps, allocate = [], AdamssModel.update_and_allocate

    def recorded(self, step):
        steps.append(
            (step, next(p.grad is not None for p in self.parameters() if p.grad is not None))
        )
        allocate(self, step)
        frozen = [n for n, p in self.named_parameters() if "adamss_A" in n and not p.requires_grad]
        assert step != 4 or frozen

    monkeypatch.setattr(AdamssModel, "update_and_allocate", recorded)
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", lambda *_: pytest.fail("saved"))
    do_run(*PEFT, *ADAMSS, "train.save_steps=3")
    assert steps == [(step, True) for step in range(1, 7)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("type=LORA", "args.init_lora_weights=eva"), "EVA starts from data"),
        (("type=LORA", "args.init_lora_weights=lora_ga"), "LoRA-GA starts from gradients"),
        (("type=LORA", "args.kasa_config={beta: 0.1}"), "loss term would not be added"),
        (("type=ADALORA", "args.total_step=6"), "set automatically"),
        (("type=ADALORA", "args.r=6"), "use init_r and target_r"),
        (("type=ADALORA", "args.init_r=4"), "at most init_r, which is 4"),
        (("type=ADALORA", "args.tfinal=7"), "budgeting phase"),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, tuple) else "",
)
def test_arguments_that_need_more_than_optimiser_steps_are_refused(words, message):
    config = resolve([*TINY, *PEFT, *(f"method.{word}" for word in words)]).config
    with pytest.raises(ConfigError, match=message):
        peft_config(config, 6)
