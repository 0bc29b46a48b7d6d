"""One run: data, encoder, method, Trainer, run folder."""
