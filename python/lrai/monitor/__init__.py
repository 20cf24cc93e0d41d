"""Watches models from outside: what their outputs look like.

Called by the worker inside an actor process. Never changes an answer, never acts on what it sees.
"""
