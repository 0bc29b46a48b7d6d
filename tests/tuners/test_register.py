from __future__ import annotations

import subprocess
import sys

CODE = """
import pickle, sys
from peft import PeftType
import lora2
from lora2 import Lora2Config
member = PeftType.LORA2
assert isinstance(member, PeftType) and member == "LORA2" and member.name == member.value == "LORA2"
assert PeftType("LORA2") is PeftType["LORA2"] is member is pickle.loads(pickle.dumps(member))
assert member in list(PeftType) and PeftType.LORA != member
assert Lora2Config().peft_type is member
"""


def test_the_peft_type_is_a_true_member():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
