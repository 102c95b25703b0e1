"""Chains of steps."""
