"""Figures of a machine, each measured beside what it could not be faster than, in the same run.

`rounds` interleaves ours and the peer's; `hits`, `faults`, `moving`, `tasks`, `many`, `at_rest` have the figures,
`growth` the curves, `figures` all their names. Hosts are noisy: quote ratios and medians.
"""
