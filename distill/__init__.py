"""distill: is it worth training my model on reasoning traces?

The rooms of the house are packages of their own (tasks, traces, packing, training, evaluation, study) with
kernels, serve and bench beside them; docs/architecture.md says who may know whom. Importing this package
imports nothing heavy.
"""

__version__ = "0.1.0"
