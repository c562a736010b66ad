"""How sure one can be of a score, and of a difference: intervals, tests, and what a study could have seen.

intervals.py             a score and a paired difference, with the interval they are shown with
resampling.py            how a score varies with the questions
seeds_and_questions.py   how wide an interval is when seeds and questions are both drawn by chance
significance.py          exact tests, and Holm's correction over several
power.py                 the smallest difference that could have been seen
pass_at_k.py             what several answers to one question are worth
matched_majority.py      short answers at the price of long ones
"""
