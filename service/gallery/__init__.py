"""Image search: pictures are indexed once, then found by a picture or by a part of one."""
