"""Count what a piece of code makes a device do: kernels, host synchronisations, memory.

Counted at PyTorch's dispatcher, so that the counts are never noisy. They hold for other devices
too, except where a device implements one operation, such as dropout, as several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host waits for these: what they return, or its size, depends on values.
SYNCS = {f"aten::{name}" for name in (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive",
)}  # fmt: skip
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
# On a CPU these read the memory without any ATen operation; elsewhere they copy first.
READINGS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


@dataclasses.dataclass
class Counts:
    """Names of the ATen operations seen, in order."""

    kernels: list[str] = dataclasses.field(default_factory=list)  # operations that are not views
    syncs: list[str] = dataclasses.field(default_factory=list)  # where the host waits for values


@contextlib.contextmanager
def counting(device: str = "cpu") -> Iterator[Counts]:
    """Count the ATen operations of the block, backward passes included.

    ``device`` is the type of the device that computes: reading a tensor on another one is no
    synchronisation. On ``cpu``, what would be one on a GPU is counted.
    """
    counts = Counts()

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            name = func._schema.name
            view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
            if not view and name != "aten::_unsafe_view":
                counts.kernels.append(name)
            if _waits(name, args, kwargs or {}, result, device):
                counts.syncs.append(name)
            return result

    class Readings(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            if device == "cpu" and func in READINGS and args[0].device.type == "cpu":
                counts.syncs.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Operations(), Readings():
        yield counts


def _waits(name: str, args: Any, kwargs: dict[str, Any], result: Any, device: str) -> bool:
    """Tell whether the host must wait for ``device`` in this operation."""
    if name in SYNCS:
        return args[0].device.type == device
    if name in COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        return waits and source.device.type != result.device.type
    if name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1]):
        # One value written under a mask is a masked_fill.
        return len(args) < 3 or args[2].numel() != 1
    return False


class _Storages(TorchDispatchMode):
    """Count the bytes of living tensors that the block creates, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _place(leaf) not in before:
                storage = leaf.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    weakref.finalize(storage, self._gone, storage.nbytes()).atexit = False
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
        return result

    def _gone(self, size: int) -> None:
        self.alive -= size


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(action: Callable[[], object], device: str) -> int:
    """Return the peak size of the tensors that ``action`` creates.

    On CUDA this is the allocator's count; on a CPU that of the storages alive, counted at the
    dispatcher (without a kernel's temporary memory).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Storages() as storages:
        action()
    return storages.peak
