"""Encoders by shape alone: their time and memory do not depend on the weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lora2.bench import encoders
from lora2.experiment.schema import Backbone
from lora2.glue.tasks import Task


def encoder_config(backbone: Backbone) -> PreTrainedConfig:
    """Return the encoder's configuration from its folder, the package, or the bench's shapes.

    Raises:
        LookupError: an encoder of which neither a folder nor the shape is here.
    """
    if backbone.path is None:
        from lora2.embedded import encoder_path

        return AutoConfig.from_pretrained(encoder_path(backbone.name))
    folder = Path(backbone.path).expanduser()
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if backbone.name not in encoders.SHAPES:
        raise LookupError(
            f"the shape of {backbone.name} is not known here: give backbone.path=DIR with its "
            "config.json"
        )
    return encoders.shaped(backbone.name)


def random_encoder(backbone: Backbone, task: Task) -> PreTrainedModel:
    """Return a classifier of the encoder's shape with weights drawn from torch's generator."""
    config = encoder_config(backbone)
    return encoders.random_encoder(config, task.num_labels, backbone.attention)
