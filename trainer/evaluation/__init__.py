"""Protocols that measure what was learnt."""
