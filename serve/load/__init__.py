"""Load on a server: who sends what and when, by how many processes, and what of it counts.

shapes.py       closed loop, open loop, a recorded trace of arrivals
clients.py      the processes that send
steady.py       the part of a run in which the load was what it is called, and rates within it
null_server.py  a server that costs nothing, to find out what the clients can do
"""
