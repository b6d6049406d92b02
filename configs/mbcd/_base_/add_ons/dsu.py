"""Noise on feature statistics at each stem's and branch's end, half of the time.

The published code of MBCD applies it; its paper does not name it.
"""

dsu = dict(video=dict(dsu=0.5), audio=dict(dsu=0.5), flow=dict(dsu=0.5))
