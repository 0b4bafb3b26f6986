"""Thumbnails in a loop of one's own: no worker, and nothing is lost by that.

python examples/pull.py

Sends some work to the embedded broker, and does it here until there is none left.
"""

from __future__ import annotations

from umbel import Message, Retry, Umbel

app = Umbel("gallery")


class Shrink(Message, name="gallery.shrink", version=1):
    """What is to be done."""

    picture: str
    width: int


@app.job(queue="thumbnails", retry=Retry(immediate=1))
def shrink(message: Shrink) -> str:
    """Says what the messages of the queue are, and when they are retried; nobody calls it here."""
    raise NotImplementedError("pulled, see main()")


def main() -> None:
    """Two messages: one that is done, and one that fails at first."""
    handles = [
        shrink.request(Shrink(picture=picture, width=150)) for picture in ("cat.jpg", "dog.jpg")
    ]
    for delivery in app.pull("thumbnails", timeout_s=1):
        with delivery as message:
            assert isinstance(message, Shrink)
            if message.picture == "dog.jpg" and delivery.attempt == 1:
                raise OSError("the disk is busy")  # by the job's policy: it comes once more
            delivery.context.progress(1, 1, "drawn")
            delivery.result = f"{message.width}/{message.picture}"
    for handle in handles:
        print(f"{handle.result(10)}: {handle.state()}")


if __name__ == "__main__":
    main()
