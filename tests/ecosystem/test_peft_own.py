"""PEFT's own tests of its methods, run for LORA2, SORA and LORA_XS.

They come with PEFT's source distribution of the installed version; their tables of cases are
replaced by ours. Where they load a small model from the hub, they find a folder of that name, with
a random model of the same class.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile

import peft
import pytest
import torch
import transformers

pytestmark = pytest.mark.ecosystem

OURS = """
import lora2

# Starts from which three steps of SGD move every tensor, and none to infinity.
_OURS = [
    ("LORA2", lora2.Lora2Config, {"r": 4, "k": 2, "init_std": 0.3}),
    ("SORA", lora2.SoraConfig, {"r": 4, "lora_alpha": 4}),
    ("LORA_XS", lora2.LoraXsConfig, {"r": 2, "init_std": 0.0}),
]
"""
CUSTOM = """
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
MODELS = """
ALL_CONFIGS = [(cls, {{"task_type": "{task}"}} | settings) for _, cls, settings in _OURS]


"""
PARAMETERS = """
ALL_CONFIGS = [
    (model, cls, {k: v for k, v in kwargs.items() if k.startswith("ta")} | settings)
    for model, _, kwargs in (ALL_CONFIGS[at] for at in (2, 3, 5, 6))  # the others adapt less
    for _, cls, settings in _OURS
]


"""
# Ours adapt Conv1D.
CONV1D = """    if config_cls.__module__.startswith("lora2."):
        return
"""
# LoRA-XS has init_std instead of init_weights.
RANDOM_XS = """    if config_cls.__name__ == "LoraXsConfig":
        return kwargs | {"init_std": 0.5}
"""
SIZES = {
    "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 36, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
DEBERTA = {**SIZES, "pos_att_type": ["p2c", "c2p"], "relative_attention": True}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 48}
BART = {"vocab_size": 1024, "d_model": 16, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4}
for part in ("encoder", "decoder"):
    BART |= {f"{part}_layers": 2, f"{part}_attention_heads": 4}
T5 = {"vocab_size": 1100, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
CLASSES = {
    "OPTForCausalLM": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "GPT2LMHeadModel": GPT, "GPTJForCausalLM": GPT, "LlamaForCausalLM": DECODER,
    "Qwen2ForCausalLM": DECODER, "Gemma3ForCausalLM": DECODER,
    "Llama4ForCausalLM": DECODER | EXPERTS, "GptOssForCausalLM": DECODER | EXPERTS,
    "T5ForConditionalGeneration": {**T5, "decoder_start_token_id": 0},
    "BartForConditionalGeneration": BART, "BertModel": SIZES, "RobertaModel": SIZES,
    "DebertaModel": DEBERTA, "DebertaV2Model": DEBERTA, "BertForSequenceClassification": SIZES,
    "RobertaForSequenceClassification": SIZES, "LlamaForSequenceClassification": DECODER,
}  # fmt: skip
HUB = {  # class -> its name on the hub; the others are peft-internal-testing/tiny-random-CLASS
    "LlamaForCausalLM": "trl-internal-testing/tiny-random-LlamaForCausalLM",
    "Qwen2ForCausalLM": "peft-internal-testing/tiny-dummy-qwen2",
    "Gemma3ForCausalLM": "hf-internal-testing/tiny-random-Gemma3ForCausalLM",
    "Llama4ForCausalLM": "trl-internal-testing/tiny-Llama4ForCausalLM",
    "GptOssForCausalLM": "trl-internal-testing/tiny-GptOssForCausalLM",
    "T5ForConditionalGeneration":
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated",
    "LlamaForSequenceClassification":
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2",
}  # fmt: skip
FILES = {  # file of PEFT -> what is inserted, before which line; "": the first class of tests
    "test_custom_models.py":
        {"ALL_PEFT_CONFIG_CLASSES = ": CUSTOM, "class MLP(nn.Module)": TWO_ACTIVE},
    "test_decoder_models.py": {"": MODELS.format(task="CAUSAL_LM")},
    "test_encoder_decoder_models.py": {"": MODELS.format(task="SEQ_2_SEQ_LM")},
    "test_feature_extraction_models.py": {"": MODELS.format(task="FEATURE_EXTRACTION")},
    "test_seq_classifier.py": {"": MODELS.format(task="SEQ_CLS")},
    "test_target_parameters.py": {"": PARAMETERS},
}  # fmt: skip
NAMES = "LORA2 or SORA or LORA_XS or Lora2Config or SoraConfig or LoraXsConfig"


def insert(path, before: str, text: str) -> None:
    source = path.read_text()
    assert source.count(before) == 1, before
    path.write_text(source.replace(before, text + before))


def save_models(folder) -> None:
    torch.manual_seed(0)
    for name, sizes in CLASSES.items():
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**sizes, bos_token_id=1, eos_token_id=2))
        model.save_pretrained(folder / HUB.get(name, f"peft-internal-testing/tiny-random-{name}"))


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    wanted = f"peft=={peft.__version__}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    download += ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    if subprocess.run(download).returncode:
        pytest.skip(f"the source distribution of {wanted} is not available")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.glob("peft-*/tests")
    tests = source.rename(folder / "peft_tests")  # ours are called tests, too
    (tests / "__init__.py").touch()
    before = "    if config_cls in (LNTuningConfig, VBLoRAConfig):"
    insert(tests / "testing_utils.py", before, RANDOM_XS)
    before = "    if config_cls not in (IA3Config, LoHaConfig, LoKrConfig, LoraConfig):"
    insert(tests / "testing_common.py", before, CONV1D)
    save_models(folder)
    return tests


@pytest.mark.parametrize("file", FILES)
def test_pefts_own_tests(tests, file):
    path, ours = tests / file, OURS
    for before, text in FILES[file].items():
        before = before or re.search(r"^class Test\w+", path.read_text(), re.MULTILINE)[0]
        insert(path, before, ours + text)
        ours = ""
    command = [sys.executable, "-m", "pytest", "-rs", "-W", "ignore", str(path), "-k", NAMES]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), *sys.path])
    done = subprocess.run(
        command, cwd=tests.parent, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
