"""Frozen features of rows, computed once and cached."""
