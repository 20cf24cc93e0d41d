"""What a person types: one file per command.

Called by the script `lrai`. Holds no logic of its own; the serving process never imports it.
"""
