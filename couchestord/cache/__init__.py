"""Caches in RAM and on NVMe. Nothing is built yet: reads go to the stripes and the journal, through the page cache."""
