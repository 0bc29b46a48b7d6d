"""How many numbers each adapter trains, from the shapes of the encoder's matrices alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

MATRICES = ("query", "key", "value", "attention_output", "intermediate", "output")


@dataclass(frozen=True)
class Encoder:
    """A transformer encoder: its number of layers, hidden width and feed-forward width."""

    layers: int
    hidden: int
    feed_forward: int

    def shape(self, matrix: str) -> tuple[int, int]:
        """(d_in, d_out) of one of ``MATRICES``."""
        if matrix not in MATRICES:
            raise ValueError(f"unknown matrix {matrix!r}: choose from {', '.join(MATRICES)}")
        wide = {
            "intermediate": (self.hidden, self.feed_forward),
            "output": (self.feed_forward, self.hidden),
        }
        return wide.get(matrix, (self.hidden, self.hidden))


DEBERTA_V3_BASE = Encoder(layers=12, hidden=768, feed_forward=3072)
ROBERTA_LARGE = Encoder(layers=24, hidden=1024, feed_forward=4096)

Count = Callable[[int, int], int]


def lora2_parameters(k: int, r: int = 8) -> Count:
    """k (d_in + d_out) + 2 k r + r: u, V, then v and U, then the r singular values (Eq. 4)."""
    return lambda d_in, d_out: k * (d_in + d_out) + 2 * k * r + r


def lora_parameters(r: int) -> Count:
    """r (d_in + d_out): A and B."""
    return lambda d_in, d_out: r * (d_in + d_out)


def adalora_parameters(r: int) -> Count:
    """r (d_in + d_out) + r: P, Q and the r singular values (Eq. 3)."""
    return lambda d_in, d_out: r * (d_in + d_out) + r


def lora2_scores_kept(k: int, r: int = 8) -> Count:
    """r + 2 k r: the sensitivities Eq. 9 still reads, those of the singular values, v and U."""
    return lambda d_in, d_out: r + 2 * k * r


def total(encoder: Encoder, count: Count, matrices: Iterable[str] = MATRICES) -> int:
    """``count`` summed over the chosen matrices of every layer."""
    return encoder.layers * sum(count(*encoder.shape(matrix)) for matrix in matrices)


def bias_parameters(encoder: Encoder) -> int:
    """Biases of a DeBERTa-v2 encoder, layer norms included, without pooler and classifier.

    A layer has seven of the hidden width (query, key, value, both output projections, two
    layer norms) and one of the feed-forward width; the embeddings and the relative positions
    have a layer norm each.
    """
    per_layer = 7 * encoder.hidden + encoder.feed_forward
    return encoder.layers * per_layer + 2 * encoder.hidden
