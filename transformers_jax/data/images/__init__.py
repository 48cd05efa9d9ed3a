"""Images: listed (`folders`, `digits`), read (`decode`), changed at random (`augment`), made as a foreign model wants
(`processing`).

An image is a uint8 array [H, W, C], C being 3, or 1 for a grey one, and stays so until it is on the device.
"""
