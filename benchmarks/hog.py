"""Histograms of oriented gradients: what a picture's embedding has to beat.

Dalal and Triggs, CVPR 2005, with the numbers that scikit-image takes: 9 unsigned orientations,
cells of 8 x 8 pixels, blocks of 3 x 3 cells normalised as "L2-Hys".
"""

import numpy as np

ORIENTATIONS, CELL, BLOCK = 9, 8, 3
EPSILON = 1e-5


def hog(grey):
    """Describe a grey picture (H, W) by its gradients' orientations."""
    cells = histograms(grey.astype(np.float64))
    rows, columns = cells.shape[0] - BLOCK + 1, cells.shape[1] - BLOCK + 1
    blocks = [
        normalise(cells[r : r + BLOCK, c : c + BLOCK].ravel())
        for r in range(rows)
        for c in range(columns)
    ]
    return np.concatenate(blocks)


def histograms(grey):
    """Sum the gradients' lengths by cell and orientation."""
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:-1] = grey[2:] - grey[:-2]
    right[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    length = np.hypot(down, right)
    degrees = np.rad2deg(np.arctan2(down, right)) % 180
    found = []
    for number in range(ORIENTATIONS):
        low, high = 180 / ORIENTATIONS * number, 180 / ORIENTATIONS * (number + 1)
        here = np.where((degrees >= low) & (degrees < high), length, 0.0)
        height, width = (side // CELL for side in grey.shape)
        whole = here[: height * CELL, : width * CELL].reshape(height, CELL, width, CELL)
        found.append(whole.sum(axis=(1, 3)) / CELL**2)
    return np.stack(found, axis=-1)


def normalise(block):
    """Give a block length one, cut what is over 0.2, and give it length one again."""
    block = block / np.sqrt((block**2).sum() + EPSILON**2)
    block = np.minimum(block, 0.2)
    return block / np.sqrt((block**2).sum() + EPSILON**2)
