"""PEFT methods of this package: LoRA2, SoRA and LoRA-XS. Nothing here knows GLUE."""

import peft  # noqa: F401  # registers them all, whichever of them is imported first
