"""The embedded GLUE has the schema of nyu-mll/glue, is always the same, and does not leak."""

import hashlib
import itertools

import numpy
import pandas
import pytest

from lora2.embedded import grammar, lexicon, make_split
from lora2.embedded.grammar import COLUMNS, ROWS, side_of, splits
from tools.pretrain_embedded import passages

TASKS = sorted(ROWS)
LABELS = {"mnli": {0, 1, 2}}
# A change of the grammar changes what every embedded result means: change this on purpose.
GOLDEN = "ae31f73ac1db52ede218fba9e84e4711942dd75b2095b8b0ca1a02501bfcfd26"


@pytest.fixture(scope="module")
def data() -> dict[tuple[str, str], pandas.DataFrame]:
    return {(task, split): make_split(task, split) for task in TASKS for split in splits(task)}


def texts(frame: pandas.DataFrame, task: str) -> list[tuple[str, ...]]:
    return list(frame[list(COLUMNS[task])].itertuples(index=False, name=None))


@pytest.mark.parametrize("task", TASKS)
def test_schema(data, task):
    for split in splits(task):
        frame = data[task, split]
        assert list(frame.columns) == [*COLUMNS[task], "label", "idx"]
        assert frame.label.dtype == ("float32" if task == "stsb" else "int64")
        assert frame.idx.dtype == "int32" and list(frame.idx) == list(range(len(frame)))
        assert len(frame) == ROWS[task][0 if split == "train" else 1]
        if task == "stsb":
            assert frame.label.min() >= 0 and frame.label.max() == 5 and frame.label.std() > 1
        else:
            assert set(frame.label) == LABELS.get(task, {0, 1})


@pytest.mark.parametrize("task", [t for t in TASKS if t != "stsb"])
def test_majority_class(data, task):
    low, high = (0.33, 0.4) if task == "mnli" else (0.5, 0.61)
    for split in splits(task):
        assert low <= data[task, split].label.value_counts(normalize=True).max() <= high


@pytest.mark.parametrize("task", TASKS)
def test_no_sentence_is_in_both_train_and_validation(data, task):
    rows = {split: texts(data[task, split], task) for split in splits(task)}
    words = {split: set(itertools.chain(*found)) for split, found in rows.items()}
    for split in splits(task):
        assert len(set(rows[split])) == len(rows[split])
        if split != "train":
            assert not words[split] & words["train"]
            assert {side_of(text) for text in words[split]} == {"validation"}


def test_every_word_is_known_and_sentences_are_short(data):
    known = set(lexicon.vocabulary())
    for (task, _), frame in data.items():
        for row in texts(frame, task):
            assert set(" ".join(row).split()) <= known
            assert all(3 <= len(text.split()) <= 16 for text in row)
            assert len(" ".join(row).split()) <= 28


def test_the_same_rows_whatever_the_global_random_state(data):
    numpy.random.seed(1)
    grammar._split.cache_clear()
    pandas.testing.assert_frame_equal(make_split("rte", "train"), data["rte", "train"])
    digest = hashlib.sha256()
    for task, split in sorted(data):
        digest.update(data[task, split].to_csv(lineterminator="\n").encode())
    assert digest.hexdigest() == GOLDEN


def test_a_split_that_was_changed_by_its_user_is_not_handed_to_the_next():
    frame = make_split("rte", "train")
    label = frame.loc[0, "label"]
    frame.loc[0, "label"] = 1 - label
    assert make_split("rte", "train").loc[0, "label"] == label


def test_mismatched_mnli_speaks_of_other_things(data):
    nouns = {w for c in lexicon.THINGS for forms in c.forms for w in forms}
    used = {
        split: set(" ".join(itertools.chain(*texts(data["mnli", split], "mnli"))).split()) & nouns
        for split in splits("mnli")
    }
    assert used["validation_matched"] <= used["train"]
    assert used["validation_mismatched"] and not used["validation_mismatched"] & used["train"]


def test_pretraining_text_holds_no_validation_sentence(data):
    validation = {
        text
        for (task, split), frame in data.items()
        if split != "train"
        for text in itertools.chain(*texts(frame, task))
    }
    read = set(itertools.chain(*itertools.islice(passages(seed=5), 2000))) - {None}
    assert not read & validation
    assert {side_of(text) for text in read} == {"train"}


def test_each_word_has_one_meaning():
    words = [w for c in lexicon.CONCEPTS for forms in c.forms for w in forms]
    plain = [*lexicon.FUNCTION_WORDS, *itertools.chain(*lexicon.WORD_SETS)]
    assert len(set(words)) == len(words)
    assert not set(words) & set(plain) - {"many"}  # an amount, and 'how many'
    for concept in lexicon.CONCEPTS:
        against = lexicon.opposite(concept)
        assert against is None or lexicon.opposite(against) == concept


def test_unknown_splits_are_explained():
    with pytest.raises(ValueError, match="validation_matched"):
        make_split("mnli", "validation")
    with pytest.raises(ValueError, match="choose from"):
        make_split("wnli", "train")
