"""Meanings (`Frame`) and the ways to say them: statements, questions and film reviews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy

from lora2.embedded import lexicon as lex
from lora2.embedded.lexicon import Concept

T = TypeVar("T")
Words = list[str]
QUESTIONS = ("where", "when", "who", "what", "how many", "whether")
# Places take the preposition that suits them, so it tells nothing that the noun does not.
_IN, _NEAR = ("city", "garden"), ("station", "river", "road")


def pick(rng: numpy.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly."""
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class Thing:
    """A noun phrase: 'the' (amount None) or an amount or number, an adjective or none, a noun."""

    noun: Concept
    plural: bool
    amount: Concept | None = None
    adjective: Concept | None = None


@dataclass(frozen=True)
class Frame:
    """Who did what, and where or when; `present` is the tense, `denied` the polarity."""

    subject: Thing
    verb: Concept
    target: Thing
    adjunct: Concept | None
    present: bool
    denied: bool


def other(rng: numpy.random.Generator, concept: Concept, genre: int | None = None) -> Concept:
    """Another concept of the same kind (and genre, where given)."""
    pool = lex.OF_KIND[concept.kind]
    while True:
        found = pick(rng, pool)
        if found.name != concept.name and genre in (None, found.genre):
            return found


def random_frame(rng: numpy.random.Generator, genre: int | None = None, rich: float = 0.5) -> Frame:
    """A meaning; each optional part is there with probability `rich`."""

    def noun(pool: Sequence[Concept]) -> Concept:
        while True:
            found = pick(rng, pool)
            if genre in (None, found.genre):
                return found

    def thing(nouns: Sequence[Concept], adjectives: Sequence[Concept]) -> Thing:
        amount = None
        if rng.random() < rich:
            amount = pick(rng, lex.NUMBERS if rng.random() < 0.6 else lex.AMOUNTS)
        plural = amount is not None or rng.random() < 0.4
        adjective = pick(rng, adjectives) if rng.random() < rich else None
        return Thing(noun(nouns), plural, amount, adjective)

    subject = replace(thing(lex.PEOPLE, lex.PERSON_ADJECTIVES), amount=None)
    target = thing(lex.THINGS, lex.THING_ADJECTIVES)
    adjunct = None
    if rng.random() < 0.3 + 0.7 * rich:
        adjunct = pick(rng, lex.PLACES if rng.random() < 0.6 else lex.TIMES)
    verb = pick(rng, lex.VERBS)
    return Frame(subject, verb, target, adjunct, rng.random() < 0.35, rng.random() < 0.2)


def _word(rng: numpy.random.Generator, concept: Concept, form: int = 0) -> str:
    return pick(rng, concept.forms)[form]


def _phrase(rng: numpy.random.Generator, thing: Thing, quantity: bool = True) -> Words:
    words = []
    if quantity:
        one = "a" if rng.random() < 0.5 else "the"
        words.append(_word(rng, thing.amount) if thing.amount else "the" if thing.plural else one)
    if thing.adjective:
        words.append(_word(rng, thing.adjective))
    return [*words, _word(rng, thing.noun, int(thing.plural))]


def _adjunct(rng: numpy.random.Generator, concept: Concept | None) -> Words:
    if concept is None:
        return []
    if concept.kind == "time":
        return ["at", _word(rng, concept)]
    preposition = "in" if concept.name in _IN else "near" if concept.name in _NEAR else "at"
    return [preposition, "the", _word(rng, concept)]


def _articles(words: Words) -> str:
    for i in range(len(words) - 1):
        if words[i] == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    return " ".join(words)


def _do(frame: Frame, plural: bool) -> str:
    return ("do" if plural else "does") if frame.present else "did"


def _mark(rng: numpy.random.Generator, frame: Frame) -> Words:
    if frame.denied:
        return [pick(rng, lex.DENIALS)]
    return [pick(rng, lex.STRESSES)] if rng.random() < 0.15 else []


