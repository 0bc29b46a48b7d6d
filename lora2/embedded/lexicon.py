"""The words of the embedded language: concepts with synonyms, forms, opposites and classes.

A concept is a meaning; its synonyms are the ways to say it. Every word belongs to one concept
only, so ``THESAURUS`` maps words to concepts. The words themselves are in words.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Concept:
    """A meaning, ``forms[s][f]`` being inflection f of synonym s.

    Nouns have the forms (singular, plural), verbs (base, third person, past = participle), other
    classes one form. ``kind`` is the class within which one concept can replace another;
    ``opposite`` names the concept it excludes; ``group`` is a noun's more general word;
    ``genre`` is 0 or 1 for nouns (MNLI's matched and mismatched splits use different ones).
    """

    name: str
    kind: str
    forms: tuple[tuple[str, ...], ...]
    opposite: str = ""
    group: str = ""
    genre: int = 0


def _inflect(word: str, s_or_ed: str) -> str:
    if word[-1] == "y" and word[-2] not in "aeiou":
        return f"{word[:-1]}i{'es' if s_or_ed == 's' else 'ed'}"
    if s_or_ed == "ed":
        return word + ("d" if word[-1] == "e" else "ed")
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _forms(kind: str, word: str) -> tuple[str, ...]:
    """Return the forms of 'word' or 'word:irregular', a plural or a past tense."""
    base, _, irregular = word.partition(":")
    if kind == "verb":
        return base, _inflect(base, "s"), irregular or _inflect(base, "ed")
    nouns = ("person", "thing", "group")
    return (base, irregular or _inflect(base, "s")) if kind in nouns else (base,)


def _concepts(kind: str, text: str, group: str = "") -> tuple[Concept, ...]:
    """Return concepts from 'a/b~c/d' (a, b against c, d) or 'a/b' (no opposite)."""
    out = []
    for i, entry in enumerate(text.split()):
        sides = [tuple(_forms(kind, w) for w in side.split("/")) for side in entry.split("~")]
        names = [side[0][0] for side in sides]
        for side, name, other in zip(sides, names, [*names[1:], names[0]], strict=True):
            against, genre = other if other != name else "", i % 2 if group else 0
            out.append(Concept(name, kind, side, against, group, genre))
    return tuple(out)


def _nouns(kind: str, groups: dict[str, str]) -> tuple[Concept, ...]:
    return tuple(c for group, text in groups.items() for c in _concepts(kind, text, group))


_WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
PEOPLE, THINGS = _nouns("person", _WORDS["people"]), _nouns("thing", _WORDS["things"])
VERBS, PERSON_ADJECTIVES, THING_ADJECTIVES, PLACES, TIMES, NUMBERS, AMOUNTS = (
    _concepts(kind, _WORDS[f"{kind}s"])
    for kind in ("verb", "person_adjective", "thing_adjective", "place", "time", "number", "amount")
)
DENIALS, STRESSES, FILM_NOUNS, PRAISE, PRAISE_NOUNS, BLAME, BLAME_NOUNS, FUNCTION_WORDS = (
    _WORDS[key].split()
    for key in ("denials", "stresses", "film_nouns", "praise", "praise_nouns", "blame",
                "blame_nouns", "function_words")
)  # fmt: skip

CONCEPTS = (
    *PEOPLE, *THINGS, *_nouns("group", _WORDS["hypernyms"]), *VERBS, *PERSON_ADJECTIVES,
    *THING_ADJECTIVES, *PLACES, *TIMES, *NUMBERS, *AMOUNTS,
    Concept("not", "polarity", tuple((w,) for w in DENIALS), opposite="indeed"),
    Concept("indeed", "polarity", tuple((w,) for w in STRESSES), opposite="not"),
)  # fmt: skip
BY_NAME = {(c.kind, c.name): c for c in CONCEPTS}
OF_KIND = {kind: [c for c in CONCEPTS if c.kind == kind] for kind in {c.kind for c in CONCEPTS}}
# word -> (its concept, the index of its form)
THESAURUS = {w: (c, f) for c in CONCEPTS for forms in c.forms for f, w in enumerate(forms)}
# Words without synonyms that can replace each other in a sentence.
WORD_SETS = (
    ["where", "when", "what"], FILM_NOUNS, [*PRAISE, *BLAME], [*PRAISE_NOUNS, *BLAME_NOUNS],
)  # fmt: skip
# An auxiliary and its form of the other number.
_SINGULAR = {"does": "do", "is": "are", "was": "were"}
AGREEMENT = {**_SINGULAR, **{plural: singular for singular, plural in _SINGULAR.items()}}


def opposite(concept: Concept) -> Concept | None:
    """Return the concept that excludes ``concept``, or None."""
    return BY_NAME[concept.kind, concept.opposite] if concept.opposite else None


def other_forms(word: str) -> list[str]:
    """Return the other inflections of ``word`` (a word of the thesaurus)."""
    concept, form = THESAURUS[word]
    forms = next(f for f in concept.forms if f[form] == word)
    return [w for w in forms if w != word]


def vocabulary() -> list[str]:
    """Return all words, each once, in a fixed order."""
    words = [*FUNCTION_WORDS, *THESAURUS, *(w for words in WORD_SETS for w in words)]
    return list(dict.fromkeys(words))
