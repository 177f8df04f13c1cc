"""Deployment: one party, a real network, a real disk."""
