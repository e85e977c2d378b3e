"""The checks of `billing-sync doctor`, one module for each subject. They read, and write nothing anywhere.

Each check returns findings, has time-outs of its own, and needs no other one to pass.
"""
