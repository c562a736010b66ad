"""`distill study plan`: what a study takes, and what is wrong with it, before anything runs; and afterwards, how it came out.

shapes.py      the shape of a student without its weights, and without a network where it is well known
counts.py      what each cell is trained on, in examples and tokens: counted, or expected
answers.py     what each cell generates: graded answers, votes, load
memory.py      what a device holds while it trains and serves; fits.py: whether that fits, and what would help
seconds.py     how long that takes on a row of hardware.yaml; rates.py: measured here instead
detectable.py  the smallest difference that the questions and seeds can show
problems.py    what is wrong
cell.py        what is known of one cell; sums.py: what all of them come to
plan.py        all of it; actual.py: beside what a run took; table.py: what a terminal shows
"""
