"""The text the encoders are pretrained on: unlabelled neighbouring sentences of a document.

The stream comes from the same grammar as the tasks but from its own seed, carries no labels and
never holds a sentence of a validation split (`grammar.side_of`). A statement is followed by its
restatement or what follows from it, a question by its rewording or its answer, a review by a
review of the same mind; a quarter of the sentences stand alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy

from lora2.embedded import sentences as say
from lora2.embedded import variation as vary
from lora2.embedded.grammar import side_of

Passage = tuple[str, str | None]


def _passage(rng: numpy.random.Generator) -> Passage:
    genre = int(rng.random() * 2) if rng.random() < 0.3 else None
    frame = say.random_frame(rng, genre, rich=0.4 + 0.5 * rng.random())
    form = rng.random()
    if form < 0.12:
        return say.statement(rng, frame), None
    if form < 0.28:
        return _reviews(rng)
    if form < 0.54:
        kind = say.pick(rng, say.QUESTIONS)
        if rng.random() < 0.5:
            return say.question(rng, frame, kind), say.question(rng, frame, kind)
        if kind not in ("what", "whether"):
            frame = vary.with_answer(rng, frame, kind)
        return say.question(rng, frame, kind), say.statement(rng, frame)
    second_frame = frame if form < 0.84 else vary.weakened(rng, frame)
    return say.statement(rng, frame), say.statement(rng, second_frame)


def _reviews(rng: numpy.random.Generator) -> Passage:
    good = rng.random() < 0.5
    first = say.review(rng, good)
    return first, say.review(rng, good) if rng.random() < 0.5 else None


def _plain(rng: numpy.random.Generator) -> Passage:
    if rng.random() < 0.15:
        return _reviews(rng)
    frame = say.random_frame(rng, rich=0.3)
    return say.statement(rng, frame), say.statement(rng, frame)


def passages(seed: int, plain: int = 0) -> Iterator[Passage]:
    """Endless passages (first sentence, second sentence or None), the same for a seed.

    The first `plain` are reviews and short statements with their restatements: the fewer words
    there are, the sooner two sentences are aligned.
    """
    rng = numpy.random.default_rng(seed)
    for count in itertools.count():
        write = _plain if count < plain else _passage
        passage = write(rng)
        while any(side_of(text) != "train" for text in passage if text):
            passage = write(rng)
        yield passage
