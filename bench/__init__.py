"""Measured: kernels, training and serving against peers, and the cost gap; imported as distill.bench."""
