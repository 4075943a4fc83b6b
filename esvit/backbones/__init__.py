"""The backbones, one file each, all meeting the backbone contract (see esvit/config.py)."""
