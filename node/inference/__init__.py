"""From a series of images to what a network says about it."""
