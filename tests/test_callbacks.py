from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import TrainerCallback

import lora2
from lora2 import Lora2Callback
from lora2.callbacks import TUNER_STATE_NAME
from tests.tiny_trainer import STEPS, StopAt, build, examples, make_trainer


def survivors(model: PeftModel) -> int:
    return sum(map(sum, model.base_model.kept_ranks().values()))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trainer_prunes_to_the_target(tmp_path, accumulation):
    model = build()
    make_trainer(model, tmp_path, Lora2Callback(), gradient_accumulation_steps=accumulation).train()
    assert model.base_model.allocator.last_step == STEPS
    assert survivors(model) == len(model.base_model.kept_ranks()) == 6
    nonzero = [int((p != 0).sum()) for n, p in model.named_parameters() if "lora2_lambda" in n]
    assert sum(nonzero) == 6


def test_stop_and_resume_equals_the_uninterrupted_run_to_the_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5}
    whole = build()
    make_trainer(whole, tmp_path / "whole", Lora2Callback()).train()

    stopped = build()
    with pytest.warns(UserWarning, match=f"stopped at step 6 of {STEPS}"):
        make_trainer(stopped, tmp_path / "run", Lora2Callback(), StopAt(6), **saving).train()
    checkpoint = tmp_path / "run" / "checkpoint-5"
    assert (checkpoint / TUNER_STATE_NAME).is_file() and not list(checkpoint.glob("*.tmp"))

    resumed = build()
    trainer = make_trainer(resumed, tmp_path / "run", Lora2Callback(), **saving)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert whole.base_model.kept_ranks() == resumed.base_model.kept_ranks()

    elsewhere = shutil.copytree(checkpoint, tmp_path / "copy")
    moved = build()
    callback = Lora2Callback(resume_from_checkpoint=elsewhere)
    make_trainer(moved, tmp_path / "new", callback).train(resume_from_checkpoint=str(elsewhere))
    assert torch.equal(
        torch.cat([p.flatten() for p in moved.parameters()]),
        torch.cat([p.flatten() for p in whole.parameters()]),
    )

    (elsewhere / TUNER_STATE_NAME).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cannot resume: .*tuner_state.safetensors is missing"
    ):
        make_trainer(build(), tmp_path / "new", callback).train(
            resume_from_checkpoint=str(elsewhere)
        )


def weights_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora2_" in n])


def test_resuming_from_another_run_than_the_output_folders_takes_all_from_there(tmp_path):
    """Both folders have a checkpoint of that step; peft's LlamaFactory#2780."""
    saving = {"save_strategy": "steps", "save_steps": 5}
    for name, rate in (("a", 2e-2), ("b", 5e-2)):
        make_trainer(
            build(), tmp_path / name, Lora2Callback(), learning_rate=rate, **saving
        ).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-5")
    models = [build(), build()]
    for model, folder in zip(models, ("a", "b"), strict=True):
        trainer = make_trainer(model, tmp_path / folder, Lora2Callback(), **saving)
        trainer.train(resume_from_checkpoint=checkpoint)
    assert torch.equal(*map(weights_of, models))


