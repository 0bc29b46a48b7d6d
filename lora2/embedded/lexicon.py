"""The words of the embedded language: concepts, their synonyms, forms, opposites and classes.

A concept is a meaning; its synonyms are the ways to say it. Every word belongs to one concept
only, so that a table from words to concepts exists (`THESAURUS`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """A meaning, `forms[s][f]` being inflection f of synonym s.

    Nouns have the forms (singular, plural), verbs (base, third person, past = participle), other
    classes one form. `kind` is the class within which one concept can replace another; `opposite`
    names the concept it excludes; `group` is a noun's more general word (see `HYPERNYMS`);
    `genre` is 0 or 1 for nouns (MNLI's matched and mismatched parts use different ones).
    """

    name: str
    kind: str
    forms: tuple[tuple[str, ...], ...]
    opposite: str = ""
    group: str = ""
    genre: int = 0


def _words(text: str) -> list[str]:
    return text.split()


def _plural(word: str) -> str:
    if word[-1] == "y" and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _past(word: str) -> str:
    if word[-1] == "y" and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + ("d" if word[-1] == "e" else "ed")


def _noun(word: str) -> tuple[str, str]:
    singular, _, plural = word.partition(":")
    return singular, plural or _plural(singular)


def _verb(word: str) -> tuple[str, str, str]:
    base, _, past = word.partition(":")
    return base, _plural(base), past or _past(base)


def _nouns(kind: str, groups: dict[str, str]) -> tuple[Concept, ...]:
    out = []
    for group, text in groups.items():
        for i, entry in enumerate(text.split()):
            forms = tuple(_noun(word) for word in entry.split("/"))
            out.append(Concept(forms[0][0], kind, forms, group=group, genre=i % 2))
    return tuple(out)


def _pairs(kind: str, text: str, inflect=lambda word: (word,)) -> tuple[Concept, ...]:
    """Concepts from 'a/b~c/d' (a, b against c, d) or 'a/b' (no opposite)."""
    out = []
    for entry in text.split():
        sides = [tuple(inflect(w) for w in side.split("/")) for side in entry.split("~")]
        names = [side[0][0] for side in sides]
        for side, name, other in zip(sides, names, [*names[1:], names[0]], strict=True):
            out.append(Concept(name, kind, side, opposite=other if other != name else ""))
    return tuple(out)


PEOPLE = _nouns(
    "person",
    {
        "person": "doctor/physician teacher/instructor lawyer/attorney child:children/kid "
        "writer/author boss/manager worker/employee student/pupil soldier/trooper farmer/grower "
        "officer/cop thief:thieves/robber"
    },
)
THINGS = _nouns(
    "thing",
    {
        "vehicle": "car/automobile boat/vessel",
        "animal": "dog/hound horse/stallion",
        "snack": "cookie/biscuit cake/tart",
        "text": "book/novel letter/note",
        "garment": "coat/jacket shoe/boot",
        "object": "sofa/couch lamp/lantern",
    },
)
HYPERNYMS = _nouns(
    "group", {"": "person:people/human vehicle animal/creature snack text garment object/item"}
)
VERBS = _pairs(
    "verb",
    "buy:bought/purchase~sell:sold/vend fix/repair~damage/harm "
    "find:found/discover~lose:lost/misplace love/adore~hate/despise "
    "make:made/produce~destroy/ruin keep:kept/retain~discard/scrap:scrapped "
    "watch/observe wash/rinse",
    _verb,
)
PERSON_ADJECTIVES = _pairs(
    "person_adjective",
    "happy/glad~sad/gloomy rich/wealthy~poor/needy young/youthful~elderly/aged "
    "smart/wise~foolish/naive",
)
THING_ADJECTIVES = _pairs(
    "thing_adjective",
    "big/large~small/little old/ancient~new/modern cheap/inexpensive~costly/expensive "
    "clean/spotless~dirty/filthy",
)
PLACES = _pairs(
    "place",
    "city/town station/depot shop/store garden/yard school/academy river/stream road/street "
    "hospital/clinic",
)
TIMES = _pairs("time", "dawn/sunrise noon/midday dusk/sunset midnight/nighttime")
NUMBERS = _pairs("number", "two/2 three/3 four/4 five/5")
AMOUNTS = _pairs("amount", "some/several many/numerous few/scant")
# Polarity is marked before the verb: these deny it or stress it.
DENIALS = ("not", "never")
STRESSES = ("indeed", "truly")

FILM_NOUNS = _words(
    "film movie plot story script music ending dialogue hero director camera humor romance comedy "
    "drama thriller sequel remake"
)
PRAISE = _words(
    "brilliant moving charming funny fresh superb delightful warm gripping witty lovely touching "
    "elegant vivid thrilling honest graceful inspired dazzling tender playful "
    "memorable clever stunning"
)
BLAME = _words(
    "dull boring weak tired clumsy awful bland messy tedious silly stale flat hollow shallow "
    "predictable lazy pointless ugly noisy cold lifeless confused annoying forgettable grim"
)
PRAISE_NOUNS = _words("triumph delight joy gem treat success marvel masterpiece")
BLAME_NOUNS = _words("mess bore waste failure disaster chore disappointment flop")

CONCEPTS = (
    *PEOPLE, *THINGS, *HYPERNYMS, *VERBS, *PERSON_ADJECTIVES, *THING_ADJECTIVES, *PLACES, *TIMES,
    *NUMBERS, *AMOUNTS,
    Concept("not", "polarity", tuple((w,) for w in DENIALS), opposite="indeed"),
    Concept("indeed", "polarity", tuple((w,) for w in STRESSES), opposite="not"),
)  # fmt: skip
BY_NAME = {(c.kind, c.name): c for c in CONCEPTS}
OF_KIND = {kind: [c for c in CONCEPTS if c.kind == kind] for kind in {c.kind for c in CONCEPTS}}
# word -> (its concept, the index of its form)
THESAURUS = {w: (c, f) for c in CONCEPTS for forms in c.forms for f, w in enumerate(forms)}
# Words without synonyms that can stand for one another in the same place of a sentence.
WORD_SETS = (
    ["where", "when", "what"],
    FILM_NOUNS,
    [*PRAISE, *BLAME],
    [*PRAISE_NOUNS, *BLAME_NOUNS],
)
FUNCTION_WORDS = _words(
    "the a an do does did was were is are by in near at who what where when how many this and but "
    "although very quite rather hardly far from anything start to end"
)


# An auxiliary and the one of the other number.
AGREEMENT = {
    "does": "do", "do": "does", "is": "are", "are": "is", "was": "were", "were": "was",
}  # fmt: skip


def opposite(concept: Concept) -> Concept | None:
    """The concept that excludes `concept`, or None."""
    return BY_NAME[concept.kind, concept.opposite] if concept.opposite else None


def other_forms(word: str) -> list[str]:
    """The other inflections of `word` (a word of the thesaurus)."""
    concept, form = THESAURUS[word]
    forms = next(f for f in concept.forms if f[form] == word)
    return [w for w in forms if w != word]


def vocabulary() -> list[str]:
    """All words, each once, in a fixed order."""
    words = [*FUNCTION_WORDS, *THESAURUS, *(w for words in WORD_SETS for w in words)]
    return list(dict.fromkeys(words))
