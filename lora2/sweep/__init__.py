"""A table's YAML -> jobs -> worker processes or Slurm."""
