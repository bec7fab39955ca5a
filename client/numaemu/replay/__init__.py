"""Recorded programs of system calls, run again: what a real kernel answered, beside what the machine answers.

* `records`: the files, a program a line.
* `words`: the words of a program's lines: addresses, masks, flags.
* `program`: runs a program, line by line, on a machine in memory or one of real processes.
* `operations`, `observations`: what each line asks for, in system calls, and what it reports.
* `in_memory`, `in_processes`: the two kinds of machine.
* `compare`: which answers count, and whether they are the same.
* `runner`: many programs, several at a time.
* `excuses`: programs that are known to answer otherwise.
* `sums`: what a run came to.
"""
