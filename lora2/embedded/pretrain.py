"""Pretrain an embedded encoder: `python -m lora2.embedded.pretrain --encoder embedded --out DIR`.

Objectives, all on a stream of unlabelled text (see `corpus`) that is corrupted (see `corruption`):
predict the hidden words, tell each replaced word, and count the marked words at the first
position. No label of an embedded GLUE task is used, and no sentence of a validation split is read;
what the corruption knows beside the text is the language's thesaurus (which words mean the same,
which the opposite, which praise). The counting is near to what the paraphrase tasks ask, as
next-sentence prediction is to GLUE's.

`embedded-roberta` starts from the shipped `embedded` (see `_warm_start`). One seed, one thread,
CPU: the same machine and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional

from lora2.embedded.corruption import IGNORED, Batch, Corruptor
from lora2.embedded.encoders import encoder_path
from lora2.embedded.vocabulary import MAX_LENGTH, SPECIALS, build_tokenizer

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


def build_config(name: str, vocab_size: int) -> transformers.PretrainedConfig:
    """The configuration of encoder `name`: DeBERTa-v3's choices, or RoBERTa's."""
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
    """A word per position, replaced or not per position, how many are marked at the first."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.detector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.counter = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, MANY + 1))

    def forward(
        self, states: torch.Tensor, words: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Word logits and targets at hidden positions, detector logits and targets elsewhere."""
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
    """The share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def _waves(config: transformers.PretrainedConfig) -> torch.Tensor:
    """Positions as sines and cosines (Vaswani et al. 2017), (positions, width)."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=("embedded", "embedded-roberta"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    encoder, log = pretrain(args.encoder, args.steps or STEPS[args.encoder], echo=True)
    save(args.encoder, encoder, log, args.out)


if __name__ == "__main__":
    main()
