"""PEFT's own tests of methods on custom models, run for LORA2, SORA and LORA_XS.

They come with PEFT's source distribution of the installed version; their table of cases is replaced
by one of ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import peft
import pytest

pytestmark = pytest.mark.ecosystem

CASES = """
import lora2

# Starts from which three steps of SGD move every tensor, and none to infinity.
_OURS = [
    ("LORA2", lora2.Lora2Config, {"r": 4, "k": 2, "init_std": 0.3}),
    ("SORA", lora2.SoraConfig, {"r": 4, "lora_alpha": 4}),
    ("LORA_XS", lora2.LoraXsConfig, {"r": 2, "init_std": 0.0}),
]
TEST_CASES = [
    (f"{name} {number}", "MLP", config_cls, settings | kwargs)
    for name, config_cls, settings in _OURS
    for number, kwargs in enumerate([
        {"target_modules": "lin0"},
        {"target_modules": ["lin0", "lin1"]},
        {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    ])
]
"""
TWO_ACTIVE = """
_RANDOM = {"init_weights": False, "target_modules": ["lin0"]}
MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    (f"{name} {second}", name.lower(), config_cls, settings | _RANDOM,
     settings | _RANDOM | {"target_modules": [second]})
    for name, config_cls, settings in _OURS[:2]
    for second in ("lin0", "lin1")
]


"""
OURS = "LORA2 or SORA or LORA_XS or Lora2Config or SoraConfig or LoraXsConfig"


def insert(path, before: str, text: str) -> None:
    source = path.read_text()
    assert source.count(before) == 1, before
    path.write_text(source.replace(before, text + before))


def test_pefts_own_tests_of_custom_models(tmp_path):
    wanted = f"peft=={peft.__version__}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    download += ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(tmp_path)]
    if subprocess.run(download).returncode:
        pytest.skip(f"the source distribution of {wanted} is not available")
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("peft-*/tests")
    tests = source.rename(tmp_path / "peft_tests")  # ours are called tests, too
    (tests / "__init__.py").touch()
    custom = tests / "test_custom_models.py"
    insert(custom, "ALL_PEFT_CONFIG_CLASSES = ", CASES)
    insert(custom, "class MLP(nn.Module)", TWO_ACTIVE)
    # LoRA-XS has init_std instead of init_weights.
    own = """    if config_cls.__name__ == "LoraXsConfig":
        return kwargs | {"init_std": 0.5}
"""
    insert(tests / "testing_utils.py", "    if config_cls in (LNTuningConfig, VBLoRAConfig):", own)
    command = [sys.executable, "-m", "pytest", "-rs", "-W", "ignore", str(custom), "-k", OURS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
