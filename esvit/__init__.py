"""EsViT: the method. Torch only; no data sets, no command line, no printing."""
