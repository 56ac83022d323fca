"""Media on this machine: what a file is, whether it can be used, and how clips and programmes are built."""
