"""What a student's answers cost when it is served: students, questions, grades and prices over `distill.serve`.

measure.py   what all below share: a student with its questions and its server, and graded answers of what was timed
profile.py   a student's answers to a task's questions under load: `distill serve profile`; flags.py, table.py its words
cost.py      seconds, joules and $ per token, per answer and per correct answer, and how much dearer one student is
pricing.py   what serving is charged at, and what training and teacher cost
compare.py   two students on the same questions: `distill serve compare`; turns.py puts them under load in turns, rounds.py
             puts the rounds together, at_objective.py says what a latency objective costs, words.py says it in words
page.py      the pages of both
"""
