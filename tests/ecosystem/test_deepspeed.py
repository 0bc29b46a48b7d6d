"""DeepSpeed on a CPU: LoRA2 under ZeRO-2 trains as one process does; the rest is refused.

DeepSpeed compiles its communication with g++ on first use, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from lora2 import Lora2Callback, SoraConfig
from tests.tuners.lora2.lora2_models import adapt, batch, build

pytestmark = pytest.mark.ecosystem
STEPS, BATCH = 4, 4


CASES = {
    "plain": {},
    "pruned": {"target_r": 1, "tfinal": 1},
    "own loss": {},
    "own loss with the penalty": {},
    "sora": None,
}


def train(out: Path, stage: int, case: str) -> None:
    """Train in this process, one of those of torchrun; the first saves the adapter's tensors."""
    if case == "sora":
        config = SoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")
        model = get_peft_model(build("bert"), config)
    else:
        model = adapt("bert", task_type="SEQ_CLS", orth_reg_weight=0.5, **CASES[case])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # else it depends on the number of processes
    zero = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
    }
    arguments = TrainingArguments(
        output_dir=str(out.parent / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // int(os.environ["WORLD_SIZE"]),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        deepspeed=zero if stage else None,
    )
    rows = [{k: v[0] for k, v in batch(i, rows=1).items()} for i in range(STEPS * BATCH)]

    def own_loss(outputs, labels, **_):
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        penalised = case == "own loss with the penalty"
        return loss + model.base_model.regularization_loss() if penalised else loss

    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        callbacks=[Lora2Callback()],
        compute_loss_func=own_loss if case.startswith("own loss") else None,
    )
    trainer.model_accepts_loss_kwargs = False  # else the loss is multiplied by the processes
    trainer.train()
    if int(os.environ["RANK"]) == 0:
        tensors = {n: p.detach() for n, p in model.named_parameters() if "lora2_" in n}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


def launch(folder: Path, processes: int, stage: int, case: str = "plain"):
    """Return what ``processes`` processes print, and their tensors or None; stage 0: no ZeRO."""
    out = folder / f"{processes}-{stage}-{case}.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--master-port=29541", __file__, str(out), str(stage), case]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, load_file(out) if out.exists() else None


def test_zero_2_trains_in_two_processes_as_one_process_does(tmp_path):
    _, alone = launch(tmp_path, 1, 0)
    printed, sharded = launch(tmp_path, 2, 2)
    assert sharded is not None, printed[-3000:]
    assert alone.keys() == sharded.keys()
    printed, own = launch(tmp_path, 1, 2, "own loss with the penalty")
    assert own is not None, printed[-3000:]
    for name in alone:
        torch.testing.assert_close(sharded[name], alone[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[name], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "case", "message"),
    [
        (3, "plain", "ZeRO-3 leaves only empty parameters"),
        (2, "pruned", "ZeRO-2 keeps no gradients"),
        (2, "own loss", "add regularization_loss() to your loss"),
        (2, "sora", "train under DDP"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(tmp_path, stage, case, message):
    printed, tensors = launch(tmp_path, 1, stage, case)
    assert tensors is None and message in printed


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
