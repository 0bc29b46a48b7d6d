"""The encoders' word-level tokenizers."""

from __future__ import annotations

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lora2.embedded import lexicon

# role -> its token, in the order of their ids, as each architecture's own tokenizer names them
SPECIALS = {
    "embedded": {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"},
    "embedded-roberta": {
        "cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>",
    },
}  # fmt: skip
MAX_LENGTH = 64


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of encoder `name`: lower-cased words, [CLS] a [SEP] b [SEP] or RoBERTa's."""
    special = SPECIALS[name]
    words = [*special.values(), *lexicon.vocabulary()]
    ids = {word: i for i, word in enumerate(words)}
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
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in special.items()},
    )
