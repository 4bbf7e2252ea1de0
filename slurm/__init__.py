"""Starts recipes on Slurm or on this machine. Imports no torch: submitting takes a second, and a recipe is a string."""
