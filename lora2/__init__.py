"""LoRA2 (arXiv 2408.06854), SoRA and LoRA-XS as PEFT methods.

``from lora2 import Lora2Config`` (or any other public name) registers LORA2, SORA and LORA_XS with
PEFT. A bare ``import lora2`` registers them at once when ``peft`` is already imported; when it is
not, the import stays light (no torch), and they are registered as soon as a public name is touched
or ``lora2.register()`` is called: do one of these before ``PeftModel.from_pretrained``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora2.callbacks import Lora2Callback
    from lora2.tuners.lora2 import Lora2Config, Lora2Model
    from lora2.tuners.lora2.optimizer import create_lora2_optimizer
    from lora2.tuners.lora_xs import LoraXsConfig
    from lora2.tuners.sora import SoraConfig

__all__ = [
    "Lora2Callback",
    "Lora2Config",
    "Lora2Model",
    "LoraXsConfig",
    "SoraConfig",
    "create_lora2_optimizer",
    "register",
]

_HOMES = {
    "Lora2Callback": "lora2.callbacks",
    "Lora2Config": "lora2.tuners.lora2",
    "Lora2Model": "lora2.tuners.lora2",
    "LoraXsConfig": "lora2.tuners.lora_xs",
    "SoraConfig": "lora2.tuners.sora",
    "create_lora2_optimizer": "lora2.tuners.lora2.optimizer",
}


def register() -> None:
    """Register every method in lora2/tuners with PEFT; a second call is harmless.

    A folder there is a method; importing it registers it.
    """
    tuners = importlib.import_module("lora2.tuners")
    for module in pkgutil.iter_modules(tuners.__path__, "lora2.tuners."):
        if module.ispkg:
            importlib.import_module(module.name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if "peft" in sys.modules:
    register()
