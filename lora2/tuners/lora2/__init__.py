"""LoRA2 as a PEFT method: two nested low-rank factorisations around trained singular values."""

from lora2.tuners.base_config import register
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.model import Lora2Model

__all__ = ["Lora2Config", "Lora2Linear", "Lora2Model"]

register("lora2", Lora2Config, Lora2Model)
