"""DeBERTa's attention through the kernels of disentangled-flash (optional, NVIDIA GPUs only).

The package multiplies by the query, key and value weights in one product, which would pass by the
adapters on those matrices. Here its projections are the layer's own modules again, whatever PEFT
has made of them; the attention itself and its gradients are the package's.
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from lora2.experiment.device import autocast
from lora2.experiment.problems import ConfigError, Problem
from lora2.experiment.schema import Train

PROJECTIONS = ("query_proj", "key_proj", "value_proj")
# ||flash - eager|| / ||eager|| of the output and of each gradient, both in the run's precision.
# Two orders of summation differ by a few units of the last place; a wrong term by far more.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
PROBE_TOKENS = 160  # past the first 128 positions, where DeBERTaV3's buckets become logarithmic


def use_flash(model: PreTrainedModel, train: Train) -> None:
    """Let a DeBERTa-v2 classifier on the CPU attend through the kernels, in place.

    Before that, the kernels are compared with eager attention on the GPU, on a layer of this
    shape. Parameters keep their names and values; random numbers drawn later stay the same.

    Raises:
        ConfigError: the encoder is no DeBERTa-v2, the kernels do not take its head size, or they
            do not agree with eager attention here.
    """
    with torch.random.fork_rng():
        try:
            found = disagreement(model.config, train, torch.device("cuda"))
        except ConfigError:
            raise
        except Exception as error:  # a compiler's many kinds
            raise refused(f"null: its kernels fail on this GPU: {error}") from error
        precision = "tf32" if train.tf32 and train.precision == "fp32" else train.precision
        if not found <= TOLERANCE[precision]:
            raise refused(
                f"null: on this GPU its kernels differ from eager attention by {found:.1e} in "
                f"{precision} (allowed: {TOLERANCE[precision]:.0e})"
            )
        install(model, train)


def install(model: PreTrainedModel, train: Train, backend: str = "triton") -> None:
    """Replace the attention of ``model``'s encoder; ``backend="torch"`` runs on any device.

    Raises:
        ConfigError: the encoder is no DeBERTa-v2, or its head size is not supported.
    """
    from disentangled_flash import DebertaV2OptimizedEncoder, enable_deberta_training

    if model.config.model_type != "deberta-v2":
        raise refused(f"sdpa or null: this encoder is {model.config.model_type}, not DeBERTa-v2")
    encoder = getattr(model, "deberta", model)
    fast = "fast" if train.tf32 else "strict"
    enable_deberta_training(encoder, backend=backend, fp32_precision=fast)
    if not isinstance(encoder.encoder, DebertaV2OptimizedEncoder):  # left as it was
        size = model.config.hidden_size // model.config.num_attention_heads
        raise refused(f"null: its kernels take heads of 32, 64 or 128, this encoder's have {size}")
    for layer in encoder.encoder.layer:
        attention = layer.attention.self
        if not hasattr(attention, "_project_qkv"):
            raise refused('null, or the tested package: pip install "disentangled-flash==1.1.1"')
        attention._project_qkv = functools.partial(project, attention)


def project(attention: nn.Module, states: Tensor) -> tuple[Tensor, ...]:
    """Return query, key and value of ``states``, (batch, tokens, hidden) each, by the modules."""
    return tuple(getattr(attention, name)(states) for name in PROJECTIONS)


def disagreement(
    config: PreTrainedConfig, train: Train, device: torch.device, backend: str = "triton"
) -> float:
    """Return the largest ``||flash - eager|| / ||eager||`` over output and gradients.

    One random layer of the encoder's shape without dropout, a full row and a padded one; gradients
    of the input, the position embeddings and of an addition to each projection, as adapters make.
    """
    eager = _probe(config).to(device)
    flash = copy.deepcopy(eager)
    install(flash, train, backend)
    flash.to(device)
    for model in (eager, flash):
        for name in PROJECTIONS:
            attention = model.encoder.layer[0].attention.self
            setattr(attention, name, _Adapted(getattr(attention, name)))
    tokens = min(PROBE_TOKENS, config.max_position_embeddings)
    draw = torch.Generator(device).manual_seed(0)
    states = torch.randn(2, tokens, config.hidden_size, generator=draw, device=device)
    mask = torch.ones(2, tokens, dtype=torch.long, device=device)
    mask[1, tokens * 2 // 3 :] = 0
    weight = torch.randn(states.shape, generator=draw, device=device) * mask.unsqueeze(-1)
    outcomes = (_outcome(model, states, mask, weight, train) for model in (eager, flash))
    found = [(b - a).norm() / a.norm() for a, b in zip(*outcomes, strict=True)]
    return float(torch.stack(found).max())  # NaN where one of them is


def refused(allowed: str) -> ConfigError:
    return ConfigError([Problem("backbone.attention", "flash", allowed)])


class _Adapted(nn.Module):
    """A projection with an addition, its bare weight in sight as PEFT's layers have it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.delta = nn.Parameter(0.3 * base.weight.detach().flip(0))  # (out, in)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + nn.functional.linear(states, self.delta)


def _probe(config: PreTrainedConfig) -> PreTrainedModel:
    """Return one random layer of the shape; wide enough weights that attention is not uniform."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.initializer_range = 1, 8, 0.05
    small.hidden_dropout_prob = small.attention_probs_dropout_prob = 0.0
    return AutoModel.from_config(small, dtype=torch.float32).train()


def _outcome(
    model: PreTrainedModel, states: Tensor, mask: Tensor, weight: Tensor, train: Train
) -> list[Tensor]:
    """Return output at real tokens, (2, tokens, hidden), and gradients, each in float32."""
    states = states.clone().requires_grad_()
    attention = model.encoder.layer[0].attention.self
    with autocast(states.device.type, train.precision):
        output = model.encoder(states, mask, output_hidden_states=False).last_hidden_state
    output = output.float() * mask.unsqueeze(-1)
    learned = [getattr(attention, name).delta for name in PROJECTIONS]
    inputs = [states, model.encoder.rel_embeddings.weight, *learned]
    gradients = torch.autograd.grad((output * weight).sum(), inputs, materialize_grads=True)
    return [output.detach(), *gradients]
