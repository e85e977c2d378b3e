"""Stand-ins of Stripe and Lago over real HTTP, with a clock and a fault plan.

Nothing here knows the rest of the project.
"""
