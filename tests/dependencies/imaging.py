"""Computes with numpy and draws with Pillow, in threads of their own and with caches of their own."""
import io
import socket

import numpy
from PIL import Image, ImageDraw, ImageFilter

seen = []
kept = []


def main(args):
    found = list(seen)
    seen.append(args["n"])
    generator = numpy.random.default_rng(args["n"])
    matrix = generator.random((300, 300))
    inverse = numpy.linalg.inv(matrix)
    off = float(numpy.abs(matrix @ inverse - numpy.eye(300)).max())
    kept.append(numpy.ones((1000, 1000)))
    numpy.seterr(all="raise" if args["n"] % 2 else "warn")

    image = Image.new("RGB", (400, 300), (args["n"] % 256, 0, 0))
    ImageDraw.Draw(image).ellipse((50, 50, 350, 250), fill=(0, 255, 0))
    image = image.filter(ImageFilter.GaussianBlur(3)).rotate(30)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    image.save("/tmp/image.png")
    again = Image.open(io.BytesIO(buffer.getvalue()))
    pixel = again.getpixel((200, 150))
    return {"found": found, "off": off, "pixel": pixel, "host": socket.gethostname()}
