"""Wrong words are refused in the first seconds, by name, with what is allowed; none is accepted."""

from __future__ import annotations

import pytest

from tests.faults import bad_words_by_hand as by_hand
from tests.faults import refusals
from tests.faults.bad_words import Wrong, from_schema

FROM_SCHEMA = list(from_schema())


def faults(cases: list[Wrong]) -> list[str]:
    found = (refusals.fault(one, *refusals.call(one.script, one.words)) for one in cases)
    return [fault for fault in found if fault]


def test_there_are_enough_of_them():
    lines = {(one.script, *one.words) for one in (*FROM_SCHEMA, *by_hand.ALL)}
    assert len(lines) >= 600
    assert len(by_hand.ALL) >= 150


def test_every_key_refuses_other_types_ranges_and_spellings():
    assert faults(FROM_SCHEMA) == []


@pytest.mark.parametrize("kind", ["WORDS", "ONE_PLACE", "PUBLISHED", "TOGETHER", "PEFT", "SWEEPS"])
def test_what_was_typed_wrong_is_named_with_what_is_allowed(kind):
    assert faults(getattr(by_hand, kind)) == []
