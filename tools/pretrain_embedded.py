"""Pretrain an embedded encoder: `python tools/pretrain_embedded.py --encoder embedded --out DIR`.

The text is a stream of unlabelled passages from the grammar of the tasks, from its own seed and
without any sentence of a validation split (`side_of`). Words in it are hidden (to be predicted) or
replaced (to be detected, as in ELECTRA and DeBERTaV3, with the language's thesaurus instead of a
generator network: a word becomes one of the same class and inflection that means something else).
In a second sentence only the first shows that such a word is wrong, and a synonym is right, so the
detector has to align the two. The first position counts the replaced words, which is near to what
the paraphrase tasks ask, as next-sentence prediction is to GLUE's.

No label of an embedded task is used. `embedded-roberta` starts from the shipped `embedded` (see
`_warm_start`). One seed, one thread, CPU: the same machine and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import transformers
from numpy.random import Generator
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn import functional

from lora2.embedded import ENCODERS, encoder_path
from lora2.embedded import lexicon as lex
from lora2.embedded import sentences as say
from lora2.embedded.grammar import side_of
from lora2.embedded.sentences import other, pick

SEED, HELD_OUT_SEED = 20240813, 4711
STEPS = {"embedded": 6000, "embedded-roberta": 3000}
PLAIN_STEPS = 1500  # on short restatements, before the whole stream
BATCH, PEAK_LR, WARM_UP = 64, 3e-3, 300
WEIGHTS = {"hidden_loss": 1, "replaced_loss": 4, "count_loss": 2}
MANY = 4  # marked words; more count as many
WAVE = 0.3
LOG_EVERY = 250
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}
# role -> its token, in the order of their ids, as each architecture's own tokenizer names them
SPECIALS = {
    "embedded": {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"},
    "embedded-roberta": {
        "cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>",
    },
}  # fmt: skip
MAX_LENGTH = 64
IGNORED = -100
_GOOD, _BAD = {*lex.PRAISE, *lex.PRAISE_NOUNS}, {*lex.BLAME, *lex.BLAME_NOUNS}
_SETS = {word: words for words in lex.WORD_SETS for word in words}
Passage = tuple[str, str | None]


def word_ids(name: str) -> dict[str, int]:
    return {word: i for i, word in enumerate([*SPECIALS[name].values(), *lex.vocabulary()])}


def build_tokenizer(name: str) -> transformers.PreTrainedTokenizerFast:
    """Build encoder `name`'s tokenizer: lower-cased words, [CLS] a [SEP] b [SEP] or RoBERTa's."""
    special, ids = SPECIALS[name], word_ids(name)
    core = Tokenizer(WordLevel(ids, unk_token=special["unk"]))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = special["cls"], special["sep"]
    middle = f"{sep} {sep}" if name == "embedded-roberta" else sep
    core.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {middle} $B {sep}",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in special.items()},
    )


def _passage(rng: Generator) -> Passage:
    genre = int(rng.random() * 2) if rng.random() < 0.3 else None
    frame = say.random_frame(rng, genre, rich=0.4 + 0.5 * rng.random())
    form = rng.random()
    if form < 0.12:
        return say.statement(rng, frame), None
    if form < 0.28:
        return _reviews(rng)
    if form < 0.54:
        kind = pick(rng, say.QUESTIONS)
        if rng.random() < 0.5:
            return say.question(rng, frame, kind), say.question(rng, frame, kind)
        if kind not in ("what", "whether"):
            frame = say.with_answer(rng, frame, kind)
        return say.question(rng, frame, kind), say.statement(rng, frame)
    second_frame = frame if form < 0.84 else say.weakened(rng, frame)
    return say.statement(rng, frame), say.statement(rng, second_frame)


def _reviews(rng: Generator) -> Passage:
    good = rng.random() < 0.5
    first = say.review(rng, good)
    return first, say.review(rng, good) if rng.random() < 0.5 else None


def _plain(rng: Generator) -> Passage:
    if rng.random() < 0.15:
        return _reviews(rng)
    frame = say.random_frame(rng, rich=0.3)
    return say.statement(rng, frame), say.statement(rng, frame)


def passages(seed: int, plain: int = 0) -> Iterator[Passage]:
    """Yield passages (first sentence, second sentence or None) without end, the same for a seed.

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
    """Return words of the set of `word` that mean something else: blame for praise, else any."""
    judging = word in _GOOD or word in _BAD
    same = _GOOD if word in _GOOD else _BAD
    return [w for w in _SETS[word] if w != word and not (judging and w in same)]


def _meaning(rng: Generator, word: str) -> str | None:
    """Draw a word of another meaning that fits in the place of `word`, None for function words."""
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


def _form(rng: Generator, word: str) -> str | None:
    """Draw another inflection of `word`, None where it has one only."""
    if word not in lex.THESAURUS:
        return lex.AGREEMENT.get(word)
    forms = lex.other_forms(word)
    return pick(rng, forms) if forms else None


def _concept(word: str) -> lex.Concept | str:
    return lex.THESAURUS[word][0] if word in lex.THESAURUS else ""


