"""LoRA2 (arXiv 2408.06854), SoRA and LoRA-XS as PEFT methods.

``import lora2`` registers LORA2, SORA and LORA_XS with PEFT: at once if ``peft`` is imported
already, and otherwise as soon as it is. The import itself stays light (no torch).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora2.callbacks import Lora2Callback, kept_ranks
    from lora2.tuners.export import export_lora, to_lora
    from lora2.tuners.lora2 import Lora2Config, Lora2Model
    from lora2.tuners.lora2.optimizer import create_lora2_optimizer
    from lora2.tuners.lora_xs import LoraXsConfig
    from lora2.tuners.sora import SoraConfig

__all__ = [
    "Lora2Callback", "Lora2Config", "Lora2Model", "LoraXsConfig", "SoraConfig",
    "create_lora2_optimizer", "export_lora", "kept_ranks", "register", "to_lora",
]  # fmt: skip

_HOMES = {
    "Lora2Callback": "lora2.callbacks", "kept_ranks": "lora2.callbacks",
    "Lora2Config": "lora2.tuners.lora2", "Lora2Model": "lora2.tuners.lora2",
    "LoraXsConfig": "lora2.tuners.lora_xs", "SoraConfig": "lora2.tuners.sora",
    "create_lora2_optimizer": "lora2.tuners.lora2.optimizer",
    "export_lora": "lora2.tuners.export", "to_lora": "lora2.tuners.export",
}  # fmt: skip


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
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _RegisterOnImport:
    """Registers the methods once peft is imported."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        others = [finder for finder in sys.meta_path if finder is not cls]
        spec = next(filter(None, (other.find_spec(name, path, target) for other in others)), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
            execute(module)
            register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    register()
else:
    sys.meta_path.insert(0, _RegisterOnImport)
