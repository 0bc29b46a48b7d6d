"""Meanings (`Frame`), the ways to say them, and changes of meaning and of form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from numpy.random import Generator

from lora2.embedded import lexicon as lex
from lora2.embedded.lexicon import Concept

T = TypeVar("T")
Words = list[str]
SLOTS = ("subject", "verb", "target", "amount", "adjective", "owner", "adjunct", "denied")
# Slots inside a noun phrase -> its place in a frame, and its field there.
INSIDE = {
    "subject": ("subject", "noun"), "target": ("target", "noun"), "amount": ("target", "amount"),
    "adjective": ("target", "adjective"), "owner": ("subject", "adjective"),
}  # fmt: skip
ASKED = {  # kind of question -> the slots it mentions, so that changing one changes the question
    "where": SLOTS[:3], "when": SLOTS[:3], "who": ("verb", "target", "adjunct"),
    "what": ("subject", "verb", "adjunct"), "how many": (*SLOTS[:3], "adjunct"),
    "whether": (*SLOTS[:3], "adjunct"),
}  # fmt: skip
QUESTIONS = tuple(ASKED)
# The noun of a place decides its preposition, so that the preposition adds no information.
_IN, _NEAR = ("city", "garden"), ("station", "river", "road")


def pick(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class Thing:
    """A noun with an amount or number (None: 'the' or 'a') and an adjective or none."""

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


def other(rng: Generator, concept: Concept, genre: int | None = None) -> Concept:
    """Draw another concept of the same kind (and genre, where given)."""
    pool = lex.OF_KIND[concept.kind]
    while True:
        drawn = pick(rng, pool)
        if drawn.name != concept.name and genre in (None, drawn.genre):
            return drawn


def random_frame(rng: Generator, genre: int | None = None, rich: float = 0.5) -> Frame:
    """Draw a meaning; each optional part is there with probability ``rich``."""

    def thing(nouns: Sequence[Concept], adjectives: Sequence[Concept]) -> Thing:
        amount = None
        if rng.random() < rich:
            amount = pick(rng, lex.NUMBERS if rng.random() < 0.6 else lex.AMOUNTS)
        plural = amount is not None or rng.random() < 0.4
        adjective = pick(rng, adjectives) if rng.random() < rich else None
        noun = pick(rng, nouns)
        while genre not in (None, noun.genre):
            noun = pick(rng, nouns)
        return Thing(noun, plural, amount, adjective)

    subject = replace(thing(lex.PEOPLE, lex.PERSON_ADJECTIVES), amount=None)
    target = thing(lex.THINGS, lex.THING_ADJECTIVES)
    adjunct = None
    if rng.random() < 0.3 + 0.7 * rich:
        adjunct = pick(rng, lex.PLACES if rng.random() < 0.6 else lex.TIMES)
    verb = pick(rng, lex.VERBS)
    return Frame(subject, verb, target, adjunct, rng.random() < 0.35, rng.random() < 0.2)


def _word(rng: Generator, concept: Concept, form: int = 0) -> str:
    return pick(rng, concept.forms)[form]


def _phrase(rng: Generator, thing: Thing, quantity: bool = True) -> Words:
    words = []
    if quantity:
        article = "a" if rng.random() < 0.5 and not thing.plural else "the"
        words.append(_word(rng, thing.amount) if thing.amount else article)
    if thing.adjective:
        words.append(_word(rng, thing.adjective))
    return [*words, _word(rng, thing.noun, int(thing.plural))]


def _adjunct(rng: Generator, concept: Concept | None) -> Words:
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


def _mark(rng: Generator, frame: Frame) -> Words:
    if frame.denied:
        return [pick(rng, lex.DENIALS)]
    return [pick(rng, lex.STRESSES)] if rng.random() < 0.15 else []


def _active(rng: Generator, frame: Frame, plural: bool) -> Words:
    """Return the verb with its polarity: 'did not buy', 'never bought', 'indeed buys'."""
    mark = _mark(rng, frame)
    if mark in (["not"], ["indeed"]):
        return [_do(frame, plural), *mark, _word(rng, frame.verb)]
    form = (0 if plural else 1) if frame.present else 2
    return [*mark, _word(rng, frame.verb, form)]


def statement(rng: Generator, frame: Frame, agent: bool = True) -> str:
    """Word ``frame``: active or passive, adjunct first or last, any synonyms."""
    subject, target = _phrase(rng, frame.subject), _phrase(rng, frame.target)
    if not agent or rng.random() < 0.25:
        be = ("is", "are") if frame.present else ("was", "were")
        verb = [be[frame.target.plural], *_mark(rng, frame), _word(rng, frame.verb, 2)]
        words = [*target, *verb, *(["by", *subject] if agent else [])]
    else:
        words = [*subject, *_active(rng, frame, frame.subject.plural), *target]
    adjunct = _adjunct(rng, frame.adjunct)
    return _articles([*adjunct, *words] if rng.random() < 0.25 else [*words, *adjunct])


def question(rng: Generator, frame: Frame, kind: str) -> str:
    """Ask a question of ``kind`` that ``frame`` answers, without giving the answer."""
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


def review(rng: Generator, good: bool) -> str:
    """Write a sentence about a film whose final verdict is praise (``good``) or blame."""

    def adjective(praise: bool) -> str:
        return pick(rng, lex.PRAISE if praise else lex.BLAME)

    def noun(praise: bool) -> str:
        return pick(rng, lex.PRAISE_NOUNS if praise else lex.BLAME_NOUNS)

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
        degree = [pick(rng, ("very", "quite", "rather"))] if rng.random() < 0.3 else []
        return [*subject, "is", *degree, adjective(praise)]

    form = int(rng.random() * 8)
    if form > 4:
        return _articles([*clause(good), "and", adjective(good), "from", "start", "to", "end"])
    if form == 1:
        return _articles([*clause(not good), "but", *clause(good)])
    if form == 2:
        head = ["although", "the", pick(rng, lex.FILM_NOUNS), "is", adjective(not good)]
        return _articles([*head, *clause(good)])
    return _articles([*clause(good), "and", *clause(good)])


def value(frame: Frame, slot: str) -> object:
    """Return what ``frame`` has in ``slot``, one of ``SLOTS``; None if it leaves it empty."""
    part, field = INSIDE.get(slot, (slot, ""))
    return getattr(getattr(frame, part), field) if field else getattr(frame, part)


def _put(frame: Frame, slot: str, what: object) -> Frame:
    part, field = INSIDE.get(slot, (slot, ""))
    what = replace(getattr(frame, part), **{field: what}) if field else what
    return replace(frame, **{part: what})


def _filled(frame: Frame, slots: Sequence[str]) -> list[str]:
    return [slot for slot in slots if value(frame, slot) is not None]


def with_changed(rng: Generator, frame: Frame, slot: str, genre: int | None = None) -> Frame:
    """Change the meaning of ``slot``, one of ``SLOTS`` that ``frame`` fills."""
    if slot == "denied":
        return replace(frame, denied=not frame.denied)
    concept = value(frame, slot)
    if (against := lex.opposite(concept)) and rng.random() < 0.5:
        return _put(frame, slot, against)
    genre = genre if slot in ("subject", "target") else None
    return _put(frame, slot, other(rng, concept, genre))


def changed(rng: Generator, frame: Frame, slots: Sequence[str] = SLOTS) -> Frame:
    """Change one of ``slots``, drawn from those that ``frame`` fills."""
    return with_changed(rng, frame, pick(rng, _filled(frame, slots)))


def weakened(rng: Generator, frame: Frame) -> Frame:
    """Weaken ``frame`` to what follows from it: fewer details, more general nouns."""

    def thing(t: Thing, p_group: float) -> Thing:
        amount = None if rng.random() < 0.4 else t.amount
        adjective = None if rng.random() < 0.4 else t.adjective
        general = t.noun.group and rng.random() < p_group
        noun = lex.BY_NAME["group", t.noun.group] if general else t.noun
        return Thing(noun, t.plural, amount, adjective)

    adjunct = None if rng.random() < 0.4 else frame.adjunct
    if frame.denied:  # a denial with fewer details denies more
        return frame
    subject, target = thing(frame.subject, 0.1), thing(frame.target, 0.25)
    return replace(frame, subject=subject, target=target, adjunct=adjunct)


def unsupported(rng: Generator, frame: Frame) -> tuple[Frame, Frame]:
    """Return a premise and a hypothesis that says more, or speaks of someone else."""
    second = weakened(rng, frame)
    details = _filled(second, ("adjective", "owner", "adjunct"))
    if not details or rng.random() < 0.35:
        slot = pick(rng, ("subject", "target"))
        noun = getattr(second, slot).noun
        if noun.kind != "group":
            return frame, with_changed(rng, second, slot, noun.genre)
    if not details:
        return frame, with_changed(rng, second, "verb")
    return _put(frame, pick(rng, details), None), second


def contradicted(rng: Generator, frame: Frame) -> Frame:
    """Contradict ``frame``: deny it, or take an opposite word or another number."""
    target = frame.target
    verb = lex.opposite(frame.verb)
    adjective = target.adjective and lex.opposite(target.adjective)
    number = target.amount and target.amount.kind == "number"
    ways = {"denied": True, "verb": verb, "adjective": adjective, "amount": number}
    way = pick(rng, [way for way, possible in ways.items() if possible])
    if way in ("verb", "adjective"):
        return _put(frame, way, ways[way])
    return with_changed(rng, frame, way)


def with_answer(rng: Generator, frame: Frame, kind: str) -> Frame:
    """Add the part that a question of ``kind`` asks for."""
    if kind in ("where", "when"):
        return replace(frame, adjunct=pick(rng, lex.PLACES if kind == "where" else lex.TIMES))
    if kind == "how many":
        target = replace(frame.target, plural=True, amount=pick(rng, lex.NUMBERS))
        return replace(frame, target=target)
    return frame


def without_answer(rng: Generator, frame: Frame, kind: str) -> Frame:
    """Remove that part, and put another detail in its place if one fits."""
    if kind in ("where", "when"):
        adjunct = pick(rng, lex.TIMES if kind == "where" else lex.PLACES)
        return replace(frame, adjunct=adjunct if rng.random() < 0.6 else None)
    if kind == "how many":
        amount = pick(rng, lex.AMOUNTS) if rng.random() < 0.6 else None
        return replace(frame, target=replace(frame.target, amount=amount))
    return frame
