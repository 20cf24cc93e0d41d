"""One process, one loaded replica: forked from a warm template, watched, replaced when it dies.

`supervisor` runs in the server and owns all actors of it; `spawn` is its end of a `template`, the
process that has imported an engine and forks; `worker` is what a forked actor does until its link
closes. Called by `server.py` and `lifecycle.py`. Never parses a protocol, never touches a tensor
outside an actor.
"""
