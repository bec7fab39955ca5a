"""Many client processes at once that map, write, move, fork, share and verify every byte, while some are killed.

Every page carries who wrote it, where it belongs and when, and is compared as a whole on every read. A page that reads
as zeros or as one of its earlier versions is *lost*; a mixture of what it may hold, whose writer was killed in the
middle of a write, is *torn* and no fault; any other difference is *wrong*.

Reading order: `plan`, `pages`, `board`, `area`; then what the processes do: `process`, `member`, `mover`, `worker`,
`relatives`; then who keeps them at it: `crew`, `killer`, `report`, `run`.
"""