def corrupt(
    rng: Generator, words: list[str], second: bool
) -> tuple[list[str], list[int], list[bool]]:
    """Return a sentence's words after corruption, 1 where replaced, True where to be hidden."""
    rate = pick(rng, (0.0, 0.25, 0.5))
    hide = pick(rng, (0.0, 0.15, 0.3))
    new, replaced, hidden = [], [], []
    for word in words:
        change = None
        if rng.random() < rate:
            change = _meaning(rng, word) if second or rng.random() < 0.4 else _form(rng, word)
        new.append(change or word)
        replaced.append(int(change is not None))
        hidden.append(change is None and rng.random() < hide)
    return new, replaced, hidden


class Corruptor:
    """Turn passages into batches for encoder `name`, with a random generator of its own."""

    def __init__(self, name: str, seed: int, plain: int = 0) -> None:
        special, self.ids = SPECIALS[name], word_ids(name)
        self.cls, self.sep = self.ids[special["cls"]], self.ids[special["sep"]]
        self.pad, self.mask = self.ids[special["pad"]], self.ids[special["mask"]]
        self.middle = [self.sep] * (2 if name == "embedded-roberta" else 1)
        self.rng = numpy.random.default_rng([seed, 1])
        self.stream = passages(seed, plain)

    def row(self, passage: Passage) -> tuple[list[int], list[int], list[int]]:
        """Return token ids, hidden ids and replacement marks of one passage, each of its length."""
        first, second = passage
        words = (second or first).split()
        new, marks, hide = corrupt(self.rng, words, second is not None)
        columns = self._columns(words, new, marks, hide)
        end = ([self.sep], [IGNORED], [IGNORED])
        parts = [([self.cls], [IGNORED], [IGNORED]), columns, end]
        if second:
            lost = {_concept(w) for w, mark in zip(words, marks, strict=True) if mark}
            kept = first.split()
            marks = [int(_concept(w) in lost and _concept(w) != "") for w in kept]
            rate = 0.1 if self.rng.random() < 0.2 else 0.0
            hide = [self.rng.random() < rate for _ in kept]
            middle = (self.middle, [IGNORED] * len(self.middle), [IGNORED] * len(self.middle))
            parts[1:1] = [self._columns(kept, kept, marks, hide), middle]
        return tuple(list(itertools.chain(*(part[i] for part in parts))) for i in range(3))

    def _columns(
        self, words: list[str], new: list[str], marks: list[int], hide: list[bool]
    ) -> tuple[list[int], list[int], list[int]]:
        ids = [self.mask if h else self.ids[w] for w, h in zip(new, hide, strict=True)]
        hidden = [self.ids[w] if h else IGNORED for w, h in zip(words, hide, strict=True)]
        return ids, hidden, [IGNORED if h else m for m, h in zip(marks, hide, strict=True)]

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield batches of `size` passages, padded to the longest, without end."""
        while True:
            rows = [self.row(p) for p in itertools.islice(self.stream, size)]
            length = max(len(ids) for ids, _, _ in rows)
            padded = [
                torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
                for i, fill in enumerate((self.pad, IGNORED, IGNORED))
            ]
            yield Batch(padded[0], (padded[0] != self.pad).long(), padded[1], padded[2])


def build_config(name: str, vocab_size: int) -> transformers.PretrainedConfig:
    """Build the configuration of encoder `name`: DeBERTa-v3's choices, or RoBERTa's."""
    if name == "embedded":
        return transformers.DebertaV2Config(
            vocab_size=vocab_size, **SIZES,
            max_position_embeddings=MAX_LENGTH, relative_attention=True, max_relative_positions=-1,
            position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type="p2c|c2p", position_biased_input=False, type_vocab_size=0,
            layer_norm_eps=1e-7, pad_token_id=0, pooler_hidden_size=64, pooler_dropout=0.0,
            pooler_hidden_act="gelu",
        )  # fmt: skip
    return transformers.RobertaConfig(
        vocab_size=vocab_size, **SIZES, max_position_embeddings=MAX_LENGTH + 2, type_vocab_size=1,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, layer_norm_eps=1e-5,
    )  # fmt: skip


class Heads(nn.Module):
    """Predict a word and replaced-or-not per position, and the number replaced at the first."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.detector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.counter = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, MANY + 1))

    def forward(
        self, states: torch.Tensor, words: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return word logits and targets (hidden positions), detector logits and targets (rest)."""
        at = batch.hidden != IGNORED
        # (batch, length, width) -> (hidden positions, width) -> (hidden positions, vocabulary)
        guesses = self.transform(states[at]) @ words.T + self.bias
        seen = batch.replaced != IGNORED
        doubts = self.detector(states[seen]).squeeze(-1)  # (seen positions,)
        return guesses, batch.hidden[at], doubts, batch.replaced[seen].float()


def _losses(encoder: nn.Module, heads: Heads, batch: Batch) -> dict[str, torch.Tensor]:
    states = encoder(batch.input_ids, batch.attention_mask).last_hidden_state
    words = encoder.get_input_embeddings().weight
    guesses, hidden, doubts, replaced = heads(states, words, batch)
    many = (batch.replaced > 0).sum(1).clamp(max=MANY)  # (batch, length) -> (batch,)
    counts = heads.counter(states[:, 0])  # (batch, width) -> (batch, MANY + 1)
    hits = ((doubts > 0) == (replaced > 0)).float()
    return {
        "hidden_loss": functional.cross_entropy(guesses, hidden),
        "replaced_loss": functional.binary_cross_entropy_with_logits(doubts, replaced),
        "count_loss": functional.cross_entropy(counts, many),
        "count_accuracy": (counts.argmax(-1) == many).float().mean(),
        "hidden_accuracy": (guesses.argmax(-1) == hidden).float().mean(),
        "replaced_recall": hits[replaced > 0].mean(),
        "kept_recall": hits[replaced == 0].mean(),
    }


def _rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def _waves(config: transformers.PretrainedConfig) -> torch.Tensor:
    """Encode positions as sines and cosines (Vaswani et al. 2017), (positions, width)."""
    places = torch.arange(config.max_position_embeddings)[:, None]
    half = torch.arange(0, config.hidden_size, 2) / config.hidden_size
    angles = places * torch.exp(-math.log(100) * half)  # (positions, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _warm_start(encoder: nn.Module) -> None:
    """Give the RoBERTa the words and layers of the shipped DeBERTa, and wave positions.

    Alone, absolute positions had not begun to align two sentences after 3,000 steps, where the
    relative ones had after 1,000. Only what has no counterpart (relative positions) is left out.
    """
    source = transformers.DebertaV2Model.from_pretrained(encoder_path("embedded")).state_dict()
    order = [SPECIALS["embedded"][role] for role in SPECIALS["embedded-roberta"]]
    rows = list(SPECIALS["embedded"].values())
    words = source["embeddings.word_embeddings.weight"]
    source["embeddings.word_embeddings.weight"] = torch.cat(
        [words[[rows.index(token) for token in order]], words[len(rows) :]]
    )
    for key in [key for key in source if "_proj" in key]:
        source[key.replace("_proj", "")] = source.pop(key)
    target = encoder.state_dict()
    encoder.load_state_dict(target | {k: v for k, v in source.items() if k in target})
    positions = encoder.embeddings.position_embeddings.weight
    with torch.no_grad():
        positions.copy_(WAVE * words.std() * _waves(encoder.config))


def _build(name: str) -> tuple[nn.Module, Heads]:
    config = build_config(name, len(build_tokenizer(name)))
    if name == "embedded":
        encoder = transformers.DebertaV2Model(config)
    else:
        encoder = transformers.RobertaModel(config, add_pooling_layer=False)
        _warm_start(encoder)
    return encoder, Heads(config.hidden_size, config.vocab_size)


def pretrain(
    name: str, steps: int, every: int = LOG_EVERY, echo: bool = False
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train encoder `name` for `steps` steps.

    Returns the encoder and the log: one dict for the first, the last and every `every`th step,
    with the step, its training losses and the figures on 512 held-out plain restatements.
    """
    torch.manual_seed(SEED)
    encoder, heads = _build(name)
    params = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(params, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    batches = Corruptor(name, SEED, PLAIN_STEPS * BATCH).batches(BATCH)
    held_out = next(Corruptor(name, HELD_OUT_SEED, plain=512).batches(512))
    log, start = [], time.monotonic()
    for step in range(1, steps + 1):
        losses = _losses(encoder, heads, next(batches))
        optimizer.zero_grad()
        sum(weight * losses[key] for key, weight in WEIGHTS.items()).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step in (1, steps) or step % every == 0:
            log.append(_figures(encoder, heads, held_out, step, losses))
            if echo:
                shown = " ".join(f"{key} {value:.3f}" for key, value in log[-1].items())
                print(f"{time.monotonic() - start:.0f} s {shown}", flush=True)
    return encoder, log


@torch.no_grad()
def _figures(
    encoder: nn.Module, heads: Heads, held_out: Batch, step: int, losses: dict[str, torch.Tensor]
) -> dict[str, float]:
    figures = _losses(encoder, heads, held_out)
    return (
        {"step": step}
        | {key: value.item() for key, value in losses.items() if key.endswith("loss")}
        | {f"held_out_{key}": value.item() for key, value in figures.items()}
    )


def save(name: str, encoder: nn.Module, log: list[dict[str, float]], out: Path) -> None:
    """Write the encoder, its tokenizer, pretrain_log.csv and pretrain.json to `out`."""
    encoder.eval().save_pretrained(out)
    build_tokenizer(name).save_pretrained(out)
    with (out / "pretrain_log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, log[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
    weights = (out / "model.safetensors").read_bytes()
    facts = {
        "encoder": name,
        "seed": SEED,
        "steps": log[-1]["step"],
        "plain_steps": PLAIN_STEPS,
        "batch_size": BATCH,
        "peak_learning_rate": PEAK_LR,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    (out / "pretrain.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=ENCODERS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    encoder, log = pretrain(args.encoder, args.steps or STEPS[args.encoder], echo=True)
    save(args.encoder, encoder, log, args.out)


if __name__ == "__main__":
    main()
