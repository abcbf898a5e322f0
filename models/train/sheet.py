"""A contact sheet of training pictures, to look at before hours are spent: sheet.py --views views/ [--templates templates.csv] --out sheet.png"""
import argparse

import cv2
import numpy as np

from views import Catalogue, ground, picture

a = argparse.ArgumentParser(description=__doc__)
a.add_argument("--views", nargs="+")
a.add_argument("--templates")
a.add_argument("--out", required=True)
a.add_argument("--px", type=int, default=128)
a.add_argument("--seed", type=int, default=1)
a = a.parse_args()
rng = np.random.default_rng(a.seed)
catalogue = Catalogue(a.views, a.templates)
grounds = [ground(rng) for _ in range(40)]
rows = [[picture(rng, catalogue, catalogue.index[rng.integers(len(catalogue.index))], a.px, grounds) for _ in range(12)] for _ in range(8)]
cv2.imwrite(a.out, np.vstack([np.hstack(r) for r in rows]))
