from __future__ import annotations

import pytest
import yaml

from lora2.config.parse import CONFIGS, options
from lora2.config.problems import ConfigError
from lora2.study.spec import load_study, parse_study


@pytest.mark.parametrize("name", options("study"))
def test_every_study_file_gives_its_runs(name):
    request = parse_study([f"study={name}"])
    for part in request.parts:
        for row in part.rows:
            rate = request.study.rates[request.study.source(row)]
            config = request.study.job(part, row, rate, part.seeds[0]).resolved.config
            assert (config.protocol, config.task) == ("equal", part.task)
            assert (config.train.max_steps, config.train.learning_rate) == (part.steps, rate)
    used = {r for question in request.study.questions for pair in question.pairs for r in pair}
    assert used <= {row for part in request.study.parts for row in part.rows}


def test_the_step_of_a_method_does_not_change_with_its_rank():
    study = load_study("small-cpu")
    part = next(part for part in study.parts if part.name == "cola-2000-others")
    scales = {}
    for row in ("lora-r1", "lora-r8", "sora-r1", "sora-r8"):
        method = study.job(part, row, 1e-3, 1).resolved.config.method
        scales[row] = method.lora_alpha / method.r
    assert set(scales.values()) == {2.0}


@pytest.fixture
def changed(tmp_path):
    """configs/ with a changed small-cpu.yaml; returns what loading it says."""

    def load(change):
        folder = tmp_path / "configs"
        folder.mkdir(exist_ok=True)
        for path in CONFIGS.iterdir():
            if not (folder / path.name).exists() and path.name != "study":
                (folder / path.name).symlink_to(path)
        (folder / "study").mkdir(exist_ok=True)
        tree = yaml.safe_load((CONFIGS / "study" / "small-cpu.yaml").read_text())
        change(tree)
        (folder / "study" / "bad.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(ConfigError) as error:
            load_study("bad", folder)
        return str(error.value)

    return load


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["parts"][0]["rows"].append("lora3"), "cola-600.rows = 'lora3'"),
        (lambda t: t["parts"][0].update(seeds=[7]), "selection_seed = 7: allowed: other"),
        (lambda t: t["rates"].pop("lora-r8"), "a rate for lora-r8"),
        (lambda t: t["holdout"].pop("cola"), "holdout = None: allowed: a value for cola"),
        (lambda t: t["margin"].pop("cola"), "margin = None: allowed: a value for cola"),
        (
            lambda t: t["parts"].append(
                dict(t["parts"][0], seeds=[1], rows=["lora-r8"], overrides=[])
            ),
            "parts = 'cola-600': allowed: a name used once",
        ),
        (lambda t: t["parts"][1].update(steps=600), "cola-2000.overrides = "),
        (lambda t: t["questions"][0]["pairs"].append(["x", "lora-r8"]), "questions = 'x'"),
        (lambda t: t["parts"][0].update(step=3), "parts.step = 3: unknown key"),
        (lambda t: t.update(nonsense=1), "nonsense = 1: unknown key"),
    ],
)
def test_a_wrong_study_file_is_refused_by_name(changed, change, says):
    assert says in changed(change)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "study=NAME is missing"),
        ("study=smal", "did you mean small"),
        ("study=small-cpu train.learning_rate=1", "the study's file sets it (rates)"),
        ("study=small-cpu train.weight_decay=1", "only with results.dir=DIR"),
        ("study=small-cpu parts=cola", "parts = 'cola'"),
        ("study=small-cpu rows=lora", "rows = 'lora'"),
        ("study=small-cpu seeds=99", "seeds = 99"),
        ("study=small-cpu only=all", "only = 'all'"),
        ("study=small-cpu parts=cola-600 rows=full", "parts that have these rows and seeds"),
        ("study=small-cpu results.dir=x method.k=3", "sets it by row"),
    ],
)
def test_wrong_words_are_refused_by_name(words, says):
    with pytest.raises(ConfigError) as error:
        parse_study(words.split())
    assert says in str(error.value)
