"""Simulated Stripe and Lago servers over real HTTP, with a settable clock and a fault plan.

Nothing here imports the rest of the project.
"""
