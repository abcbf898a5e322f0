#!/usr/bin/env python3
"""Pictures as cameras do not write them: pip install pillow && python tests/reference/images/make_images.py tests/reference/images

cmyk.jpg is pure red in four inks (as printers' software writes it); rotated.jpg is 24 x 8, its left third red, and its EXIF says
that it is to be turned by a quarter."""
import pathlib, sys

from PIL import Image

folder = pathlib.Path(sys.argv[1])
Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)
picture = Image.new("RGB", (24, 8), (255, 255, 255))
picture.paste((255, 0, 0), (0, 0, 8, 8))
exif = Image.Exif()
exif[0x0112] = 6
picture.save(folder / "rotated.jpg", quality=95, exif=exif)
