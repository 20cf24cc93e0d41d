"""What further protocols want: Triton's model configuration, and its control over what is served.

Called by `server.py` and `lifecycle.py`. Never changes how a plain request is answered.
"""
