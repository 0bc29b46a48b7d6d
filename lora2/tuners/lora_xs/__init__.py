"""LoRA-XS: a trained r x r core in a frozen SVD basis (arXiv 2405.17604), registered with PEFT."""

from lora2.tuners.lora_xs.config import LoraXsConfig
from lora2.tuners.lora_xs.layer import LoraXsLinear
from lora2.tuners.lora_xs.model import LoraXsModel
from lora2.tuners.register import register

__all__ = ["LoraXsConfig", "LoraXsLinear", "LoraXsModel"]

register("lora_xs", LoraXsConfig, LoraXsModel)
