"""Finds out in idle time how many replicas and threads suit each model.

Between the actors, whose trials measure, and whoever loads models; never on the way of a request.
"""
