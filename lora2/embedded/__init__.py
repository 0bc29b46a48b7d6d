"""An offline GLUE from a small grammar, and two tiny encoders pretrained on its text."""

from lora2.embedded.encoders import encoder_path
from lora2.embedded.grammar import make_split

__all__ = ["encoder_path", "make_split"]
