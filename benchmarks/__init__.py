"""Measurements, as ratios against a peer in the same run. `make bench` prints them; no test asserts them."""
