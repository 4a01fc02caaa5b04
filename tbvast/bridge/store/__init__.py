"""
The bridge's store: indicators, and sightings that wait to be sent.
"""
