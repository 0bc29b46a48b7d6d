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


def _noun(word: str) -> tuple[str, ...]:
    singular, _, plural = word.partition(":")
    return singular, plural or _inflect(singular, "s")


def _verb(word: str) -> tuple[str, ...]:
    base, _, past = word.partition(":")
    return base, _inflect(base, "s"), past or _inflect(base, "ed")


def _nouns(kind: str, groups: dict[str, str]) -> tuple[Concept, ...]:
    out = []
    for group, text in groups.items():
        for i, entry in enumerate(text.split()):
            forms = tuple(_noun(word) for word in entry.split("/"))
            out.append(Concept(forms[0][0], kind, forms, group=group, genre=i % 2))
    return tuple(out)


def _pairs(kind: str, text: str, inflect=lambda word: (word,)) -> tuple[Concept, ...]:
    """Return concepts from 'a/b~c/d' (a, b against c, d) or 'a/b' (no opposite)."""
    out = []
    for entry in text.split():
        sides = [tuple(inflect(w) for w in side.split("/")) for side in entry.split("~")]
        names = [side[0][0] for side in sides]
        for side, name, other in zip(sides, names, [*names[1:], names[0]], strict=True):
            out.append(Concept(name, kind, side, opposite=other if other != name else ""))
    return tuple(out)


_WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
PEOPLE = _nouns("person", _WORDS["people"])
THINGS = _nouns("thing", _WORDS["things"])
VERBS = _pairs("verb", _WORDS["verbs"], _verb)
PERSON_ADJECTIVES = _pairs("person_adjective", _WORDS["person_adjectives"])
THING_ADJECTIVES = _pairs("thing_adjective", _WORDS["thing_adjectives"])
PLACES = _pairs("place", _WORDS["places"])
TIMES = _pairs("time", _WORDS["times"])
NUMBERS = _pairs("number", _WORDS["numbers"])
AMOUNTS = _pairs("amount", _WORDS["amounts"])
DENIALS, STRESSES = _WORDS["denials"].split(), _WORDS["stresses"].split()
FILM_NOUNS = _WORDS["film_nouns"].split()
PRAISE, PRAISE_NOUNS = _WORDS["praise"].split(), _WORDS["praise_nouns"].split()
BLAME, BLAME_NOUNS = _WORDS["blame"].split(), _WORDS["blame_nouns"].split()
FUNCTION_WORDS = _WORDS["function_words"].split()

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
    ["where", "when", "what"],
    FILM_NOUNS,
    [*PRAISE, *BLAME],
    [*PRAISE_NOUNS, *BLAME_NOUNS],
)
# An auxiliary and its form of the other number.
AGREEMENT = {
    "does": "do", "do": "does", "is": "are", "are": "is", "was": "were", "were": "was",
}  # fmt: skip


def opposite(concept: Concept) -> Concept | None:
    """Return the concept that excludes ``concept``, or None."""
    return BY_NAME[concept.kind, concept.opposite] if concept.opposite else None


def other_forms(word: str) -> list[str]:
    """Return the other inflections of ``word`` (a word of the thesaurus)."""
    concept, form = THESAURUS[word]
    forms = next(f for f in concept.forms if f[form] == word)
    return [w for w in forms if w != word]


def is_verb(word: str) -> bool:
    return word in THESAURUS and THESAURUS[word][0].kind == "verb"


def vocabulary() -> list[str]:
    """Return all words, each once, in a fixed order."""
    words = [*FUNCTION_WORDS, *THESAURUS, *(w for words in WORD_SETS for w in words)]
    return list(dict.fromkeys(words))
