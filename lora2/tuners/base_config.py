"""Registration with PEFT, and the settings that all methods share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import ModelCard
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

Rules = dict[str, tuple[bool, str]]  # setting -> whether its value is allowed, what is allowed

REQUIRES = (
    "the Python package lora2: `import lora2` before PeftModel.from_pretrained; exported as plain "
    "LoRA (lora2.export_lora), it needs PEFT alone"
)
# Arguments of LoraConfig that have no meaning here, and what to do instead.
_NOT_SUPPORTED = {
    "use_rslora": "set lora_alpha to alpha * sqrt(r), which gives the same scale alpha / sqrt(r)",
    "bias": "leave it out; LoRA2 and PEFT's LoRA can train biases",
    "use_dora": "leave it out; only PEFT's LoRA has it",
    "rank_pattern": "one r and k hold for all modules; LoRA2's target_r divides ranks up",
    "alpha_pattern": "one lora_alpha holds for all modules; PEFT's LoraConfig has it",
    "trainable_token_indices": "name the embedding in modules_to_save",
    "ensure_weight_tying": "leave tied modules out of target_modules and modules_to_save",
    "init_lora_weights": "the argument is init_weights",
}


def extend_peft_type(name: str) -> PeftType:
    """Return the member ``name`` (upper case) of PEFT's enum, adding it when it is missing.

    PEFT's registration only looks it up; with a plain string transformers' load_adapter breaks.
    """
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    return PeftType[name]


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register ``name`` (lower case) with PEFT; a KeyError if another package has it already."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(extend_peft_type(name.upper())) is not config_cls:
        prefix = model_cls.prefix
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=prefix)


def is_int(value: Any, low: int) -> bool:
    """Tell whether ``value`` is an integer >= ``low``; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_real(value: Any) -> bool:
    """Tell whether ``value`` is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Each rule returns whether the value is allowed, and which values are.


def integer(value: Any, low: int) -> tuple[bool, str]:
    return is_int(value, low), f"an integer >= {low}"


def positive(value: Any) -> tuple[bool, str]:
    return is_real(value) and value > 0, "a number > 0"


def non_negative(value: Any) -> tuple[bool, str]:
    return is_real(value) and value >= 0, "a number >= 0"


def fraction(value: Any) -> tuple[bool, str]:
    return is_real(value) and 0 <= value < 1, "0 <= value < 1"


def one_of(value: Any, *allowed: Any) -> tuple[bool, str]:
    """Allow the values listed; True and 1 differ."""
    fits = any(value is a or (value == a and type(value) is type(a)) for a in allowed)
    return fits, " | ".join(map(str, allowed))


@dataclass
class AdapterConfig(PeftConfig):
    """Settings of every method here, under the names of PEFT's LoraConfig.

    Args:
        r: rank of the update of one adapted matrix.
        lora_alpha: the update is multiplied by lora_alpha / r.
        lora_dropout: dropout probability on the adapter's input.
        target_modules: names (exact or suffix) or a regular expression, "all-linear", or None for
            the modules that PEFT's LoRA adapts in a known model.
        exclude_modules: names or a regular expression of modules to leave alone.
        layers_to_transform: indices of the layers to adapt; needs a list of target_modules.
        layers_pattern: name of the list of layers, when it is not a common one.
        target_parameters: names of parameters to adapt as matrices (3D: a stack of them), such as
            "experts.gate_up_proj", beside target_modules ([] for none); without dropout.
        modules_to_save: modules trained in full and saved beside the adapter (the classifier).
        fan_in_fan_out: whether weights are stored as (d_in, d_out); set from the adapted layers.
        requires: what is needed to load the adapter, for readers of adapter_config.json.

    Raises:
        ValueError: one error that lists every impossible value.
        TypeError: an argument that only PEFT's LoraConfig has, with what to do instead.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    requires: str = REQUIRES

    method: ClassVar[str]  # the member of PeftType

    def __new__(cls, *args: Any, **kwargs: Any) -> AdapterConfig:
        """Explain LoraConfig's other arguments, before __init__ calls them unexpected."""
        unknown = _NOT_SUPPORTED.keys() - cls.__dataclass_fields__
        if refused := [f"{key}: {_NOT_SUPPORTED[key]}" for key in kwargs if key in unknown]:
            raise TypeError(f"{cls.__name__} does not take " + "; ".join(refused))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_type(self.method)
        for key in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, key), list):
                setattr(self, key, set(getattr(self, key)))
        if problems := self._problems():
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's; the model card beside it then says what is needed to load it."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "README.md"
        if path.is_file():
            card = ModelCard.load(path)
            tags = card.data.get("tags") or []
            card.data["tags"] = sorted({*tags, "lora2", self.method.lower()})
            if REQUIRES not in card.text:
                card.text += f"\n\n## How to load\n\nThis adapter needs {REQUIRES}.\n"
            card.save(path)

    def _rules(self) -> Rules:
        whole = self.layers_to_transform is None
        named = not isinstance(self.target_modules, str)
        pattern = self.layers_pattern is None or (named and not whole)
        dropout = fraction(self.lora_dropout)
        if self.target_parameters:
            dropout = self.lora_dropout == 0, "0 beside target_parameters"
        return {
            "r": integer(self.r, 1),
            "lora_alpha": positive(self.lora_alpha),
            "lora_dropout": dropout,
            "layers_to_transform": (whole or named, "None while target_modules is a string"),
            "layers_pattern": (pattern, "only beside layers_to_transform and a list of targets"),
        }

    def _problems(self) -> list[str]:
        rules = self._rules().items()
        wrong = {key: allowed for key, (fits, allowed) in rules if not fits}
        return [f"{key}={getattr(self, key)!r} (allowed: {wrong[key]})" for key in wrong]
