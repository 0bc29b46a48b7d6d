"""Speed and memory of the methods, on any device and with nothing but torch, transformers, peft."""
