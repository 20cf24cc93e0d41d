"""What further protocols want to know of a model; beside the core, and never in a request's way.

Called by `lifecycle.py`. Never changes how a plain request is answered.
"""
