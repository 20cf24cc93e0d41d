"""Does a property hold for every input of a region? Proves it, refutes it, or says why it cannot.

The command line calls it; it never runs in the serving process. A search in float64 with explicit
error terms (`search`) leaves a certificate that `checker`, a separate program which shares no code
with the search, proves again. It never says "verified" without that proof.
"""
