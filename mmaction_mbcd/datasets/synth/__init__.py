"""A synthetic multi-modal action data set: encoded video, flow and sound.

A test or a tutorial cannot fetch a real data set of this field, so this package makes
a small one with the same difficulties. A class is an *action*: a way in which an object
moves and a sound that goes with it. A domain is a way of rendering both::

    config      what to generate; label, cue and random numbers of each clip
    scene       motion of the class, track, camera, who passes by
    rendering   look of the domain -> RGB frames, and their optical flow
    sound       sound of the class + acoustics of the domain + disturbances
    writing     encodes every clip, in HAC's folder layout

Two knobs set what a learner meets. ``spurious`` ties the background tint to the label
in the source domains and leaves it random in the target: it is the first thing that a
video network learns and is worth nothing in the target. Flow does not see it.
``audio_difficulty`` lowers the signal-to-noise ratio and raises distractors: short
pieces of the sounds of other classes.

Neither view settles every clip. The classes form pairs that resemble each other in
motion (swing / flat circle, slanted bounce / steep zigzag, pulse / spin of a round
shape) and other pairs that resemble each other in sound (swing / pulse, bounce /
circle, spin / zigzag). No pair occurs in both lists, so fusion helps.

A single frame shows the class through the cue and through the apparatus behind the
object (a rail, a ring, an axle), which in one clip of fifteen belongs to another
action. Every action stays itself under a left-right flip.

The random numbers of a clip derive from (seed, domain, split, index) alone. Files are
byte-identical for any number of workers; other versions of FFmpeg, OpenCV or numpy may
give other bytes.
"""

from .config import CLASSES, DOMAINS, MODALITIES, SPLITS, SynthClip, SynthConfig
from .writing import META_FILE, generate

__all__ = [
    "CLASSES",
    "DOMAINS",
    "META_FILE",
    "MODALITIES",
    "SPLITS",
    "SynthClip",
    "SynthConfig",
    "generate",
]
