"""What the methods are measured on: an encoder's size, a batch, a device."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lora2.bench.encoders import longest, random_encoder, shaped
from lora2.bench.lengths import padded_batch
from lora2.bench.record import Row
from lora2.bench.step import Batch

SEED = 1


@dataclasses.dataclass(frozen=True)
class Shape:
    """An encoder with random weights and the batches that it is given."""

    encoder: str  # a name of encoders.SHAPES
    layers: int | None  # None: the published number
    width: int | None  # None: the published hidden size
    batch: int  # sequences
    tokens: int  # of each, where lengths are not drawn
    precision: str  # fp32, bf16 or fp16 (autocast)
    device: str  # cpu or cuda

    def config(self) -> PreTrainedConfig:
        """Return the encoder's configuration."""
        return shaped(self.encoder, self.layers, self.width)

    def base(self) -> nn.Module:
        """Return the classifier, on the device."""
        torch.manual_seed(SEED)
        return random_encoder(self.config()).to(self.device)

    def full_batch(self) -> Batch:
        """Return a batch without padding."""
        room = longest(self.config(), self.tokens)
        return self.batch_of(torch.full((self.batch,), room), torch.Generator().manual_seed(SEED))

    def batch_of(self, lengths: Tensor, generator: torch.Generator) -> Batch:
        """Return a batch of these lengths (batch,), on the device."""
        made = padded_batch(lengths, self.config().vocab_size, 2, generator)
        return {key: value.to(self.device) for key, value in made.items()}

    def columns(self) -> Row:
        """Return the columns of a row that say what was measured, tokens left to the caller."""
        config = self.config()
        return {
            "encoder": self.encoder,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "precision": self.precision,
            "batch": self.batch,
        }
