"""What trains a model: one file an ML library, and the optimizers, schedules and local objectives they share."""
