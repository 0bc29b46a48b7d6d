from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import lora2.glue.data as module
from lora2.glue.data import tokenize
from lora2.glue.tasks import TASKS
from tests.glue.conftest import make_frame

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "red", "green", "blue")


def make_tokenizer(segments: bool = True, limit: int = 64) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=limit,
        model_input_names=names if segments else [names[0], names[2]],
    )


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("segments", [True, False])
def test_columns_types_and_order(monkeypatch, name, segments):
    monkeypatch.setattr(module, "BATCH_ROWS", 4)
    task, frame = TASKS[name], make_frame(TASKS[name], 10)
    tokenizer = make_tokenizer(segments)
    rows = tokenize(frame, task, tokenizer, 32)
    assert set(rows.column_names) - {"token_type_ids"} == {"input_ids", "attention_mask", "labels"}
    assert ("token_type_ids" in rows.column_names) == segments
    assert rows.features["labels"].dtype == ("float32" if task.is_regression else "int64")
    assert rows["labels"][:] == frame["label"].tolist()
    for i in range(len(frame)):
        one = tokenizer(*(frame[column][i] for column in task.text_columns))
        assert rows[i] == {**one, "labels": frame["label"][i].item()}


def test_longest_text_is_cut_first():
    task = TASKS["rte"]
    frame = make_frame(task, 2).assign(sentence1="a " * 20, sentence2=["b b b", "b " * 20])
    rows = tokenize(frame, task, make_tokenizer(), 13)
    a, b = WORDS.index("a"), WORDS.index("b")
    assert rows["input_ids"][0] == [2, *[a] * 7, 3, *[b] * 3, 3]
    assert rows["input_ids"][1] == [2, *[a] * 5, 3, *[b] * 5, 3]


def test_nothing_is_padded():
    task = TASKS["cola"]
    frame = make_frame(task, 3).assign(sentence=["a", "a b", "a b a"])
    rows = tokenize(frame, task, make_tokenizer(), 32)
    assert [len(ids) for ids in rows["input_ids"]] == [3, 4, 5]
