"""Many client processes at once that map, write, move, fork and verify every byte: `report` runs them, `worker` is one.

Every page carries who wrote it, as which page, and how often; it is compared as a whole on every read. A page that
reads as zeros or as one of its earlier states is *lost*, any other difference is *wrong*.
"""
