"""Chaos: everything that Bursar consists of is killed under load, again and again, and then the books are compared.

docs/chaos.md says what is killed, how the narrow windows are aimed at, and what is asserted.
"""
