"""What is compared: the same rows and batch size, padded to the full length or as the run does."""

from __future__ import annotations

import pytest

from lora2.bench.step import Stepper
from lora2.experiment import speed
from lora2.experiment.problems import ConfigError

WORDS = ["task=cola", "method=lora2", "backbone=embedded", "train.batch_size=16"]


def test_three_ways_take_turns_on_batches_of_their_own_width(monkeypatch, tmp_path):
    turns = []

    def step(self, batch):
        turns.append((self.model.training, *batch["input_ids"].shape))

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    ways = speed.measure([*WORDS, f"results.dir={tmp_path}"], 3)
    assert [way.name for way in ways] == [
        "padded to 32, fp32", "as typed", "and train.group_by_length=true",
    ]  # fmt: skip
    assert len(turns) == 3 * (3 + speed.WARM_UP)
    assert all(training and rows == 16 for training, rows, _ in turns)
    padded, typed, grouped = ([width for *_, width in turns[i::3]] for i in range(3))
    assert set(padded) == {32}
    assert max(typed) < 20 and min(grouped) < min(typed)
    for way, size in zip(ways, (16, 128, 128), strict=True):
        assert [n for n, _ in way.trained] == [16] * 3
        assert [n for n, _ in way.evaluated] == [size] * 3


def test_ratio_is_of_examples_a_second():
    one = speed.Way("one", print, print, trained=[(10, 2.0), (10, 3.0)], evaluated=[(10, 1.0)])
    two = speed.Way("two", print, print, trained=[(10, 1.0), (20, 2.0)], evaluated=[(30, 1.0)])
    expected = "training 10.0 examples/s (2.50 x), evaluation 30.0 examples/s (3.00 x)"
    assert speed.describe(two, one) == f"  two: {expected}"


def test_what_is_typed_or_lacking_is_not_turned_on(monkeypatch):
    added = ["train.group_by_length=true"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert speed.fastest(WORDS) == WORDS + added
    typed = [*WORDS, "train.group_by_length=null"]
    assert speed.fastest(typed) == typed
    monkeypatch.setattr(speed, "check_device", lambda config: None)
    added += ["train.precision=bf16"]
    assert speed.fastest(WORDS) == WORDS + added


def test_wrong_words_are_named(capsys):
    assert speed.main(["task=mrpc", "method=lora3"]) == 2
    assert "method = 'lora3'" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        speed.measure(["task=mrpc"], 1)


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "", "²", 10 * "9"])
def test_a_number_of_steps_that_is_none_is_refused(value, capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("measured"))
    assert speed.main([*WORDS, f"steps={value}"]) == 2
    assert f"steps = {value!r}: allowed: a whole number >= 1" in capsys.readouterr().err


def test_the_last_number_of_steps_counts_and_none_is_ten():
    assert speed.split_words(["steps=3", *WORDS, "steps=1"]) == (WORDS, 1)
    assert speed.split_words(WORDS) == (WORDS, 10)


def test_one_step_is_enough(monkeypatch, tmp_path, capsys):
    widths = []
    monkeypatch.setattr(Stepper, "step", lambda self, batch: widths.append(len(batch["labels"])))
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert speed.main([*WORDS, f"results.dir={tmp_path}", "steps=1"]) == 0
    assert len(widths) == 3 * (1 + speed.WARM_UP)
    assert capsys.readouterr().out.count("examples/s") == 2 * 3


def test_batches_are_spread_over_the_epoch():
    assert speed.spread(list(range(20)), 4, 3) == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]
    assert speed.spread([5, 6], 4, 2) == [[5, 6], [5, 6]]
    assert speed.spread(list(range(12)), 4, 1) == [[4, 5, 6, 7]]
