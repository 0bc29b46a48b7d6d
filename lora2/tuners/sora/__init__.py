"""SoRA: sparse low-rank adaptation with gates (arXiv 2311.11696), registered with PEFT."""

from lora2.tuners.base_config import register
from lora2.tuners.sora.model import SoraConfig, SoraLinear, SoraModel

__all__ = ["SoraConfig", "SoraLinear", "SoraModel"]

register("sora", SoraConfig, SoraModel)
