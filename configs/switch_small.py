"""A small Switch Transformer to compare with its dense twin, `dense_small.py`: `make compare` trains both.

The model of `quickstart.py`, trained for 4,000 steps on the source archive of Django 5.1.4: English, code, tests and
translations, bytes as tokens. The version is pinned, so that figures of two machines can be compared. It has 16 times
the feed-forward weights of its twin at 2% more FLOPs per token, which are the router's.

Cost: 4,000 steps of 8,192 tokens, each in one piece; the first run downloads about 11 MB.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    config.data.source = "pypi:django==5.1.4"
    config.train.steps = 4_000
    config.train.accumulate = 1
    config.eval.every = 100
    config.eval.batches = 16
    return config
