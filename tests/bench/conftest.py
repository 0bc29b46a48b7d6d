from __future__ import annotations

import pytest

from lora2.config.parse import SHAPES


@pytest.fixture(scope="package", autouse=True)
def narrow():
    """Make every encoder 64 wide: drawing large weights is most of a tiny bench."""
    small = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 256}
    small |= {"num_attention_heads": 1, "pooler_hidden_size": 64}
    with pytest.MonkeyPatch.context() as patch:
        for shape in SHAPES.values():
            for key in small.keys() & {*shape}:
                patch.setitem(shape, key, small[key])
        yield
