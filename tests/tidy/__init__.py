"""Tests that read the sources themselves: size, shape, words, imports, documents.

Each check is a plain function from a `Project` to a list of findings, so that every one of them is shown to fail on a
small project that breaks its rule.
"""