def _active(rng: numpy.random.Generator, frame: Frame, plural: bool) -> Words:
    """The verb with its polarity: 'did not buy', 'never bought', 'indeed buys'."""
    mark = _mark(rng, frame)
    if mark in (["not"], ["indeed"]):
        return [_do(frame, plural), *mark, _word(rng, frame.verb)]
    form = (0 if plural else 1) if frame.present else 2
    return [*mark, _word(rng, frame.verb, form)]


def statement(rng: numpy.random.Generator, frame: Frame, agent: bool = True) -> str:
    """One way to say `frame`: active or passive, adjunct first or last, any synonyms."""
    subject, target = _phrase(rng, frame.subject), _phrase(rng, frame.target)
    if not agent or rng.random() < 0.25:
        be = ("is", "are") if frame.present else ("was", "were")
        verb = [be[frame.target.plural], *_mark(rng, frame), _word(rng, frame.verb, 2)]
        words = [*target, *verb, *(["by", *subject] if agent else [])]
    else:
        words = [*subject, *_active(rng, frame, frame.subject.plural), *target]
    adjunct = _adjunct(rng, frame.adjunct)
    return _articles([*adjunct, *words] if rng.random() < 0.25 else [*words, *adjunct])


def question(rng: numpy.random.Generator, frame: Frame, kind: str) -> str:
    """A question (one of `QUESTIONS`) that `frame` answers; it does not tell the answer."""
    subject = _phrase(rng, frame.subject)
    do = _do(frame, frame.subject.plural)
    adjunct = _adjunct(rng, frame.adjunct)
    if kind == "who":
        verb = _active(rng, replace(frame, denied=False), plural=False)
        return _articles(["who", *verb, *_phrase(rng, frame.target), *adjunct])
    rest = [do, *subject, _word(rng, frame.verb)]
    if kind in ("where", "when"):
        return _articles([kind, *rest, *_phrase(rng, frame.target)])
    if kind == "what":
        return _articles(["what", *rest, *adjunct])
    if kind == "how many":
        several = replace(frame.target, plural=True)
        return _articles(["how", "many", *_phrase(rng, several, quantity=False), *rest, *adjunct])
    return _articles([*rest, *_phrase(rng, frame.target), *adjunct])


def review(rng: numpy.random.Generator, good: bool) -> str:
    """A sentence about a film whose last word on it is praise (`good`) or blame."""

    def adjective(praise: bool) -> str:
        return pick(rng, lex.PRAISE if praise else lex.BLAME)

    def noun(praise: bool) -> str:
        return pick(rng, lex.PRAISE_NOUNS if praise else lex.BLAME_NOUNS)

    def degree() -> Words:
        return [pick(rng, ("very", "quite", "rather"))] if rng.random() < 0.3 else []

    def clause(praise: bool) -> Words:
        subject = [pick(rng, ("the", "this")), pick(rng, lex.FILM_NOUNS)]
        form = int(rng.random() * 10)
        if form == 0:
            return [*subject, "is", pick(rng, ("never", "hardly", "not")), adjective(not praise)]
        if form == 1:
            far = pick(rng, (["far", "from"], ["anything", "but"]))
            return [*subject, "is", *far, adjective(not praise)]
        if form == 2:
            return [*subject, "is", "not", "a", noun(not praise)]
        if form < 6:
            return [*subject, "is", "a", adjective(praise), noun(praise)]
        return [*subject, "is", *degree(), adjective(praise)]

    form = int(rng.random() * 8)
    if form > 4:
        words = [*clause(good), "and", adjective(good), "from", "start", "to", "end"]
    elif form == 1:
        words = [*clause(not good), "but", *clause(good)]
    elif form == 2:
        head = ["although", "the", pick(rng, lex.FILM_NOUNS), "is", adjective(not good)]
        words = [*head, *clause(good)]
    else:
        words = [*clause(good), "and", *clause(good)]
    return _articles(words)
