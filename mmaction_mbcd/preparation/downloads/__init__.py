"""Fetches the datasets and the pretrained weights; a second run goes on from the first.

``files`` fetches one file, ``archives`` unpacks it without trusting it, ``runs`` does
many at a time and has the tools' options; ``epic``, ``hac`` and ``weights`` say what
is fetched, and where it goes.

None of the real servers could be tried while this was written: the tests run against
a local one, and what is assumed about the real ones stands in :data:`.epic.EPIC_URL`,
:func:`.hac.list_dataset` and :data:`.weights.WEIGHTS`.
"""
