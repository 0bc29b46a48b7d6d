from __future__ import annotations

import pickle

from peft import PeftType

from lora2 import Lora2Config


def test_the_peft_type_is_a_true_member():
    member = PeftType.LORA2
    assert isinstance(member, PeftType)
    assert member == "LORA2" and member.name == member.value == "LORA2"
    assert PeftType("LORA2") is PeftType["LORA2"] is member is pickle.loads(pickle.dumps(member))
    assert member in list(PeftType) and member != PeftType.LORA
    assert Lora2Config().peft_type is member
