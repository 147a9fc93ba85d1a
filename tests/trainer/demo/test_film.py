import pytest

from playserve.errors import DataLossError
from playserve_trainer.demo.film import still_of

HEAD = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
LOOP = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
CONTROL = b"!\xf9\x04\x00\x0a\x00\x00\x00"
PICTURE = b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
OWN_COLOURS = b",\x00\x00\x00\x00\x01\x00\x01\x00\x80" + bytes(6) + b"\x02\x02D\x01\x00"


@pytest.mark.parametrize("picture", [PICTURE, OWN_COLOURS], ids=["shared colours", "own colours"])
def test_the_first_picture_is_kept_whole(picture: bytes) -> None:
    film = HEAD + LOOP + CONTROL + picture + CONTROL + PICTURE + b";"
    assert still_of(film) == HEAD + LOOP + CONTROL + picture + b";"


@pytest.mark.parametrize("film", [b"PNG", HEAD, HEAD + LOOP + CONTROL + PICTURE[:-3], HEAD + b";"])
def test_what_is_no_whole_film_is_refused(film: bytes) -> None:
    with pytest.raises(DataLossError, match="film"):
        still_of(film)
