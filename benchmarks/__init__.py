"""Measures lrai beside other servers, on the same models, with the same client, in the same run."""
