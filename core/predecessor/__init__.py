"""The old store's two files, in and out: every intact record is recovered, every loss or repair has its reason."""
