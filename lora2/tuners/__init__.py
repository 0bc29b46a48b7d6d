"""PEFT methods of this package: LoRA2, SoRA and LoRA-XS. Nothing here knows GLUE."""
