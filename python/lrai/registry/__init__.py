"""Which models exist on disk, which of their versions are served, and how they want to run.

Called by `server.py`. Reads single files, folders of files and Triton's repository layout.
Never loads a model, never decides when one is loaded.
"""
