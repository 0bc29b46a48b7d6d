"""The adapted layer and the adapted model that all methods share."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from peft import utils
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.base_config import AdapterConfig
from lora2.tuners.parameters import StackedAdapters


class AdapterLayer(nn.Module, BaseTunerLayer):
    """An ``nn.Linear`` or ``Conv1D``, or another tuner's layer around one, with low-rank adapters.

    A subclass makes an adapter's tensors in ``_create`` and multiplies with them in ``_narrow`` and
    ``thin_factors``. ``quantization`` is what PEFT's ``get_quantization_kwargs`` returns.

    Raises:
        TypeError: the layer cannot be adapted.
    """

    other_param_names: tuple[str, ...] = ("r", "scaling")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig,
        module_name: str = "the module", **quantization: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        linear, self.quantization_backend = _base_linear(base_layer, module_name, quantization)
        self.base_layer, self.module_name = base_layer, module_name
        # Conv1D keeps its weight as (d_in, d_out), nn.Linear as (d_out, d_in).
        self.fan_in_fan_out = isinstance(linear, Conv1D)
        if self.fan_in_fan_out:
            self.in_features, self.out_features = map(int, linear.weight.shape)
        else:  # a quantised weight has another shape
            self.in_features, self.out_features = linear.in_features, linear.out_features
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        # One dropout per adapter, in an attribute with the method's prefix.
        self.dropout_name = self.adapter_layer_names[0].partition("_")[0] + "_dropout"
        setattr(self, self.dropout_name, nn.ModuleDict())
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self._create_containers(config)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Create the adapter ``adapter_name``, replacing one of that name."""
        self.r[adapter_name] = config.r
        self.scaling[adapter_name] = config.lora_alpha / config.r
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        getattr(self, self.dropout_name)[adapter_name] = dropout
        self._create(adapter_name, config)
        config.fan_in_fan_out = self.fan_in_fan_out
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_containers(self, config: Any) -> None:
        """Make the empty containers of the adapters' tensors (``adapter_layer_names`` exist)."""

    def _create(self, adapter_name: str, config: Any) -> None:
        """Make one adapter's tensors."""
        raise NotImplementedError

    def _narrow(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Project x (..., d_in) to (..., k); also return the (k, d_out) still to be applied."""
        raise NotImplementedError

    def pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """First (k, d_in) and second (k, d_out): the update is first^T second, as computed."""
        raise NotImplementedError

    def thin_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """(d_in, k) and (k, d_out), whose product is the update, in float32 at least."""
        raise NotImplementedError

    def set_base_weight(self, weight_data: Tensor) -> None:
        """As PEFT's, in place: the weight may be a view."""
        if self.quantization_backend is None:
            self.get_base_weight().copy_(weight_data)
        else:
            super().set_base_weight(weight_data)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The dense update in float32 at least, (d_out, d_in), or (d_in, d_out) for ``Conv1D``."""
        first, second = self.thin_factors(adapter_name)
        delta = first @ second  # (d_in, k) @ (k, d_out) -> (d_in, d_out)
        return delta if self.fan_in_fan_out else delta.T

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of ``adapter_names`` (None: the active ones) to the base weight.

        In float32 at least, rounded once.

        Raises:
            ValueError: the base weight cannot be written, or, with ``safe_merge``, would not be
                finite; it is then untouched.
        """
        self._check_mergeable()
        for name in tuners_utils.check_adapters_to_merge(self, adapter_names):
            if name not in self.r:
                continue
            weight = self.get_base_weight()
            merged = (wide(weight) + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken: "
                    f"training diverged, or its file is damaged; load another checkpoint of it"
                )
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def _check_mergeable(self) -> None:
        weight, backend = getattr(self.get_base_layer(), "weight", None), self.quantization_backend
        fits = type(weight) in (Tensor, nn.Parameter)  # neither quanto's nor sharded
        if backend is not None:  # False: a torchao weight that transformers cannot quantise again
            fits = backend.supports_merge and getattr(backend, "get_apply_tensor_subclass", True)
        if not fits:
            raise ValueError(
                f"{self.module_name} has a weight of type {type(weight).__name__}, which cannot be "
                f"merged into: merge into the base model loaded in float instead, or serve the "
                f"adapter unmerged (lora2.export_lora makes it a plain LoRA)"
            )
        if backend is not None:
            warnings.warn(
                f"merging rounds the update to the levels of a {backend.backend_name} weight; for "
                f"an exact merge, load the base model in float",
                stacklevel=3,
            )

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract every merged update from the base weight, the last one first."""
        if not self.merged:
            warnings.warn("nothing is merged, so nothing was unmerged", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight((wide(weight) - self.get_delta_weight(name)).to(weight.dtype))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., d_in) -> (..., d_out), in the base layer's output dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.r:
                hidden, second = self._narrow(x, name)
                result = (result + hidden @ second).to(result.dtype)
        return result

    def _dropped(self, x: Tensor, adapter_name: str, dtype: torch.dtype) -> Tensor:
        """Return the adapter's input: ``x`` in ``dtype`` after dropout."""
        if x.dtype != dtype:
            x = self._cast_input_dtype(x, dtype)
        dropout = getattr(self, self.dropout_name)[adapter_name]
        return dropout(x) if dropout.training else x

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is added to the weight (see ``to_lora`` for an exact conversion)."""
        return True


class AdapterModel(BaseTuner):
    """A model whose linear layers have adapters of one method."""

    tuner_layer_cls: type[AdapterLayer]
    peft_config: dict[str, Any]  # adapter name -> AdapterConfig
    target_module_mapping: Any = utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """As PEFT's, but "all-linear" skips weights that are read; unmatched targets warn."""
        config = self.peft_config[adapter_name]
        names = config.target_modules
        if str(names).lower() == "all-linear":
            tuners_utils._maybe_include_all_linear_layers(config, model)
            stacks = [
                f"{n}.stacks." for n, m in model.named_modules() if isinstance(m, StackedAdapters)
            ]  # the experts of another adapter
            config.target_modules = {
                n
                for n in config.target_modules
                if not (_is_read(model, n) or n.startswith(tuple(stacks)))
            }
        super().inject_adapter(model, adapter_name, *args, **kw)
        self._look_up_layers()
        adapted = [f".{name}" for name in self.adapted_layers(adapter_name)]
        adapted += [f".{name}" for name in self.targeted_parameter_names]
        listed = {*(names if isinstance(names, set) else ()), *(config.target_parameters or ())}
        if missing := [n for n in listed if not any(a.endswith(f".{n}") for a in adapted)]:
            warnings.warn(
                f"these targets match nothing that can be adapted: {sorted(missing)}. The experts "
                f"of a mixture may be one 3D parameter: name it in target_parameters",
                stacklevel=2,
            )

    def _prepare_adapter_config(self, config: Any, model_config: dict[str, Any]) -> Any:
        known = model_config.get("model_type") in self.target_module_mapping
        if config.target_parameters and not known:
            return config  # target_modules=None: the parameters alone
        return super()._prepare_adapter_config(config, model_config)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._look_up_layers()

    def _look_up_layers(self) -> None:
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, AdapterLayer)}
        self._layers: dict[str, dict[str, Any]] = {}
        for adapter in self.peft_config:
            self._layers[adapter] = {n: layer for n, layer in layers.items() if adapter in layer.r}

    def adapted_layers(self, adapter_name: str) -> dict[str, Any]:
        """Module name -> layer, for every module that ``adapter_name`` adapts."""
        return self._layers[adapter_name]

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str,
        parent: nn.Module, current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        if parameter_name is not None:
            stacked = parent if isinstance(parent, StackedAdapters) else target
            if not isinstance(stacked, StackedAdapters):
                stacked = StackedAdapters(target)
                setattr(parent, target_name, stacked)
            names = parameter_name, self.tuner_layer_cls, adapter_name
            stacked.adapt(*names, peft_config, current_key)
            return
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        if _is_read(self.model, current_key):
            raise ValueError(
                f"{current_key} cannot be adapted: {type(parent).__name__} reads its weight "
                f"instead of calling it, so an adapter would have no effect until it is merged; "
                f"name it in exclude_modules, or use target_modules='all-linear', which skips it"
            )
        quantization = utils.get_quantization_kwargs(self.model)
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, current_key, **quantization)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, name: str, new: nn.Module, _: nn.Module) -> None:
        # PEFT's version also copies .weight from the child, and a ModulesToSaveWrapper around a
        # classification head has none: merge_and_unload fails there.
        setattr(parent, name, new)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        if adapter_names is not None:
            raise ValueError(
                f"adapter_names={adapter_names}: {type(self).__name__} computes all rows of a "
                f"batch with the active adapters: call set_adapter(name) and pass the rows of one "
                f"adapter, or serve the adapters exported by lora2.export_lora as LoRA"
            )
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse; LoRA's works on exported adapters."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot combine adapters: export each one with "
            f"lora2.export_lora(model, folder, adapter_name), load them as LoRA with "
            f"PeftModel.from_pretrained and load_adapter, and call add_weighted_adapter there"
        )


