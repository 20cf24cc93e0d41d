"""Judges policies in the simulator: traces, service times, tuning, hindsight, reports.

Runs in a process of its own, never in the serving one; every figure it returns is simulated.
"""
