"""What is made of finished runs, and what the paper's own numbers say."""
