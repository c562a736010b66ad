"""`distill traces check`: what in a trace set could make an experiment mean something else, found and taken out."""
