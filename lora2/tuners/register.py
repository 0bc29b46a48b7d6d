"""Make a method of ours known to PEFT under its own PeftType."""

from __future__ import annotations

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def extend_peft_type(name: str) -> PeftType:
    """Return the member ``name`` (upper case) of PEFT's enum, adding it when it is missing.

    PEFT's registration looks the member up and does not create it; a plain string in its place
    breaks ``model.load_adapter`` of transformers, so a true member is added.
    """
    if name not in PeftType.__members__:
        _add_member(name)
    return PeftType[name]


def _add_member(name: str) -> None:
    try:
        from aenum import extend_enum
    except ModuleNotFoundError:  # a machine where nothing can be installed: enough of what it does
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    else:
        extend_enum(PeftType, name, name)


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register ``name`` (lower case) with PEFT; a second call with the same classes is harmless.

    Raises:
        KeyError: another package has registered this name with another config class.
    """
    peft_type = extend_peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is config_cls:
        return
    if known is not None:
        raise KeyError(
            f"PEFT already has a method {name!r} ({known.__module__}.{known.__qualname__}); "
            f"uninstall the package that registers it, or do not import lora2 beside it"
        )
    register_peft_method(
        name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix
    )
