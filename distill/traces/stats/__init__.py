"""`distill traces stats`: what is in a trace set, as numbers, as a page and in a terminal."""
