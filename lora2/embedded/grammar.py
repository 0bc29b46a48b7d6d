"""The embedded GLUE: eight small tasks with the columns and codes of nyu-mll/glue.

Sentences are divided once and for all between training and validation by a checksum of their
text (`side_of`), so no sentence of a validation split occurs in a training split of any task,
nor in the text the encoders are pretrained on.
"""

from __future__ import annotations

import functools
import zlib
from typing import TYPE_CHECKING, Any

import numpy
from numpy.random import Generator

from lora2.embedded import lexicon as lex
from lora2.embedded import sentences as say
from lora2.embedded.sentences import pick

if TYPE_CHECKING:
    import pandas

# task -> (rows to train on, rows of each validation split)
ROWS = {
    "cola": (1600, 400), "sst2": (1600, 400), "mrpc": (2000, 400), "qqp": (2000, 400),
    "stsb": (1600, 400), "mnli": (2000, 400), "qnli": (2000, 400), "rte": (1600, 300),
}  # fmt: skip
TEST_SPLITS = ("test", "test_matched", "test_mismatched", "ax")  # see lora2.glue.tasks
_PAIR = ("sentence1", "sentence2")
COLUMNS = {
    "cola": ("sentence",), "sst2": ("sentence",), "mrpc": _PAIR, "stsb": _PAIR, "rte": _PAIR,
    "qqp": ("question1", "question2"), "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
}  # fmt: skip
_SEED = 2408_06854
Example = tuple[Any, ...]  # label, then a function that words it for each text column


def splits(task: str) -> tuple[str, ...]:
    matched = ("validation_matched", "validation_mismatched")
    return ("train", *(matched if task == "mnli" else ("validation",)))


def side_of(text: str) -> str:
    """Return 'validation' for a third of all sentences, 'train' for the others."""
    return "validation" if zlib.crc32(text.encode()) % 3 == 0 else "train"


def _ungrammatical(rng: Generator, text: str) -> str:
    """Add one error: a wrong inflection or auxiliary, a swap, a lost or doubled word."""
    words = text.split()
    way = int(rng.random() * 10)
    if way < 6:
        kinds = [lex.THESAURUS[w][0].kind if w in lex.THESAURUS else "" for w in words]
        at = [i for i, w in enumerate(words) if w in lex.AGREEMENT or kinds[i] == "verb"]
        if at:
            i = pick(rng, at)
            words[i] = lex.AGREEMENT.get(words[i]) or pick(rng, lex.other_forms(words[i]))
            return " ".join(words)
    i = int(rng.random() * (len(words) - 1))
    at = [j for j, w in enumerate(words) if w in ("the", "at", "near", "in", "by")]
    if way < 8:
        words[i], words[i + 1] = words[i + 1], words[i]
    elif way == 8 and at:
        del words[pick(rng, at)]
    else:
        words.insert(i, words[i])
    return " ".join(words)


def _statements(rng: Generator, label: float, first: say.Frame, second: say.Frame) -> Example:
    return label, lambda: say.statement(rng, first), lambda: say.statement(rng, second)


def _cola(rng: Generator, genre: int | None) -> Example:
    good = rng.random() < 0.57
    frame = say.random_frame(rng)

    def text() -> str:
        right = say.statement(rng, frame)
        return right if good else _ungrammatical(rng, right)

    return int(good), text


def _sst2(rng: Generator, genre: int | None) -> Example:
    good = rng.random() < 0.54
    return int(good), lambda: say.review(rng, good)


def _mrpc(rng: Generator, genre: int | None) -> Example:
    same = rng.random() < 0.56
    frame = say.random_frame(rng)
    second = frame if same else say.changed(rng, frame)
    if not same and rng.random() < 0.5:
        second = say.changed(rng, second)
    return _statements(rng, int(same), frame, second)


def _qqp(rng: Generator, genre: int | None) -> Example:
    same = rng.random() < 0.45
    frame, kind = say.random_frame(rng), pick(rng, say.QUESTIONS)
    second, second_kind = frame, kind
    if not same and rng.random() < 0.3:
        second_kind = pick(rng, [k for k in say.QUESTIONS if k != kind])
    elif not same:
        second = say.changed(rng, frame, say.ASKED[kind])
        if rng.random() < 0.5:
            second = say.changed(rng, second, say.ASKED[kind])
    words = (lambda: say.question(rng, frame, kind), lambda: say.question(rng, second, second_kind))
    return int(same), *words


