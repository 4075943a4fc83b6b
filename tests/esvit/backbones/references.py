"""Recorded networks of the published implementation: state, inputs, outputs."""

import json

import numpy as np
import torch


def load(path):
    """Give the arrays of a file, its configuration and the state it was recorded with."""
    arrays = np.load(path, allow_pickle=False)
    fields = json.loads(bytes(arrays["config_json"]))
    state = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    return arrays, fields, state


def images_of(arrays, name):
    return torch.from_numpy(arrays[f"in/{name}"].astype(np.float32) * arrays["in_scale"])


def assert_equals(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=0)
