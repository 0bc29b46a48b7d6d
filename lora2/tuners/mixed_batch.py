"""What our tuners say to a batch of which each row asks for an adapter of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def refuse_mixed_batch(
    tuner: Any, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
) -> Iterator[None]:
    """Run a forward pass of a PeftModel; as a tuner's ``_enable_peft_forward_hooks``.

    Raises:
        ValueError: ``adapter_names`` is given, which PEFT would drop without a word.
    """
    if adapter_names is not None:
        raise ValueError(
            f"adapter_names={adapter_names}: {type(tuner).__name__} computes all rows of a batch "
            f"with the active adapters: call set_adapter(name) and pass the rows of one adapter"
        )
    yield
