"""Fit: a backbone, a task and a method in, a tuned prompt out."""
