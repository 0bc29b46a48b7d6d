"""The paper's printed numbers and what does not add up in them."""
