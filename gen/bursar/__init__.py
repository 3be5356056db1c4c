"""Bursar's typed client: message classes and stubs, generated from proto/."""
