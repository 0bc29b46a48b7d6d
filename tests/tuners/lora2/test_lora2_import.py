from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lora2

SOURCE = Path(lora2.__file__)

# Between two orders, peft and lora2 are forgotten: torch alone takes seconds to import again.
IN_ANY_ORDER = """
import importlib, sys
for first in {firsts}:
    for name in [n for n in sys.modules if n.partition(".")[0] in ("peft", "lora2")]:
        del sys.modules[name]
    importlib.import_module(first)
    import lora2
    import lora2.config
    if first == "lora2":
        assert not {{"peft", "torch", "transformers"}} & set(sys.modules), "not light"
    from importlib.util import find_spec
    assert find_spec("peft") is not None  # as transformers looks for it
    from peft.utils import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    assert not any("_RegisterOnImport" in repr(finder) for finder in sys.meta_path)
    for name in ("LORA2", "SORA", "LORA_XS"):
        print(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name]].__name__)
    lora2.register()
"""


def test_every_method_is_registered_in_any_order_of_imports():
    firsts = ["lora2", "peft", "lora2.tuners.sora.model", "transformers"]
    done = subprocess.run(
        [sys.executable, "-c", IN_ANY_ORDER.format(firsts=firsts)],
        cwd=SOURCE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = ["Lora2Config", "SoraConfig", "LoraXsConfig"] * len(firsts)
    assert done.stdout.split() == expected, done.stderr
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_available():
    for name in lora2.__all__:
        assert getattr(lora2, name).__name__ == name
    assert set(lora2.__all__) <= set(dir(lora2))
    with pytest.raises(AttributeError, match="no attribute 'Lora3Config'"):
        lora2.Lora3Config  # noqa: B018
