"""Wrong words are refused in the first seconds, by name, with what is allowed; none is accepted."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import bad_words_by_hand as by_hand
from tests.faults import refusals
from tests.faults.bad_words import Wrong, base, from_schema
from tests.faults.refusals import ACCEPTED, ROOT

FROM_SCHEMA = list(from_schema())
SCRIPTS = ["run_glue", "reproduce"]
HEAVY = {"torch", "transformers", "peft", "datasets", "pandas", "sklearn", "matplotlib"}


def faults(cases: list[Wrong]) -> list[str]:
    found = (refusals.fault(one, *refusals.call(one.script, one.words)) for one in cases)
    return [fault for fault in found if fault]


def test_there_are_enough_of_them():
    lines = {(one.script, *one.words) for one in (*FROM_SCHEMA, *by_hand.ALL)}
    assert len(lines) >= 600
    assert len(by_hand.ALL) >= 150


def test_a_run_cut_short_by_a_later_word_keeps_the_intervals_of_its_plan():
    words = [*base(), "train.eval_steps=60", "train.save_steps=60", "train.max_steps=20"]
    assert refusals.call("run_glue", words)[0] == ACCEPTED
    assert refusals.call("run_glue", [*words, "train.eval_steps=60"])[0] == 2


def test_every_key_refuses_other_types_ranges_and_spellings():
    assert faults(FROM_SCHEMA) == []


@pytest.mark.parametrize("kind", ["WORDS", "ONE_PLACE", "ATTENTION", "TOGETHER", "SWEEPS"])
def test_what_was_typed_wrong_is_named_with_what_is_allowed(kind):
    assert faults(getattr(by_hand, kind)) == []


@pytest.mark.parametrize(
    "one",
    [by_hand.WORDS[0], by_hand.TOGETHER[0], by_hand.SWEEPS[0], by_hand.SWEEPS[-1]],
    ids=str,
)
def test_a_process_answers_in_time_and_imports_nothing_heavy(one):
    path = f"scripts/{one.script}.py"
    code = (
        f"import runpy, sys; sys.argv = {[path, *one.words]!r}\n"
        f"try: runpy.run_path({path!r}, run_name='__main__')\n"
        f"finally: print({HEAVY!r} & sys.modules.keys())"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, not of the clock, which other tests and programs share.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert refusals.fault(one, done.returncode, done.stderr, seconds) is None
    assert done.stdout.splitlines()[-1] == "set()"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.sampled_from(SCRIPTS))
def test_any_words_at_all_are_refused_without_a_traceback(words, script):
    code, printed, _ = refusals.call(script, words)
    assert code == 2 or {"-h", "--help"} & set(words)
    assert " = " in printed or code == 0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["seed", "train.batch_size", "method.k", "train.learning_rate"]), st.text())
def test_any_text_in_the_place_of_a_number_is_taken_only_if_it_is_one(key, text):
    code, printed, _ = refusals.call("run_glue", [*base(), f"{key}={text}"])
    if code != 2:
        assert code == ACCEPTED and float(text) >= 0
    else:
        assert f"  {key} = " in printed or "  command line = " in printed
