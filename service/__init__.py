"""The REST service: a model file in, vectors out. Never imports torch."""

VERSION = "0.1.0"
