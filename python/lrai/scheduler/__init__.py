"""Turns what was observed of a model into the knobs of its waiting line, to meet a latency goal.

Called by `server.py` and `lifecycle.py`, ten times a second while there is traffic. Never touches a
request, never reads the clock: time comes in.
"""