def test_a_state_that_was_not_saved_with_the_weights_is_refused(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5}
    for name, rate in (("a", 2e-2), ("b", 5e-2)):
        make_trainer(
            build(), tmp_path / name, Lora2Callback(), learning_rate=rate, **saving
        ).train()
    callback = Lora2Callback(resume_from_checkpoint=tmp_path / "b" / "checkpoint-5")
    trainer = make_trainer(build(), tmp_path / "c", callback, **saving)
    with pytest.raises(ValueError, match="not saved with the weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert trainer.state.global_step == 5


def test_the_evaluation_loss_has_no_regulariser(tmp_path):
    losses = {}
    for weight in (0.0, 5.0):
        trainer = make_trainer(build(orth_reg_weight=weight), tmp_path, Lora2Callback())
        losses[weight] = trainer.evaluate()["eval_loss"]
    assert losses[0.0] == losses[5.0]


def test_total_step_of_the_config_must_be_the_trainers(tmp_path):
    with pytest.raises(ValueError, match="total_step=99, but this training has 12"):
        make_trainer(build(total_step=99), tmp_path, Lora2Callback()).train()
    make_trainer(build(total_step=STEPS), tmp_path, Lora2Callback()).train()


def test_a_schedule_longer_than_the_training_is_refused_before_the_first_step(tmp_path):
    trainer = make_trainer(build(tinit=9, tfinal=3), tmp_path, Lora2Callback())
    with pytest.raises(ValueError, match="leave no step for pruning in total_step=12"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_best_checkpoint_from_before_the_final_ranks_is_reported(tmp_path):
    model = build()
    trainer = make_trainer(
        model,
        tmp_path,
        Lora2Callback(),
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=4,
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="good",
    )
    scores = iter([3.0, 2.0, 1.0])  # the first evaluation, at step 4, is the best
    trainer.compute_metrics = lambda _: {"good": next(scores)}
    with pytest.warns(UserWarning, match="loaded after training keep .* last step kept 6"):
        trainer.train()
    assert 6 < survivors(model) < 24


class InSearch(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        state.is_hyper_param_search = True


def test_a_trial_of_a_search_writes_its_state_beside_its_own_checkpoint(tmp_path):
    """As with ``Trainer.hyperparameter_search``, which gives each trial a folder."""
    (tmp_path / "run-0" / "checkpoint-6").mkdir(parents=True)  # of an earlier trial
    saving = {"save_strategy": "steps", "save_steps": 6}
    trainer = make_trainer(build(), tmp_path, Lora2Callback(), InSearch(), **saving)
    trainer._get_output_dir = lambda trial: str(tmp_path / "run-1")
    trainer.train()
    assert (tmp_path / "run-1" / "checkpoint-6" / TUNER_STATE_NAME).is_file()
    assert not (tmp_path / "run-0" / "checkpoint-6" / TUNER_STATE_NAME).exists()


def test_without_pruning_no_state_is_written_and_resuming_works(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 6}
    make_trainer(build(target_r=None), tmp_path, Lora2Callback(), **saving).train()
    assert not (tmp_path / "checkpoint-6" / TUNER_STATE_NAME).exists()
    with warnings.catch_warnings(action="error", category=UserWarning):  # no ranks to be final
        make_trainer(build(target_r=None), tmp_path / "b", Lora2Callback(), StopAt(3)).train()
    resumed = make_trainer(build(target_r=None), tmp_path, Lora2Callback(), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == STEPS


def test_a_model_without_a_tuner_of_ours_is_named(tmp_path):
    plain = build().unload()
    with pytest.raises(TypeError, match="this RobertaForSequenceClassification has 0"):
        make_trainer(plain, tmp_path, Lora2Callback()).train()
    lora = get_peft_model(
        build().unload(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    )
    with pytest.warns(UserWarning, match="LoraModel needs no Lora2Callback"):
        make_trainer(lora, tmp_path, Lora2Callback(), max_steps=1).train()


def test_a_data_parallel_wrapper_is_seen_through(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = build(total_step=STEPS)
        wrapped = nn.parallel.DistributedDataParallel(model)
        trainer = make_trainer(model, tmp_path, Lora2Callback())
        state, callback = trainer.state, Lora2Callback()
        state.max_steps, state.global_step = STEPS, 0
        context = (trainer.args, state, trainer.control)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        inputs = torch.utils.data.default_collate(examples())
        callback.on_train_begin(*context, model=wrapped)
        for step in range(STEPS):
            wrapped(**inputs).loss.backward()
            state.global_step = step
            callback.on_pre_optimizer_step(*context, model=wrapped)
            optimizer.step()
            callback.on_optimizer_step(*context, model=wrapped)
            optimizer.zero_grad()
        state.global_step = STEPS
        callback.on_train_end(*context, model=wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert survivors(model) == 6


def test_the_hooks_are_called_in_order_with_optimiser_steps(tmp_path, monkeypatch):
    calls = []
    model = build(target_r=None)
    tuner = type(model.base_model)

    def record(name):
        def hook(self, *args):
            grads = [p.grad is not None for n, p in self.named_parameters() if "lora2_v" in n]
            calls.append((name, *args, all(grads)))
            return {"x": torch.ones(2)} if name == "training_state" else None

        return hook

    for name in ("before_optimizer_step", "after_optimizer_step", "training_state"):
        monkeypatch.setattr(tuner, name, record(name), raising=False)
    for name in ("prepare_training", "finish_training"):
        monkeypatch.setattr(tuner, name, record(name))
    make_trainer(
        model,
        tmp_path,
        Lora2Callback(),
        max_steps=2,
        gradient_accumulation_steps=2,
        save_steps=1,
        save_strategy="steps",
    ).train()
    assert calls == [
        ("prepare_training", 2, False),
        ("before_optimizer_step", 1, True),
        ("after_optimizer_step", 1, True),
        ("training_state", False),
        ("before_optimizer_step", 2, True),
        ("after_optimizer_step", 2, True),
        ("training_state", False),
        ("finish_training", False),
    ]


TWO_PROCESSES = """
import sys
import warnings
import torch
from lora2 import Lora2Callback
from tests.tiny_trainer import build, make_trainer
model = build()
make_trainer(
    model, sys.argv[1], Lora2Callback(), per_device_train_batch_size=2, ddp_backend="gloo",
    gradient_accumulation_steps=2, save_strategy="steps", save_steps=6,
).train()
rank = torch.distributed.get_rank()
state = {n: t.clone() for n, t in model.state_dict().items() if "lora2_" in n}
torch.save((model.base_model.kept_ranks(), state), f"{sys.argv[1]}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_same_ranks_and_weights(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(lora2.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (kept0, state0), (kept1, state1) = (torch.load(tmp_path / f"rank{i}.pt") for i in (0, 1))
    assert kept0 == kept1 and sum(map(sum, kept0.values())) == 6
    assert all(torch.equal(state0[name], state1[name]) for name in state0)
    assert (tmp_path / "checkpoint-6" / TUNER_STATE_NAME).is_file()
