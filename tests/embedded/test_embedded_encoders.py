"""The shipped encoders load offline, are what their record says, and are rebuilt by the script."""

import hashlib
import json
import socket

import numpy
import pandas
import pytest
import torch
import transformers

from lora2.embedded import ENCODERS, encoder_path, lexicon
from tools.pretrain_embedded import IGNORED, Corruptor, corrupt, pretrain, save

LAYOUT = {
    "embedded": "[CLS] a dog [SEP] the book [SEP]",
    "embedded-roberta": "<s> a dog </s> </s> the book </s>",
}
PARTS = ("hidden", "replaced", "count")
# The training losses of the first five steps: words predicted, replaced ones detected, counted.
FIRST_LOSSES = {
    "embedded": [
        [6.115689, 0.758398, 1.742235],
        [6.144849, 0.765315, 1.756993],
        [6.165758, 0.762653, 1.754110],
        [6.017922, 0.760606, 1.732224],
        [6.026512, 0.762632, 1.719953],
    ],
    "embedded-roberta": [
        [7.884427, 0.671930, 1.649210],
        [7.797813, 0.669399, 1.631609],
        [7.379209, 0.670923, 1.633554],
        [7.723260, 0.671618, 1.644456],
        [7.067402, 0.670833, 1.629662],
    ],
}


@pytest.mark.parametrize("name", ENCODERS)
def test_pair_layout(name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_path(name))
    encoded = tokenizer("A dog", "the book")
    assert tokenizer.is_fast
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert " ".join(tokenizer.convert_ids_to_tokens(encoded["input_ids"])) == LAYOUT[name]
    assert tokenizer("zebra")["input_ids"][1] == tokenizer.unk_token_id
    padded = tokenizer(["the dog", "dog"], padding=True, return_tensors="pt")
    assert padded["input_ids"][1, -1] == tokenizer.pad_token_id
    config = transformers.AutoConfig.from_pretrained(encoder_path(name))
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.vocab_size == len(tokenizer) > len(lexicon.vocabulary())


def test_deberta_has_the_choices_of_deberta_v3():
    config = transformers.AutoConfig.from_pretrained(encoder_path("embedded"))
    assert config.model_type == "deberta-v2"
    assert config.relative_attention and config.share_att_key
    assert sorted(config.pos_att_type) == ["c2p", "p2c"]
    assert config.norm_rel_ebd == "layer_norm" and not config.position_biased_input
    assert config.type_vocab_size == 0


@pytest.mark.parametrize("name", ENCODERS)
def test_loads_offline_with_a_new_head_only(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    _, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        encoder_path(name), num_labels=3, output_loading_info=True
    )
    transformers.AutoTokenizer.from_pretrained(encoder_path(name))
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    heads = {key.split(".")[0] for key in info["missing_keys"]}
    assert heads and heads <= {"classifier", "pooler"}, heads


@pytest.mark.parametrize("name", ENCODERS)
def test_shipped_files_are_those_recorded(name):
    folder = encoder_path(name)
    weights = (folder / "model.safetensors").read_bytes()
    facts = json.loads((folder / "pretrain.json").read_text())
    log = pandas.read_csv(folder / "pretrain_log.csv")
    assert len(weights) <= 1_000_000
    assert hashlib.sha256(weights).hexdigest() == facts["sha256"]
    assert facts["encoder"] == name and facts["steps"] == log.step.iloc[-1]
    assert log.held_out_replaced_loss.iloc[-1] < 0.8 * log.held_out_replaced_loss[1]


@pytest.mark.parametrize("name", ENCODERS)
def test_script_rebuilds_the_same_bytes(name, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = [pretrain(name, steps=5, every=1) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for i, (encoder, log) in enumerate(runs):
        save(name, encoder, log, tmp_path / str(i))
    files = [sorted((tmp_path / str(i)).iterdir()) for i in range(2)]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))
    shipped = {f.name for f in encoder_path(name).iterdir()}
    assert shipped == {f.name for f in files[0]}
    shipped_words = (encoder_path(name) / "tokenizer.json").read_text()
    assert (tmp_path / "0" / "tokenizer.json").read_text() == shipped_words
    losses = [[row[f"{part}_loss"] for part in PARTS] for row in runs[0][1]]
    # Other processors may add up in another order: not to the last bit.
    assert numpy.array(losses) == pytest.approx(numpy.array(FIRST_LOSSES[name]), rel=1e-4)


def test_corruption_marks_what_it_changed():
    rng = numpy.random.default_rng(0)
    words = [
        "the",
        "happy",
        "doctor",
        "did",
        "not",
        "buy",
        "two",
        "big",
        "cars",
        "near",
        "the",
        "station",
    ]
    changed = 0
    for _ in range(200):
        new, marks, hidden = corrupt(rng, words, second=True)
        assert [int(a != b) for a, b in zip(words, new, strict=True)] == marks
        for before, after, mark in zip(words, new, marks, strict=True):
            if mark:
                old, form = lexicon.THESAURUS[before]
                concept, new_form = lexicon.THESAURUS[after]
                assert (concept.kind, new_form) == (old.kind, form) and concept != old
        changed += sum(marks)
        assert not any(h and m for h, m in zip(hidden, marks, strict=True))
    assert changed > 100


def test_batches_hide_and_mark_within_the_text():
    corruptor = Corruptor("embedded", seed=3)
    batch = next(corruptor.batches(64))
    hidden, replaced = batch.hidden != IGNORED, batch.replaced != IGNORED
    assert torch.equal(hidden, batch.input_ids == corruptor.mask)
    assert not (hidden & replaced).any() and hidden.any()
    special = torch.isin(batch.input_ids, torch.tensor([corruptor.cls, corruptor.sep]))
    assert not (replaced & special).any()
    assert torch.equal(hidden | replaced | special, batch.attention_mask.bool())
    assert set(batch.replaced[replaced].tolist()) == {0, 1}


def test_unknown_encoder_is_explained():
    with pytest.raises(ValueError, match="embedded-roberta"):
        encoder_path("bert")
