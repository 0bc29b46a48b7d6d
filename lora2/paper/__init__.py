"""The paper's printed numbers, and the audit of them."""
