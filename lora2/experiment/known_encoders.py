"""What published encoders are like: enough to refuse a configuration without a download."""

from __future__ import annotations

import dataclasses

_ROBERTA = (
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
_DEBERTA = (
    "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
# transformers' model_type -> the modules of its sequence classifier outside the encoder's layers.
HEADS = {
    "bert": ("pooler", "classifier"),
    "deberta": ("pooler", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier",),
    "roberta": ("classifier",),
    "xlm-roberta": ("classifier",),
}


@dataclasses.dataclass(frozen=True)
class Known:
    """An encoder on the hub: its type, width, longest input in tokens, and a layer's matrices."""

    model_type: str
    width: int
    tokens: int
    matrices: tuple[str, ...]


# From the config.json and tokenizer_config.json of each; by its name on the hub.
KNOWN = {
    "microsoft/deberta-v3-base": Known("deberta-v2", 768, 512, _DEBERTA),
    "FacebookAI/roberta-large": Known("roberta", 1024, 512, _ROBERTA),
    "sentence-transformers/all-MiniLM-L6-v2": Known("bert", 384, 512, _ROBERTA),
}
