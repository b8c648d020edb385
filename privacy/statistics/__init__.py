"""Statistics of private rows as one noisy release: what is counted, what one record adds at most,
and what follows from the noisy sums by post-processing, with error bars."""
