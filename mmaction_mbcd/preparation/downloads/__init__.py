"""Fetches the datasets and the pretrained weights; a second run goes on from the first.

From the bottom up::

    common    options, errors, and what a worker tells about its file
    http      one connection: redirects, tokens, time limits, tries
    files     one file: the rest of it after an interruption, its checksum
    runs      many files: workers, progress, report, and the tools' options
    archives  unpacking without trusting the archive
    epic, hac, weights
              what is fetched, and into which layout

It speaks plain HTTP(S) with the standard library. A kill at any moment loses no more
than what was not yet written.

None of the real servers could be tried while this was written: the tests run against
a local one, and what is assumed about the real ones stands in :data:`.epic.EPIC_URL`,
:func:`.hac.list_dataset` and :data:`.weights.WEIGHTS`.
"""
