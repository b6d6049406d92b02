"""Experiments made of several runs."""
