"""Words and YAML files -> one checked, hashed RunConfig."""
