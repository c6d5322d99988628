"""Find, by measuring, the decisions that make the kernels of a model fastest on this machine."""
