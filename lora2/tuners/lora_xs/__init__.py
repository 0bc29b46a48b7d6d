"""LoRA-XS: a trained r x r core in a frozen SVD basis (arXiv 2405.17604), registered with PEFT."""

from lora2.tuners.base_config import register
from lora2.tuners.lora_xs.model import LoraXsConfig, LoraXsLinear, LoraXsModel

__all__ = ["LoraXsConfig", "LoraXsLinear", "LoraXsModel"]

register("lora_xs", LoraXsConfig, LoraXsModel)
