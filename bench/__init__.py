"""What the project promises about speed and memory, each figure measured beside its reference in the same run."""
