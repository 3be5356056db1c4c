"""The messages and services of bursar.v1, generated from proto/bursar/v1/."""
