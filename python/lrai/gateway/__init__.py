"""Maps settings, model signatures and statuses to the data plane, and its events to values.

Called by `server.py`. Never knows how a model runs, never sees a request.
"""
