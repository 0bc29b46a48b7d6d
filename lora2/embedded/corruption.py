"""Self-supervised targets: words hidden (to be predicted) and words replaced (to be detected).

Replaced-token detection follows ELECTRA and DeBERTaV3, with the language's thesaurus instead of a
generator network: a word is replaced by a word of the same class and inflection that means
something else. In a second sentence only the first one shows that such a word is wrong, and a
synonym is right, so the detector has to align the two. The word of the first sentence that lost
its counterpart is to be detected as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch

from lora2.embedded import lexicon as lex
from lora2.embedded.corpus import Passage, passages
from lora2.embedded.sentences import other, pick
from lora2.embedded.vocabulary import SPECIALS

IGNORED = -100
_GOOD, _BAD = {*lex.PRAISE, *lex.PRAISE_NOUNS}, {*lex.BLAME, *lex.BLAME_NOUNS}
_SETS = {word: words for words in lex.WORD_SETS for word in words}


@dataclass(frozen=True)
class Batch:
    """Token ids, attention mask, the hidden words' ids and 1 where a word was replaced.

    All are (batch, length) int64; positions without a target hold `IGNORED`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    hidden: torch.Tensor
    replaced: torch.Tensor


def _against(word: str) -> list[str]:
    """The words of the set of `word` that mean another thing: blame for praise, any other else."""
    judging = word in _GOOD or word in _BAD
    same = _GOOD if word in _GOOD else _BAD
    return [w for w in _SETS[word] if w != word and not (judging and w in same)]


def _meaning(rng: numpy.random.Generator, word: str) -> str | None:
    """A word of another meaning that fits in the place of `word`, None for function words."""
    if word in _SETS:
        return pick(rng, _against(word))
    if word not in lex.THESAURUS:
        return None
    concept, form = lex.THESAURUS[word]
    if concept.kind == "polarity":
        i = (lex.DENIALS if concept.name == "not" else lex.STRESSES).index(word)
        return (lex.STRESSES if concept.name == "not" else lex.DENIALS)[i]
    against = lex.opposite(concept)
    new = against if against and rng.random() < 0.5 else other(rng, concept)
    return pick(rng, new.forms)[form]


def _form(rng: numpy.random.Generator, word: str) -> str | None:
    """Another inflection of `word`, None where it has one only."""
    if word not in lex.THESAURUS:
        return lex.AGREEMENT.get(word)
    forms = lex.other_forms(word)
    return pick(rng, forms) if forms else None


def _concept(word: str) -> lex.Concept | str:
    return lex.THESAURUS[word][0] if word in lex.THESAURUS else ""


def corrupt(
    rng: numpy.random.Generator, words: list[str], second: bool
) -> tuple[list[str], list[int], list[bool]]:
    """A sentence's words after corruption, 1 where replaced, True where to be hidden."""
    rate = pick(rng, (0.0, 0.25, 0.5))
    hide = pick(rng, (0.0, 0.15, 0.3))
    new, replaced, hidden = [], [], []
    for word in words:
        found = None
        if rng.random() < rate:
            found = _meaning(rng, word) if second or rng.random() < 0.4 else _form(rng, word)
        new.append(found or word)
        replaced.append(int(found is not None))
        hidden.append(found is None and rng.random() < hide)
    return new, replaced, hidden


class Corruptor:
    """Turns passages into batches for encoder `name`, with a random generator of its own."""

    def __init__(self, name: str, seed: int, plain: int = 0) -> None:
        special = SPECIALS[name]
        words = [*special.values(), *lex.vocabulary()]
        self.ids = {word: i for i, word in enumerate(words)}
        self.cls, self.sep = self.ids[special["cls"]], self.ids[special["sep"]]
        self.pad, self.mask = self.ids[special["pad"]], self.ids[special["mask"]]
        self.middle = [self.sep] * (2 if name == "embedded-roberta" else 1)
        self.rng = numpy.random.default_rng([seed, 1])
        self.stream = passages(seed, plain)

    def row(self, passage: Passage) -> tuple[list[int], list[int], list[int]]:
        """Token ids, hidden ids and replacement marks of one passage, each of its length."""
        first, second = passage
        words = (second or first).split()
        new, marks, hide = corrupt(self.rng, words, second is not None)
        columns = self._columns(words, new, marks, hide)
        end = ([self.sep], [IGNORED], [IGNORED])
        parts = [([self.cls], [IGNORED], [IGNORED]), columns, end]
        if second:
            lost = {_concept(w) for w, mark in zip(words, marks, strict=True) if mark}
            told = first.split()
            marks = [int(_concept(w) in lost and _concept(w) != "") for w in told]
            rate = 0.1 if self.rng.random() < 0.2 else 0.0
            hide = [self.rng.random() < rate for _ in told]
            middle = (self.middle, [IGNORED] * len(self.middle), [IGNORED] * len(self.middle))
            parts[1:1] = [self._columns(told, told, marks, hide), middle]
        return tuple(list(itertools.chain(*(part[i] for part in parts))) for i in range(3))

    def _columns(
        self, words: list[str], new: list[str], marks: list[int], hide: list[bool]
    ) -> tuple[list[int], list[int], list[int]]:
        ids = [self.mask if h else self.ids[w] for w, h in zip(new, hide, strict=True)]
        hidden = [self.ids[w] if h else IGNORED for w, h in zip(words, hide, strict=True)]
        return ids, hidden, [IGNORED if h else m for m, h in zip(marks, hide, strict=True)]

    def batches(self, size: int) -> Iterator[Batch]:
        """Endless batches of `size` passages, padded to the longest."""
        while True:
            rows = [self.row(p) for p in itertools.islice(self.stream, size)]
            length = max(len(ids) for ids, _, _ in rows)
            padded = [
                torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
                for i, fill in enumerate((self.pad, IGNORED, IGNORED))
            ]
            yield Batch(padded[0], (padded[0] != self.pad).long(), padded[1], padded[2])
