"""Changes of meaning and of form: what makes a second sentence differ from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numpy.random import Generator

from lora2.embedded import lexicon as lex
from lora2.embedded.lexicon import Concept
from lora2.embedded.sentences import Frame, Thing, other, pick

SLOTS = ("subject", "verb", "target", "amount", "adjective", "owner", "adjunct", "denied")
# What a question of each kind says, so that changing it changes the question.
_ASKED = {
    "where": ("subject", "verb", "target"),
    "when": ("subject", "verb", "target"),
    "who": ("verb", "target", "adjunct"),
    "what": ("subject", "verb", "adjunct"),
    "how many": ("subject", "verb", "target", "adjunct"),
    "whether": ("subject", "verb", "target", "adjunct"),
}


def _without(frame: Frame) -> set[str]:
    """Slots that `frame` leaves empty."""
    empty = {
        "amount": frame.target.amount,
        "adjective": frame.target.adjective,
        "owner": frame.subject.adjective,
        "adjunct": frame.adjunct,
    }
    return {slot for slot, value in empty.items() if value is None}


def _instead(rng: Generator, concept: Concept, genre: int | None = None) -> Concept:
    """The opposite half of the time where there is one, else any other of the kind."""
    against = lex.opposite(concept)
    return against if against and rng.random() < 0.5 else other(rng, concept, genre)


def with_changed(rng: Generator, frame: Frame, slot: str, genre: int | None = None) -> Frame:
    """`frame` with another meaning in `slot` (one of `SLOTS`, not an empty one)."""
    subject, target = frame.subject, frame.target
    match slot:
        case "subject":
            return replace(frame, subject=replace(subject, noun=other(rng, subject.noun, genre)))
        case "target":
            return replace(frame, target=replace(target, noun=other(rng, target.noun, genre)))
        case "verb":
            return replace(frame, verb=_instead(rng, frame.verb))
        case "amount":
            return replace(frame, target=replace(target, amount=other(rng, target.amount)))
        case "adjective":
            return replace(frame, target=replace(target, adjective=_instead(rng, target.adjective)))
        case "owner":
            adjective = _instead(rng, subject.adjective)
            return replace(frame, subject=replace(subject, adjective=adjective))
        case "adjunct":
            return replace(frame, adjunct=other(rng, frame.adjunct))
        case "denied":
            return replace(frame, denied=not frame.denied)
    raise ValueError(f"no slot {slot!r}; choose from {', '.join(SLOTS)}")


def changed(rng: Generator, frame: Frame, slots: Sequence[str] = SLOTS, kind: str = "") -> Frame:
    """`frame` with one of `slots` (those it fills and the question `kind` asks of) changed."""
    spare = _without(frame)
    usable = [s for s in slots if s not in spare and (not kind or s in _ASKED[kind])]
    return with_changed(rng, frame, pick(rng, usable))


def asked_slots(frame: Frame, kind: str) -> list[str]:
    """The slots of `frame` that a question of this `kind` mentions."""
    return [s for s in _ASKED[kind] if s not in _without(frame)]


def similarity(first: Frame, second: Frame) -> float:
    """From 0 (nothing shared) to 5 (same meaning), in steps of 0.2: the weight of shared parts."""
    parts = (
        (2.0, first.subject.noun, second.subject.noun),
        (2.0, first.verb, second.verb),
        (2.0, first.target.noun, second.target.noun),
        (1.0, first.target.amount, second.target.amount),
        (1.0, first.target.adjective, second.target.adjective),
        (1.0, first.subject.adjective, second.subject.adjective),
        (1.0, first.adjunct, second.adjunct),
        (1.0, first.denied, second.denied),
    )
    said = [(w, a == b) for w, a, b in parts if a is not None or b is not None]
    share = sum(w for w, same in said if same) / sum(w for w, _ in said)
    return round(5 * max(0.0, (share - 0.3) / 0.7) * 5) / 5


def weakened(rng: Generator, frame: Frame, rate: float = 0.4) -> Frame:
    """What follows from `frame`: details left out, a more general noun for a noun."""

    def thing(t: Thing, p_group: float) -> Thing:
        amount = None if rng.random() < rate else t.amount
        adjective = None if rng.random() < rate else t.adjective
        noun = t.noun
        if noun.group and rng.random() < p_group:
            noun = lex.BY_NAME["group", noun.group]
        return Thing(noun, t.plural, amount, adjective)

    adjunct = None if rng.random() < rate else frame.adjunct
    if frame.denied:  # to leave a detail out of a denial is to deny more
        return frame
    return replace(
        frame, subject=thing(frame.subject, 0.1), target=thing(frame.target, 0.25), adjunct=adjunct
    )


def unsupported(rng: Generator, frame: Frame) -> tuple[Frame, Frame]:
    """A premise and a hypothesis that says more than it, or says it of someone else."""
    second = weakened(rng, frame)
    spare = _without(second)
    details = [s for s in ("adjective", "owner", "adjunct") if s not in spare]
    if not details or rng.random() < 0.35:
        slot = pick(rng, ("subject", "target"))
        if getattr(second, slot).noun.kind != "group":
            noun = getattr(second, slot).noun
            return frame, with_changed(rng, second, slot, noun.genre)
    if not details:
        return frame, with_changed(rng, second, "verb")
    slot = pick(rng, details)
    if slot == "adjunct":
        return replace(frame, adjunct=None), second
    part = "target" if slot == "adjective" else "subject"
    return replace(frame, **{part: replace(getattr(frame, part), adjective=None)}), second


def contradicted(rng: Generator, frame: Frame) -> Frame:
    """What cannot be true with `frame`: denied, the opposite verb or adjective, another number."""
    ways = ["denied"]
    target = frame.target
    if lex.opposite(frame.verb):
        ways.append("verb")
    if target.adjective and lex.opposite(target.adjective):
        ways.append("adjective")
    if target.amount and target.amount.kind == "number":
        ways.append("amount")
    way = pick(rng, ways)
    if way == "verb":
        return replace(frame, verb=lex.opposite(frame.verb))
    if way == "adjective":
        return replace(frame, target=replace(target, adjective=lex.opposite(target.adjective)))
    return with_changed(rng, frame, way)


def with_answer(rng: Generator, frame: Frame, kind: str) -> Frame:
    """`frame` with the part that a question of this `kind` asks for."""
    if kind in ("where", "when"):
        return replace(frame, adjunct=pick(rng, lex.PLACES if kind == "where" else lex.TIMES))
    if kind == "how many":
        target = replace(frame.target, plural=True, amount=pick(rng, lex.NUMBERS))
        return replace(frame, target=target)
    return frame


def without_answer(rng: Generator, frame: Frame, kind: str) -> Frame:
    """`frame` without that part, another detail in its place where one fits."""
    if kind in ("where", "when"):
        adjunct = pick(rng, lex.TIMES if kind == "where" else lex.PLACES)
        return replace(frame, adjunct=adjunct if rng.random() < 0.6 else None)
    if kind == "how many":
        amount = pick(rng, lex.AMOUNTS) if rng.random() < 0.6 else None
        return replace(frame, target=replace(frame.target, amount=amount))
    return frame


def ungrammatical(rng: Generator, text: str) -> str:
    """`text` with one error: a wrong inflection or auxiliary, a swap, a lost or doubled word."""
    words = text.split()
    way = int(rng.random() * 10)
    if way < 6:
        at = [i for i, w in enumerate(words) if w in lex.AGREEMENT or _inflected(w)]
        if at:
            i = pick(rng, at)
            words[i] = lex.AGREEMENT.get(words[i]) or pick(rng, lex.other_forms(words[i]))
            return " ".join(words)
    i = int(rng.random() * (len(words) - 1))
    if way < 8:
        words[i], words[i + 1] = words[i + 1], words[i]
    elif way == 8:
        at = [j for j, w in enumerate(words) if w in ("the", "at", "near", "in", "by")]
        if not at:
            words.insert(i, words[i])
        else:
            del words[pick(rng, at)]
    else:
        words.insert(i, words[i])
    return " ".join(words)


def _inflected(word: str) -> bool:
    return word in lex.THESAURUS and lex.THESAURUS[word][0].kind == "verb"
