"""The embedded GLUE: eight small tasks with the columns and codes of nyu-mll/glue.

Sentences are divided once and for all between training and validation by a checksum of their
text (`side_of`), so no sentence of a validation split occurs in a training split of any task,
nor in the text the encoders are pretrained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy
from numpy.random import Generator

from lora2.embedded import sentences as say
from lora2.embedded import variation as vary
from lora2.embedded.sentences import pick

if TYPE_CHECKING:
    import pandas

# task -> (rows to train on, rows of each validation split)
ROWS = {
    "cola": (1600, 400),
    "sst2": (1600, 400),
    "mrpc": (2000, 400),
    "qqp": (2000, 400),
    "stsb": (1600, 400),
    "mnli": (2000, 400),
    "qnli": (2000, 400),
    "rte": (1600, 300),
}
COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
_SEED = 2408_06854
Example = tuple[float, Callable[[], str], Callable[[], str] | None]


def splits(task: str) -> tuple[str, ...]:
    """The names of `task`'s splits."""
    if task == "mnli":
        return ("train", "validation_matched", "validation_mismatched")
    return ("train", "validation")


def side_of(text: str) -> str:
    """'validation' for a third of all sentences, 'train' for the others."""
    return "validation" if zlib.crc32(text.encode()) % 3 == 0 else "train"


def _cola(rng: Generator, genre: int | None) -> Example:
    good = rng.random() < 0.57
    frame = say.random_frame(rng)

    def text() -> str:
        right = say.statement(rng, frame)
        return right if good else vary.ungrammatical(rng, right)

    return int(good), text, None


def _sst2(rng: Generator, genre: int | None) -> Example:
    good = rng.random() < 0.54
    return int(good), lambda: say.review(rng, good), None


def _mrpc(rng: Generator, genre: int | None) -> Example:
    same = rng.random() < 0.56
    frame = say.random_frame(rng)
    second = frame if same else vary.changed(rng, frame)
    if not same and rng.random() < 0.5:
        second = vary.changed(rng, second)
    return int(same), lambda: say.statement(rng, frame), lambda: say.statement(rng, second)


def _qqp(rng: Generator, genre: int | None) -> Example:
    same = rng.random() < 0.45
    frame, kind = say.random_frame(rng), pick(rng, say.QUESTIONS)
    second, second_kind = frame, kind
    if not same and rng.random() < 0.3:
        second_kind = pick(rng, [k for k in say.QUESTIONS if k != kind])
    elif not same:
        second = vary.changed(rng, frame, vary.asked_slots(frame, kind))
        if rng.random() < 0.5:
            second = vary.changed(rng, second, vary.asked_slots(frame, kind))
    return (
        int(same),
        lambda: say.question(rng, frame, kind),
        lambda: say.question(rng, second, second_kind),
    )


def _stsb(rng: Generator, genre: int | None) -> Example:
    frame = say.random_frame(rng)
    second = frame
    for _ in range(int(rng.random() * 6)):
        second = vary.changed(rng, second)
    return (
        vary.similarity(frame, second),
        lambda: say.statement(rng, frame),
        lambda: say.statement(rng, second),
    )


def _mnli(rng: Generator, genre: int | None) -> Example:
    label = int(rng.random() * 3)
    frame = say.random_frame(rng, genre, rich=0.7)
    second = vary.weakened(rng, frame)
    if label == 1:
        frame, second = vary.unsupported(rng, frame)
    elif label == 2:
        second = vary.contradicted(rng, second)
    return label, lambda: say.statement(rng, frame), lambda: say.statement(rng, second)


def _rte(rng: Generator, genre: int | None) -> Example:
    follows = rng.random() < 0.53
    frame = say.random_frame(rng, rich=0.7)
    second = vary.weakened(rng, frame)
    if not follows and rng.random() < 0.5:
        frame, second = vary.unsupported(rng, frame)
    elif not follows:
        second = vary.contradicted(rng, second)
    label = int(not follows)
    return label, lambda: say.statement(rng, frame), lambda: say.statement(rng, second)


def _qnli(rng: Generator, genre: int | None) -> Example:
    answered = rng.random() < 0.48
    kind = pick(rng, ("where", "when", "who", "how many"))
    frame = vary.with_answer(rng, say.random_frame(rng), kind)
    second, agent = frame, True
    if not answered and rng.random() < 0.5:
        second, agent = vary.without_answer(rng, frame, kind), kind != "who"
    elif not answered:
        second = vary.changed(rng, frame, ("subject", "verb", "target"), kind)
    return (
        int(not answered),
        lambda: say.question(rng, frame, kind),
        lambda: say.statement(rng, second, agent),
    )


_MAKERS = {
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "qqp": _qqp, "stsb": _stsb, "mnli": _mnli,
    "qnli": _qnli, "rte": _rte,
}  # fmt: skip


def _on_side(write: Callable[[], str], side: str) -> str | None:
    """A wording of `write` on the wanted side of the checksum, None if 12 tries find none."""
    for _ in range(12):
        text = write()
        if side_of(text) == side:
            return text
    return None


def make_split(task: str, split: str) -> pandas.DataFrame:
    """One split of an embedded GLUE task, always the same rows.

    Columns and codes are those of nyu-mll/glue: the text columns of `COLUMNS`, `label` (int64;
    float32 from 0 to 5 for stsb) and `idx` (int32). MNLI's mismatched part talks of people and
    things that its training split never names.

    Raises:
        ValueError: unknown task or split.
    """
    import pandas  # half a second that the row counts alone need not take

    if task not in ROWS or split not in splits(task):
        known = ", ".join(f"{t}: {' '.join(splits(t))}" for t in ROWS)
        raise ValueError(f"no embedded split {task!r}/{split!r}; choose from {known}")
    side, rows = ("train", ROWS[task][0]) if split == "train" else ("validation", ROWS[task][1])
    seed = [_SEED, zlib.crc32(task.encode()), zlib.crc32(split.encode())]
    rng = numpy.random.default_rng(seed)
    genre = int(split == "validation_mismatched") if task == "mnli" else None
    found: dict[tuple[str, ...], float] = {}
    while len(found) < rows:
        label, *writers = _MAKERS[task](rng, genre)
        texts = tuple(_on_side(write, side) for write in writers if write)
        if None not in texts and texts not in found:
            found[texts] = label
    frame = pandas.DataFrame(list(found), columns=list(COLUMNS[task]))
    frame["label"] = numpy.array(list(found.values()), "float32" if task == "stsb" else "int64")
    frame["idx"] = numpy.arange(rows, dtype="int32")
    return frame