def _is_read(model: nn.Module, key: str) -> bool:
    """Tell whether the module that holds ``key`` reads its weight instead of calling it.

    As nn.MultiheadAttention reads out_proj's, and Mamba's fused path dt_proj's. Looks into the
    source of the class.
    """
    parent, _, name = key.rpartition(".")
    kind: Any = type(model.get_submodule(parent))  # Any: mypy calls a Module class unhashable
    return _reads_weight(kind, name)


@cache  # parsing a module's file for every layer would take most of the time of get_peft_model
def _reads_weight(kind: type[nn.Module], name: str) -> bool:
    sources: list[str] = []
    for cls in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        with contextlib.suppress(OSError, TypeError):  # no source
            sources += inspect.getsource(cls).splitlines()
    weight = rf"\bself\.{name}\.weight\b"
    read = rf"{weight}(?!\.(dtype|device|data|shape|size|_)|\s*=[^=])"
    ignored = r"init|isinstance|hasattr"
    reads = [line for line in sources if re.search(read, line) and not re.search(ignored, line)]
    called = any(re.search(rf"\bself\.{name}\(", line) for line in sources)
    return any(not called or re.search(rf"{weight}\s*([,)\]@]|$|\.clamp)", line) for line in reads)


def _base_linear(target: nn.Module, name: str, quantization: dict[str, Any]) -> tuple[Any, Any]:
    """Return the linear layer under ``target`` and PEFT's backend for its quantisation, if any."""
    base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    # torchao's backend refuses None, the function that quantises a merged weight; False is none.
    settings = {"get_apply_tensor_subclass": False, **quantization}
    backend = utils.resolve_quantization_backend(base, **settings)
    plain = isinstance(base, nn.Linear | Conv1D) and base.weight.is_floating_point()
    if backend is None and not plain:
        raise TypeError(
            f"{name} is a {type(base).__name__}; only torch.nn.Linear and transformers' Conv1D "
            f"with floating-point or quantised weights can be adapted: take it out of "
            f"target_modules or name it in exclude_modules; PEFT's LoRA (LoraConfig) also adapts "
            f"embeddings and convolutions"
        )
    return base, backend


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32, or float64 where it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
