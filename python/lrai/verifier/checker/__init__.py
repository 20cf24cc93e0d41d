"""Proves certificates again: its own reading of ONNX and VNN-LIB, its own bounds.

Call `check`. Nothing else of the verifier is ever imported from here.
"""

from lrai.verifier.checker.check import CheckResult, check, refusal

__all__ = ["CheckResult", "check", "refusal"]
