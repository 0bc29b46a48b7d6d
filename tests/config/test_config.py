"""Configuration: every YAML composes, everything wrong is refused at once, hashes name runs."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from lora2.config import parse
from lora2.config.load import resolve, set_value
from lora2.config.parse import word_value
from lora2.config.problems import ConfigError
from lora2.config.schema import Lora2, as_tree, build, config_hash, run_name
from lora2.glue.tasks import TASKS
from lora2.sweep.table import jobs, load_profile, load_table

ROOT = Path(__file__).resolve().parents[2]
METHODS, BACKBONES = parse.options("method"), parse.options("backbone")


def refused(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        resolve(list(words))
    return {problem.key: str(problem) for problem in caught.value.problems}


def combinations() -> list[tuple[str, str, str]]:
    """Every task with every method, every encoder with every method, every encoder and task."""
    every = set(itertools.product(TASKS, METHODS, BACKBONES[:1]))
    every |= set(itertools.product(["rte"], METHODS, BACKBONES))
    return sorted(every | set(itertools.product(TASKS, ["lora2"], BACKBONES)))


def test_every_combination_resolves():
    count = 0
    for task, method, backbone in combinations():
        words = [f"task={task}", f"method={method}", f"backbone={backbone}"]
        for change in ("protocol=public", "protocol=equal", "ranks=public"):
            resolved = resolve([*words, change])
            assert resolved.steps is not None and resolved.steps > 0
            count += 1
    assert count == 3 * (8 * 9 + 4 * 9 + 4 * 7)


def test_public_rte_is_the_public_script():
    resolved = resolve(["task=rte", "method=lora2", "ranks=public"])
    method, train = resolved.config.method, resolved.config.train
    assert isinstance(method, Lora2)
    assert (method.r, method.k, method.target_r, method.lora_alpha) == (4, 8, 3, 32)
    assert (method.tinit, method.tfinal, method.deltaT) == (600, 1800, 1)
    assert (method.beta1, method.beta2, method.orth_reg_weight) == (0.85, 0.85, 0.3)
    assert (train.max_seq_length, train.batch_size, train.learning_rate) == (320, 32, 1.2e-3)
    assert (train.num_train_epochs, train.warmup_steps, train.cls_dropout) == (50, 200, 0.2)
    assert (train.weight_decay, train.eval_steps, resolved.config.seed) == (0.01, 100, 4)
    assert resolved.steps == 50 * 78 and resolved.notes == []


def test_public_settings_equal_the_table_of_the_scripts():
    with open(ROOT / "lora2/paper/hyperparameters.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    for row in rows:
        words = [f"task={row['task']}", f"method={row['method']}", "ranks=public"]
        config = resolve(words).config
        method, train = config.method, config.train
        start = method.r if row["method"] == "lora2" else method.init_r
        assert start == int(row["r"]), words
        assert method.target_r == int(row["target_rank"]), words
        assert method.lora_alpha == float(row["alpha"])
        assert method.orth_reg_weight == float(row["reg_orth_coef"])
        schedule = (method.tinit, method.tfinal, method.deltaT)
        names = ("init_warmup", "final_warmup", "mask_interval")
        assert schedule == tuple(int(row[name]) for name in names)
        assert train.max_seq_length == int(row["max_seq_length"])
        assert train.learning_rate == float(row["learning_rate"])
        assert train.num_train_epochs == float(row["epochs"])
        assert train.cls_dropout == float(row["cls_dropout"])
        assert train.weight_decay == float(row["weight_decay"])
        assert (train.eval_steps, train.batch_size) == (int(row["eval_steps"]), 32)
        amount, unit = row["warmup"].split()
        assert (train.warmup_ratio if unit == "ratio" else train.warmup_steps) == float(amount)
        assert config.seed == int(row["seed"])


def test_paper_ranks_are_the_default():
    for task in TASKS:
        method = resolve([f"task={task}", "method=lora2"]).config.method
        assert isinstance(method, Lora2) and method.r == 8


def test_published_step_counts_are_fitted_to_a_shorter_run():
    resolved = resolve(["task=rte", "method=lora2", "train.max_steps=390"])
    method, train = resolved.config.method, resolved.config.train
    assert isinstance(method, Lora2)
    assert (method.tinit, method.tfinal, train.warmup_steps, train.eval_steps) == (60, 180, 20, 10)
    assert len(resolved.notes) == 4


def test_typed_step_counts_are_left_alone():
    words = ["task=rte", "method=lora2", "train.max_steps=390", "method.tinit=7"]
    method = resolve(words).config.method
    assert isinstance(method, Lora2) and (method.tinit, method.tfinal) == (7, 180)


def test_a_typed_warmup_ratio_takes_the_place_of_published_steps():
    train = resolve(["task=rte", "method=lora2", "train.warmup_ratio=0.1"]).config.train
    assert (train.warmup_ratio, train.warmup_steps) == (0.1, 0)


def test_everything_wrong_is_said_at_once():
    found = refused(
        "task=rte", "method=lora2", "method.kk=1", "method.target_r=9", "train.batch_size=x",
        "train.precision=fp8", "seed=-1", "backbone.path=./nowhere",
    )  # fmt: skip
    assert "did you mean k?" in found["method.kk"]
    assert "at most method.r, which is 8" in found["method.target_r"]
    assert set(found) == {
        "method.kk", "method.target_r", "train.batch_size", "train.precision", "seed",
        "backbone.path",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "key", "allowed"),
    [
        (["task=rtee", "method=lora2"], "task", "did you mean rte?"),
        (["task=rte"], "method", "allowed: adalora"),
        (["task=rte", "method=lora2", "lr=1"], "lr", "unknown key"),
        (["task=rte", "method=lora2", "method.r=0"], "method.r", "greater than or equal to 1"),
        (["task=rte", "method=lora2", "method.r=1.5"], "method.r", "valid integer"),
        (["task=rte", "method=lora2", "method.k=1,2"], "method.k", "valid integer"),
        (["task=rte", "method=lora2", "nonsense"], "command line", "key=value"),
        (["task=rte", "method=lora2", "method.tinit=5000"], "method.tinit + method.tfinal", "3900"),
        (["task=rte", "method=lora2", "data.source=folder"], "data.dir", "data.dir=DIR"),
        (["task=rte", "method=lora2", "data.dir=./nowhere"], "data.dir", "existing folder"),
        (
            ["task=rte", "method=lora2", "train.micro_batch_size=5"],
            "train.micro_batch_size",
            "divisor of 32",
        ),
        (
            ["task=rte", "method=lora2", "method.target_modules=[querry]"],
            "method.target_modules.0",
            "'query'",
        ),
        (
            ["task=rte", "method=lora2", "backbone=embedded", "data.source=hub"],
            "data.source",
            "embedded data",
        ),
        (["task=rte", "method=sora", "method.xi_stages=9999"], "method.xi_stages", "3900 steps"),
        (["task=rte", "method=sora", "train.lr_scheduler=cosine"], "train.lr_scheduler", "gates"),
        (
            ["task=rte", "method=lora", "train.warmup_steps=9"],
            "train.warmup_ratio",
            "0 beside train.warmup_steps",
        ),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(words, key, allowed):
    found = refused(*words)
    assert key in found
    assert allowed in found[key]


def test_missing_folder_file_lists_what_is_there(tmp_path):
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train_subset.parquet").touch()
    found = refused("task=rte", "method=lora2", f"data.dir={tmp_path}")
    assert "train_subset" in found["data.train"]


def test_hash_ignores_where_results_go_and_nothing_else():
    words = ["task=rte", "method=lora2", "backbone=embedded"]
    base = resolve(words).config
    assert config_hash(resolve([*words, "results.dir=elsewhere"]).config) == config_hash(base)
    for change in ("seed=7", "method.k=1", "train.learning_rate=1e-3", "protocol=public"):
        assert config_hash(resolve([*words, change]).config) != config_hash(base)
    assert run_name(base).startswith("rte-lora2-s6-")


def test_a_patch_changes_single_arguments_of_a_peft_method(tmp_path):
    shutil.copytree(parse.CONFIGS, tmp_path / "configs")
    file = tmp_path / "configs/method/vera.yaml"
    text = "  - for: {protocol: equal}\n"
    patch = "    method: {args: {save_projection: false}}\n"
    file.write_text(file.read_text().replace(text, text + patch))
    words = ["task=rte", "method=vera", "protocol=equal"]
    assert resolve(words, tmp_path / "configs").config.method.args == {
        "r": 256, "save_projection": False,
    }  # fmt: skip


def test_a_resolved_configuration_survives_yaml():
    config = resolve(["task=stsb", "method=peft", "method.type=VERA", "method.args.r=8"]).config
    assert build(yaml.safe_load(yaml.safe_dump(as_tree(config)))) == config


RANKS = [
    # words that change the rank, the file's rank and lora_alpha
    ("lora", ("method.r=1",), 8, 16),
    ("sora", ("method.r=2",), 8, 16),
    ("adalora", ("method.init_r=3", "method.target_r=2"), 12, 32),
    ("adalora", ("ranks=public",), 12, 32),
    ("lora2", ("ranks=public",), 8, 32),
    ("lora_xs", ("method.r=4",), 16, 16),
]


@pytest.mark.parametrize(("method", "words", "rank", "alpha"), RANKS)
def test_protocol_equal_keeps_the_scale_of_the_file_at_every_rank(method, words, rank, alpha):
    def scaled(*more):
        resolved = resolve(["task=rte", f"method={method}", "protocol=equal", *more])
        notes = [note for note in resolved.notes if "method.lora_alpha" in note]
        return resolved.config, notes

    own, no_notes = scaled()
    assert (own.method.lora_alpha, no_notes) == (alpha, [])
    changed, notes = scaled(*words)
    new = changed.method.init_r if method == "adalora" else changed.method.r
    assert new != rank and changed.method.lora_alpha / new == pytest.approx(alpha / rank)
    assert len(notes) == 1 and f"method.lora_alpha: {alpha} -> " in notes[0]
    typed, no_notes = scaled(*words, "method.lora_alpha=7")
    assert (typed.method.lora_alpha, no_notes) == (7, [])
    public, no_notes = scaled(*words, "protocol=public")
    assert (public.method.lora_alpha, no_notes) == (alpha, [])


@pytest.mark.parametrize("method", ["lora", "sora", "lora2", "adalora"])
def test_the_files_own_rank_typed_is_the_same_run(method):
    words = ["task=cola", f"method={method}", "backbone=embedded"]
    base = resolve(words)
    key = "init_r" if method == "adalora" else "r"
    typed = resolve([*words, f"method.{key}={getattr(base.config.method, key)}"])
    assert config_hash(typed.config) == config_hash(base.config) and typed.notes == base.notes


def test_recorded_runs_have_the_same_hash_today():
    """A new key of the schema renames no run that was made before it."""
    tables = sorted((ROOT / "results").glob("*/runs.csv"))
    rows = [row for table in tables for row in csv.DictReader(table.open(newline=""))]
    configs = [json.loads(row["config"]) for row in rows]
    assert sum("backbone.path" in config for config in configs) > 100
    for row, config in zip(rows, configs, strict=True):
        tree: dict = {}
        paths = dict.fromkeys(("backbone.path", "data.dir"), "left out")
        for key, value in {**paths, **config}.items():
            set_value(tree, key, value)
        same = config_hash(build(tree)) == row["config_hash"]
        # Absolute paths are in the hash, but not in the row.
        assert same == ("backbone.path" in config), row["run"]


def test_refusal_is_quick_and_has_no_traceback():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "scripts/run_glue.py", "task=rte", "method=lora2", "method.kk=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "method.kk = 1: unknown key; did you mean k?" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - start < 10  # under 3 s alone; tests share the machine


def test_configuration_and_a_worker_that_waits_need_no_torch():
    code = "import sys, lora2.sweep.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("-1", -1), ("1_000", 1000), ("007", 7), ("0x10", "0x10"), ("1:30", "1:30"),
        ("1e-3", 1e-3), ("2.", 2.0), (".5", 0.5), ("1e999", float("inf")), ("-inf", -float("inf")),
        ("true", True), ("False", False), ("yes", "yes"), ("null", None), ("", ""),
        (" a b ", "a b"),
        ("'8'", "8"), ('"a, b"', "a, b"), ("'it''s'", "it's"), ("'a: ~ ='", "a: ~ ="),
        ("[query,key]", ["query", "key"]), ("[1, 1e-3, null, '2']", [1, 1e-3, None, "2"]),
        ("[]", []), ("{}", {}), ("{r: 8, b: [x]}", {"r": 8, "b": ["x"]}), ("~/a", "~/a"),
        ("{u: 'x,a:y', v: http://z}", {"u": "x,a:y", "v": "http://z"}), ("[a:b]", ["a:b"]),
        ("[[1],[2,a b]]", [[1], [2, "a b"]]), ("2024-01-01", "2024-01-01"),
    ],
)  # fmt: skip
def test_words_are_read_as_values(text, value):
    found = word_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["'a", "'a' 'b'", "[a", "{a", "[*a]"])
def test_open_brackets_and_quotes_are_refused(text):
    with pytest.raises(ValueError):
        word_value(text)


def test_rows_of_table_1_with_unchanged_settings_find_their_committed_runs():
    with open(ROOT / "results/embedded/runs.csv", newline="") as file:
        hashes = {row["config_hash"] for row in csv.DictReader(file)}
    cells = jobs(load_table("1"), load_profile("embedded"), [1])
    found = Counter(c.row for c in cells if config_hash(c.resolved.config) in hashes)
    for row in ("full", "bitfit", "lora-xs", "sora-r8"):  # others have new rates since
        assert found[row] == 8
