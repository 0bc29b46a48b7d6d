from __future__ import annotations

import pytest
from peft import PeftConfig

from lora2 import Lora2Config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", 2.5),
        ("r", True),
        ("k", 0),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("bias", "lora_only"),
        ("init_weights", "gaussian"),
        ("init_std", 0),
        ("target_r", 0),
        ("target_r", 9),
        ("tinit", -1),
        ("tfinal", -1),
        ("deltaT", 0),
        ("beta1", 1.0),
        ("beta2", -0.01),
        ("orth_reg_weight", -1),
        ("orthogonality", "PQ+uv"),
        ("orth_squared", 1),
        ("importance", "Eq9"),
        ("total_step", 0),
        ("layers_pattern", "layer"),
    ],
)
def test_an_impossible_value_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"Lora2Config: {key}=.*allowed"):
        Lora2Config(**{key: value})


def test_all_problems_come_in_one_error():
    with pytest.raises(ValueError) as error:
        Lora2Config(r=0, k=-1, beta1=2, target_modules="q.*", layers_to_transform=[0])
    assert [
        part.split("=")[0] for part in str(error.value)[len("Lora2Config: ") :].split("; ")
    ] == [
        "r",
        "layers_to_transform",
        "k",
        "beta1",
    ]


def test_a_schedule_longer_than_the_run_is_refused_only_when_it_prunes():
    schedule = {"tinit": 60, "tfinal": 40, "total_step": 100}
    with pytest.raises(ValueError, match="leave no step for pruning in total_step=100"):
        Lora2Config(target_r=2, **schedule)
    assert not Lora2Config(target_r=8, **schedule).prunes
    assert not Lora2Config(**schedule).prunes
    assert Lora2Config(target_r=2, tinit=60, tfinal=39, total_step=100).prunes


def test_defaults_and_bounds_are_allowed():
    assert Lora2Config().regularizes
    assert not Lora2Config(orth_reg_weight=0).regularizes
    assert not Lora2Config(orthogonality="none").regularizes
    edge = Lora2Config(r=1, k=1, target_r=1, beta1=0, beta2=0, lora_alpha=0.5, deltaT=1)
    assert edge.peft_type == "LORA2" and edge.lora_alpha == 0.5


def test_a_config_survives_saving(tmp_path):
    config = Lora2Config(
        r=4, k=3, target_modules=["b", "a"], exclude_modules=["c"], target_r=2, total_step=7
    )
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is Lora2Config
    assert loaded.to_dict() == config.to_dict() and loaded.target_modules == {"a", "b"}
