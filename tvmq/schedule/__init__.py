"""Fast schedules for the kernels that carry most of a model's work."""
