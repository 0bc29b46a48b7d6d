"""What only the encoder or PEFT can refuse: exit code 2 before training, and no failed run."""

from __future__ import annotations

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import Trainer

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.records.run_folder import run_dir
from lora2.run.methods import check_model, prepare
from lora2.run.model import encoder_config, random_encoder
from lora2.sweep.worker import Order, carry_out, train
from tests.faults import bad_words_by_hand as by_hand
from tests.faults import refusals
from tests.faults.bad_words import base

FEW_ROWS = ("data.train_rows=88", "data.holdout=40")


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained"))


def encoder(config: RunConfig, device: str = "meta"):
    with torch.device(device):
        shape = encoder_config(config.backbone)
        return random_encoder(shape, TASKS[config.task].num_labels)


@pytest.mark.parametrize("wrong", by_hand.LOADED, ids=str)
def test_what_the_encoder_does_not_have_is_named(wrong):
    config = resolve(list(wrong.words)).config
    with pytest.raises(ConfigError) as refusal:
        check_model(encoder(config), config, tokens=512)
    assert refusals.fault(wrong, 2, str(refusal.value), 0) is None


@pytest.mark.parametrize("wrong", [by_hand.LOADED[0], *by_hand.PEFT], ids=str)
def test_a_refused_run_ends_with_2_untrained_and_leaves_no_folder(wrong, tmp_path, capsys):
    words = [*wrong.words, *FEW_ROWS, f"results.dir={tmp_path}"]
    code = refusals.fresh("run_glue").main(words)
    assert refusals.fault(wrong, code, capsys.readouterr().err, 0) is None
    assert not list(tmp_path.glob("runs/*"))
    assert not run_dir(resolve(words).config).exists()


def test_a_worker_says_what_was_refused(tmp_path):
    words = [*base("peft"), "method.args.rr=8", f"results.dir={tmp_path}"]
    outcome = carry_out(Order(resolve(words).config), train, lambda *_: None)
    assert outcome.state == "failed"
    assert outcome.message.startswith("method.args.rr = 8: unknown to LORA; did you mean r?")


@pytest.mark.parametrize("kind", sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_type_of_peft_is_built_or_refused_and_draws_no_number(kind):
    config = resolve([*base("peft"), f"method.type={kind}"]).config
    torch.manual_seed(0)
    model = encoder(config, "cpu")
    try:
        prepare(model, config, 100)
    except ConfigError as refusal:
        assert len(refusal.problems) == 1 and "\n" not in str(refusal.problems[0])


def test_the_probe_changes_no_random_number():
    config = resolve([*base("peft"), "method.type=LORA", "method.args.init_lora_weights=true"])
    drawn = []
    for device in ("meta", "cpu"):  # on the first nothing is passed through
        model = encoder(config.config, device)
        torch.manual_seed(0)
        prepare(model, config.config, 100)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
