"""LoRA-XS as a PEFT method."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from lora2.tuners.lora_xs.config import LoraXsConfig
from lora2.tuners.lora_xs.layer import LoraXsLinear
from lora2.tuners.mixed_batch import refuse_mixed_batch
from lora2.tuners.replace import replace_module


class LoraXsModel(BaseTuner):
    """Adapts a model with LoRA-XS; made by ``get_peft_model(model, LoraXsConfig(...))``.

    Nothing has to be driven in training: it has no schedule.
    """

    prefix = "loraxs_"
    tuner_layer_cls = LoraXsLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _enable_peft_forward_hooks = refuse_mixed_batch
    peft_config: dict[str, LoraXsConfig]

    def _check_new_adapter_config(self, config: Any) -> None:
        """Refuse adapters that differ in save_basis: a layer keeps its bases in one container."""
        super()._check_new_adapter_config(config)
        if len({other.save_basis for other in self.peft_config.values()}) > 1:
            raise ValueError(
                f"the adapters of one model must agree on save_basis, and the new one has "
                f"{config.save_basis}; set it to {not config.save_basis}"
            )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **unused: Any,
    ) -> None:
        if isinstance(target, LoraXsLinear):
            target.update_layer(adapter_name, peft_config)
            return
        layer = LoraXsLinear(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        replace_module(parent, child_name, new_module)
