"""Public sets of pictures, made into image folders."""
