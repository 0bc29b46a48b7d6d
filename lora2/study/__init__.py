"""Studies: learning rates chosen on rows held out of train, final runs, and what they answer."""
