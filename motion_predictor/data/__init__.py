"""From videos and portraits to shards of motion records, which the motion predictor is trained on.

Needs the extra packages of `pip install 'dynadrag[training]'`.
"""
