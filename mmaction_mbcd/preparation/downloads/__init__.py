"""Fetches the datasets and the pretrained weights; a second run goes on from the first.

None of the real servers could be tried while this was written: the tests run against
a local one, and what is assumed about the real ones stands in :data:`.epic.EPIC_URL`,
:func:`.hac.list_dataset` and :data:`.weights.WEIGHTS`.
"""
