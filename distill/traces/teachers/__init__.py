"""Who answers each question twice, once with reasoning and once without.

teacher.py      what every teacher offers
settings.py     what it is told
solver.py       the solvers of the tasks themselves
chat.py         how a question is put to a model that chats
read_reply.py   what it said becomes an answer
endpoint.py     behind a server that is there already
vllm.py         behind one that is started for the purpose
capture.py      whose log-probabilities are kept, at which temperature
"""
