"""Figures of a machine, each measured beside what it could not be faster than, in the same run.

`figures` has one function a figure, `rounds` interleaves ours and the peer's, `echo` is the peer of a fault. Hosts are
noisy: quote ratios and medians.
"""
