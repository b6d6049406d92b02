"""Figures and statistics of finished runs."""
