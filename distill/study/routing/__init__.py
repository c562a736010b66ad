"""Whether to think, decided question by question before anything is generated.

router.py          the rule and its mathematics; what is learned, kept in a file, and decides: Router
cross_fitting.py   what it expects of questions that it was not fitted on
choices.py         what is found of answers chosen between two cells: by a router, and by an oracle
"""
