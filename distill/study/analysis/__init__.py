"""What a study says beside its declared contrasts: `results["analysis"]`.

analyse.py        all of it, from what was found
views.py          every model of a study on one task or over all, for the next two
points.py         one model on one task, question by question, with what its answers cost
draws.py          resampling of questions and seeds, for what is no mean: who is best, and where lines cross
combination.py    weighted sums of scores of several students, with their interval
frontier.py       the best accuracy for at most a cost
equal_cost.py     students with reasoning against those without it that cost as much
scaling.py        how a gain grows with the student
by_kind.py        gains by answer format and by domain
lengths.py        tokens of right and of wrong answers
seed_sd.py        how far apart training seeds fall, of arms that mix modes and of others
break_even.py     what a right answer must be worth for the dearer arm to pay
prices.py         what an answer costs, and what was spent before there was any
interactions.py   whether a gain is another one in one student than in the other
family.py         the correction for how much was declared
"""