def _similarity(first: say.Frame, second: say.Frame) -> float:
    """Score the weight of shared parts from 0 (nothing) to 5 (same meaning), in steps of 0.2."""
    weights = {slot: 2 if slot in ("subject", "verb", "target") else 1 for slot in say.SLOTS}
    parts = [(w, say.value(first, slot), say.value(second, slot)) for slot, w in weights.items()]
    present = sum(w for w, a, b in parts if a is not None or b is not None)
    share = sum(w for w, a, b in parts if a is not None and a == b) / present
    return round(5 * max(0.0, (share - 0.3) / 0.7) * 5) / 5


def _stsb(rng: Generator, genre: int | None) -> Example:
    frame = second = say.random_frame(rng)
    for _ in range(int(rng.random() * 6)):
        second = say.changed(rng, second)
    return _statements(rng, _similarity(frame, second), frame, second)


def _mnli(rng: Generator, genre: int | None) -> Example:
    label = int(rng.random() * 3)
    frame = say.random_frame(rng, genre, rich=0.7)
    second = say.weakened(rng, frame)
    if label == 1:
        frame, second = say.unsupported(rng, frame)
    elif label == 2:
        second = say.contradicted(rng, second)
    return _statements(rng, label, frame, second)


def _rte(rng: Generator, genre: int | None) -> Example:
    follows = rng.random() < 0.53
    frame = say.random_frame(rng, rich=0.7)
    second = say.weakened(rng, frame)
    if not follows and rng.random() < 0.5:
        frame, second = say.unsupported(rng, frame)
    elif not follows:
        second = say.contradicted(rng, second)
    return _statements(rng, int(not follows), frame, second)


def _qnli(rng: Generator, genre: int | None) -> Example:
    answered = rng.random() < 0.48
    kind = pick(rng, ("where", "when", "who", "how many"))
    frame = say.with_answer(rng, say.random_frame(rng), kind)
    second, agent = frame, True
    if not answered and rng.random() < 0.5:
        second, agent = say.without_answer(rng, frame, kind), kind != "who"
    elif not answered:
        asked = [slot for slot in ("subject", "verb", "target") if slot in say.ASKED[kind]]
        second = say.changed(rng, frame, asked)
    words = (lambda: say.question(rng, frame, kind), lambda: say.statement(rng, second, agent))
    return int(not answered), *words


_MAKERS = {
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "qqp": _qqp, "stsb": _stsb, "mnli": _mnli,
    "qnli": _qnli, "rte": _rte,
}  # fmt: skip


def make_split(task: str, split: str) -> pandas.DataFrame:
    """Make one split of an embedded GLUE task, always the same rows; ValueError for no such split.

    Columns and codes are those of nyu-mll/glue: the text columns of ``COLUMNS``, ``label`` (int64;
    float32 from 0 to 5 for stsb) and ``idx`` (int32). MNLI's mismatched split is about people and
    things that its training split never names.
    """
    return _split(task, split).copy()


@functools.cache
def _split(task: str, split: str) -> pandas.DataFrame:
    """Make a split once per process: it takes as long as about ten training steps."""
    import pandas  # takes half a second, which the row counts do not need

    if task not in ROWS or split not in (*splits(task), *TEST_SPLITS):
        names = ", ".join(f"{t}: {' '.join(splits(t))}" for t in ROWS)
        raise ValueError(f"no embedded split {task!r}/{split!r}; choose from {names}")
    side, rows = ("train", ROWS[task][0]) if split == "train" else ("validation", ROWS[task][1])
    rng = numpy.random.default_rng([_SEED, zlib.crc32(task.encode()), zlib.crc32(split.encode())])
    genre = int(split.endswith("mismatched")) if task == "mnli" else None
    labels: dict[tuple[str, ...], float] = {}
    while len(labels) < rows:
        label, *writers = _MAKERS[task](rng, genre)
        texts = tuple(  # a wording that belongs to the side, in at most 12 tries
            next((text for text in (write() for _ in range(12)) if side_of(text) == side), None)
            for write in writers
        )
        if None not in texts and texts not in labels:
            labels[texts] = label
    frame = pandas.DataFrame(list(labels), columns=list(COLUMNS[task]))
    frame["label"] = numpy.array(list(labels.values()), "float32" if task == "stsb" else "int64")
    frame["idx"] = numpy.arange(rows, dtype="int32")
    return frame
