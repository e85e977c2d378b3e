"""What the billers hold against what they should: found by listing, kept as a plan, applied by the usual rounds."""
