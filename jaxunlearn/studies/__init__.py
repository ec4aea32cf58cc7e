"""What open questions ask for and neither an audit nor a comparison measures.

A measurement takes what is `Given` of one training seed and settings of its own, and
returns numbers by row and measure; `jaxunlearn study` runs them over training seeds.
"""
