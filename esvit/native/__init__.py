"""Kernels of ours for processors, in C++: what torch does in many passes over memory, in one.

They are optional. Where there is no compiler, or no processor they were made for, everything runs
by torch's operators, as it does on other devices: same numbers up to rounding, slower.
"""
